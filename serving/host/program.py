"""Runs a host program: raw features in, two feature blocks out.

A program whose operators are all native runs in the native core (`serving/host/native.py`), in one call
without Python's lock; any other one runs on the NumPy operators.
"""

import functools
import itertools
import logging
import math
from collections.abc import Iterable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.host_program import TABLE_PREFIX, HostOperator, HostProgram
from jaxrank.manifest import Manifest, Scope, Signature
from serving.errors import InvalidRequestError
from serving.host.lookups import KeyLookup, open_table, open_vocabulary
from serving.host.native import NativeProgram, NotNative, open_native
from serving.host.operators import OPERATORS, Lookups, Operator, decode_constant
from serving.host.scopes import REPEAT_ROWS, split
from serving.host.waves import Wave, waves
from serving.tables import RowSource, Table, TableMemory
from serving.tiers.budget import LookupBudget
from serving.tiers.errors import TierConfigError

log = logging.getLogger("jaxrank")

_LOOKUPS_AT_ONCE = 16
"""Of all requests of a model, in tables that are not in memory."""
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class FeatureBlocks:
    """`request` is `[1, R]`, `candidate` is `[N, C]`; float32, C-contiguous. `outputs` are the signature's
    outputs that the host made, `[N, ...]`. `state` is what the request tower made of `request`, where that is
    known."""

    request: np.ndarray
    candidate: np.ndarray
    outputs: Mapping[str, np.ndarray]
    state: Sequence[Any] | None = None


@dataclass(frozen=True)
class RequestSide:
    """What the request's part of a host program makes: the request's block, and the tensors that the
    candidates' part reads, by name. Memory of its own."""

    block: np.ndarray
    handed: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Snapshot:
    """The tables that a request sees from its beginning to its end, and what reads them: a native program for
    each part, or the NumPy operators with their lookups and the tables that they read as a whole.

    `epoch` is another one after every change of the tables.
    """

    epoch: int
    tables: Mapping[str, Table]
    native: Sequence[NativeProgram] | None
    lookups: Lookups | None
    arrays: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class _Part:
    """A host program, or its part of one scope, ready to run. `features` are the dtypes of what it is given;
    None for what another part makes."""

    program: HostProgram
    features: Mapping[str, str | None]
    steps: Sequence["_Step"]
    waves: Sequence[Wave]


@dataclass(frozen=True)
class _Step:
    """One operator, ready to run; `run` is None for `repeat_rows`. `constants` are (position, value, growth
    per candidate beyond the first)."""

    run: Operator | None
    operator: HostOperator
    attrs: Mapping[str, Any]
    constants: tuple[tuple[int, np.ndarray, np.ndarray | None], ...]


class HostProgramRunner:
    """A bundle's host program with its tables and vocabularies. Thread-safe: a run shares nothing but
    read-only tables.

    `not_native` says why the program runs on NumPy; it is empty where it runs natively.
    """

    def __init__(
        self,
        bundle: Path,
        manifest: Manifest,
        tiered: Mapping[str, RowSource] | None = None,
        *,
        native: bool = True,
        in_parts: bool = False,
        memory: TableMemory = "mapped",
    ):
        """`tiered` are tables whose rows are not in the bundle's files, by their names. `native=False` runs
        the NumPy operators, whatever the program. `in_parts` makes `prepare` and `rank` possible, where the
        program can be divided (`serving.host.scopes`). `memory` is where the rows of the bundle's tables
        are."""
        self.program = files.read_host_program(bundle)
        unknown = sorted({o.op for o in self.program.operators} - OPERATORS.keys() - {REPEAT_ROWS})
        if unknown:
            raise BundleError(
                f"{bundle / files.HOST_PROGRAM} uses host operators that this jaxrank does not have: "
                f"{', '.join(unknown)}"
            )
        self._signature = manifest.signature
        self._bundle, self._vocabularies = bundle, manifest.vocabularies
        self._tiered = dict(tiered or {})
        self._open = {spec.name for spec in manifest.signature.inputs if None in spec.shape[1:]}
        self._raw = _raw_features(self.program)
        request = {spec.name for spec in manifest.signature.inputs if spec.scope == "request"}
        parts = split(self.program, request) if in_parts else None
        if parts is None:
            self._parts = [self._part(self.program)]
        else:
            handed = {o.output for o in parts.request.outputs}
            self._parts = [self._part(parts.request), self._part(parts.candidate, handed)]
        self._epochs = itertools.count()
        self._pool = ThreadPoolExecutor(_LOOKUPS_AT_ONCE, thread_name_prefix="lookup") if tiered else None
        self._whole = {i for o in self.program.operators for i in o.inputs if i.startswith(TABLE_PREFIX)}
        _refuse_whole(self._tiered, self._whole)
        tables = {
            t.name: open_table(bundle, t, memory) for t in manifest.tables if t.name not in self._tiered
        }
        self._native, self.not_native = self._open_native(tables, native)
        if self.not_native:
            log.info("%s: the host program runs on NumPy, because of %s", bundle, "; ".join(self.not_native))
        self._now = self._snapshot(tables)

    @property
    def in_parts(self) -> bool:
        """Whether `prepare` and `rank` can be called."""
        return len(self._parts) == 2

    @property
    def now(self) -> Snapshot:
        """The tables as the next request sees them."""
        return self._now

    @property
    def tables(self) -> Mapping[str, Table]:
        """The embedding tables of the bundle's files by name, as the next request sees them."""
        return self._now.tables

    @property
    def shared_runs(self) -> int:
        """Runs for which helper threads were woken."""
        return sum(native.shared_runs for native in self._now.native or ())

    def why_fixed(self, table: str) -> str | None:
        """Why `replace_tables` cannot take this table; None if it can."""
        if TABLE_PREFIX + table in self._whole:
            return "the host program reads it as a whole, not row by row"
        if table not in self.tables:
            return "it is in a store" if table in self._tiered else "the model has no such table"
        return None

    def replace_tables(self, tables: Mapping[str, Table]) -> None:
        """Requests that begin from now on read these tables, all of them together; those that run read on in
        the ones that they began with. For tables of the same dim and dtype."""
        assert all(self.why_fixed(name) is None for name in tables)
        self._now = self._snapshot({**self.tables, **tables})

    def _part(self, program: HostProgram, handed: Set[str] = frozenset()) -> _Part:
        """`handed` are tensors that another part makes."""
        dtypes = {spec.name: spec.dtype for spec in self._signature.inputs}
        read = _read(program)
        return _Part(
            program,
            {name: dtypes.get(name) for name in (*dtypes, *sorted(handed)) if name in read},
            [_step(operator) for operator in program.operators],
            waves(program.operators, self._tiered),
        )

    def _snapshot(self, tables: Mapping[str, Table]) -> Snapshot:
        """These tables and what reads them."""
        epoch = next(self._epochs)
        if self._native is not None:
            return Snapshot(epoch, tables, [part.with_tables(tables) for part in self._native], None, {})
        arrays = {i: tables[i.removeprefix(TABLE_PREFIX)].array for i in self._whole}
        lookups = Lookups(tables={**tables, **self._tiered}, vocabularies=self._opened_vocabularies)
        return Snapshot(epoch, tables, None, lookups, arrays)

    def _open_native(
        self, tables: Mapping[str, Table], wanted: bool
    ) -> tuple[list[NativeProgram] | None, tuple[str, ...]]:
        """The native program of each part, or why there is none."""
        if not wanted:
            return None, ("NumPy was asked for",)
        if self._tiered:
            return None, tuple(f"table {name!r}, which is in a store" for name in sorted(self._tiered))
        try:
            opened = [
                open_native(self._bundle, p.program, p.features, self._raw, tables, self._vocabularies)
                for p in self._parts
            ]
        except NotNative as error:
            return None, error.reasons
        return opened, ()

    @functools.cached_property
    def _opened_vocabularies(self) -> dict[str, KeyLookup]:
        return {v.name: open_vocabulary(self._bundle, v) for v in self._vocabularies}

    def run(self, features: Mapping[str, np.ndarray], budget: LookupBudget | None = None) -> FeatureBlocks:
        """Runs every operator and fills the blocks.

        Args:
            features: checked by `serving.validation`: request-scope arrays have one row, candidate-scope
                arrays N.
            budget: of the lookups in tables that are not in memory; it counts the default rows.

        Raises:
            InvalidRequestError: what the operators refuse: an id that has no row in its table, text that is
                not a number, a damaged tf.Example.
        """
        if self.in_parts:
            now = self._now
            return self.rank(now, self.prepare(now, features, budget), features, budget)
        candidates = count_candidates(features, self._signature)
        request, candidate, found = self._run_part(self._now, 0, features, candidates, budget)
        return FeatureBlocks(request, candidate, self._outputs(found, candidates))

    def prepare(
        self, now: Snapshot, features: Mapping[str, np.ndarray], budget: LookupBudget | None = None
    ) -> RequestSide:
        """Runs the request's part, which reads no candidate's feature. Raises as `run` does."""
        block, _, found = self._run_part(now, 0, features, 1, budget)
        names = [o.output for o in self._parts[0].program.outputs]
        # The block lies in memory that the native program lends to one request after another.
        return RequestSide(block.copy(), dict(zip(names, found, strict=True)))

    def rank(
        self,
        now: Snapshot,
        side: RequestSide,
        features: Mapping[str, np.ndarray],
        budget: LookupBudget | None = None,
    ) -> FeatureBlocks:
        """Runs the candidates' part after `prepare` has run for the same request and snapshot. `features` are
        those of both scopes. Raises as `run` does."""
        candidates = count_candidates(features, self._signature)
        given = {**features, **side.handed}
        _, candidate, found = self._run_part(now, 1, given, candidates, budget)
        return FeatureBlocks(side.block, candidate, self._outputs(found, candidates))

    def _outputs(self, found: Sequence[np.ndarray], candidates: int) -> dict[str, np.ndarray]:
        return {
            o.output: _for_every_row(value, candidates)
            for o, value in zip(self.program.outputs, found, strict=True)
        }

    def _run_part(
        self,
        now: Snapshot,
        number: int,
        features: Mapping[str, np.ndarray],
        candidates: int,
        budget: LookupBudget | None,
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Both blocks and the outputs of a part's program."""
        if now.native is not None:
            return now.native[number].run(features, candidates)
        return self._run_numpy(now, self._parts[number], features, candidates, budget)

    def _run_numpy(
        self,
        now: Snapshot,
        part: _Part,
        features: Mapping[str, np.ndarray],
        candidates: int,
        budget: LookupBudget | None,
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        assert now.lookups is not None
        program = part.program
        values: dict[str, np.ndarray] = {**now.arrays, **features}
        rows: dict[Scope, int] = {"request": 1, "candidate": candidates}
        lookups = now.lookups if budget is None else replace(now.lookups, budget=budget)
        for wave in part.waves:
            for index in wave.before:
                self._run(part.steps[index], values, candidates, lookups)
            self._run_together([part.steps[i] for i in wave.lookups], values, candidates, lookups)
        blocks = {scope: np.empty((n, program.width(scope)), np.float32) for scope, n in rows.items()}
        for column in program.columns:
            value = values[column.tensor]
            if column.dtype == "int32":
                value = _as_bits(value, column.tensor)
            width = math.prod(column.shape)
            if value.size != rows[column.scope] * width:
                raise InvalidRequestError(
                    f"feature {self._raw_names(column.tensor)} gives values of shape "
                    f"{list(value.shape[1:])} for "
                    f"each row where the model takes {list(column.shape)}; send as many as the model "
                    "was made for"
                )
            block = blocks[column.scope]
            block[:, column.offset : column.offset + width] = value.reshape(rows[column.scope], width)
        return blocks["request"], blocks["candidate"], [values[o.tensor] for o in program.outputs]

    def close(self) -> None:
        """Ends the threads of lookups."""
        if self._pool is not None:
            self._pool.shutdown(wait=False)

    def _run_together(
        self, steps: Sequence[_Step], values: dict[str, np.ndarray], candidates: int, lookups: Lookups
    ) -> None:
        """Steps that wait for other machines."""
        if self._pool is None or len(steps) < 2:
            for step in steps:
                self._run(step, values, candidates, lookups)
            return
        running = [self._pool.submit(self._run, step, values, candidates, lookups) for step in steps]
        for future in running:
            future.result()

    def _run(self, step: _Step, values: dict[str, np.ndarray], candidates: int, lookups: Lookups) -> None:
        operator = step.operator
        operands = [values[name] for name in operator.inputs]
        for position, value, growth in step.constants:
            if growth is not None:
                value = value + growth * (candidates - 1)
            operands.insert(position, value)
        try:
            if step.run is None:
                found: Any = np.repeat(operands[0], candidates, axis=0)
            else:
                found = step.run(lookups, *operands, **step.attrs)
        except InvalidRequestError as error:
            raise InvalidRequestError(f"feature {self._raw_names(operator.outputs[0])}: {error}") from error
        except ValueError as error:
            # Shapes that the signature leaves open can be such that NumPy refuses them; others cannot.
            if not self._raw[operator.outputs[0]] & self._open:
                raise
            raise InvalidRequestError(
                f"feature {self._raw_names(operator.outputs[0])} has a shape that the model does not "
                f"take: {error}"
            ) from error
        if not isinstance(found, tuple):
            found = (found,)
        values.update(zip(operator.outputs, found, strict=True))

    def _raw_names(self, tensor: str) -> str:
        """The model inputs that a tensor is made from, for messages."""
        return ", ".join(map(repr, sorted(self._raw.get(tensor, {tensor}))))


def _refuse_whole(tiered: Mapping[str, RowSource], whole: Iterable[str]) -> None:
    """A table that an operator reads as a whole must be in memory."""
    found = sorted(name for name in tiered if TABLE_PREFIX + name in whole)
    if found:
        raise TierConfigError(
            f"table {found[0]!r} is read as a whole by this model's host program, not row by row; take it "
            "out of the tables config"
        )


def count_candidates(features: Mapping[str, np.ndarray], signature: Signature) -> int:
    """Number of candidates of a request: rows of its first candidate-scope feature. A sparse feature counts
    them in its shape, a ragged one in its splits."""
    for spec in signature.inputs:
        if spec.scope != "candidate":
            continue
        value = features[spec.name]
        if spec.part == "rows":
            return len(value)
        if spec.part == "sparse_shape":
            return int(value[0])
        if spec.part == "row_splits":
            return len(value) - 1
    return 1


def _for_every_row(value: np.ndarray, rows: int) -> np.ndarray:
    return value if value.ndim and len(value) == rows else np.repeat(np.atleast_1d(value), rows, axis=0)


def _as_bits(value: np.ndarray, name: str) -> np.ndarray:
    """Integers as the 32 bits that the dense program takes them for."""
    if value.size and (value.min() < _INT32.min or value.max() > _INT32.max):
        raise InvalidRequestError(f"{name} has a value beyond 32 bits, which the dense program cannot hold")
    return np.ascontiguousarray(value, np.int32).view(np.float32)


def _raw_features(program: HostProgram) -> dict[str, set[str]]:
    """The model inputs that each operator's outputs are made from."""
    raw: dict[str, set[str]] = {}
    for operator in program.operators:
        made = {n for n in operator.inputs if not n.startswith(TABLE_PREFIX)}
        found = set().union(*(raw.get(name, {name}) for name in made))
        raw.update(dict.fromkeys(operator.outputs, found))
    return raw


def _read(program: HostProgram) -> set[str]:
    """Names of all tensors that something reads."""
    read = {name for o in program.operators for name in o.inputs}
    return read | {c.tensor for c in program.columns} | {o.tensor for o in program.outputs}


def _step(operator: HostOperator) -> _Step:
    attrs = dict(operator.attrs)
    if "override" in attrs:
        override = attrs["override"]
        attrs["override"] = {"key": decode_constant(override["key"])[()], "value": override["value"]}
    constants = []
    for position, constant in sorted(operator.constants.items(), key=lambda item: int(item[0])):
        value = decode_constant(constant)
        growth = None
        if "per_row" in constant:
            growth = np.array(constant["per_row"], value.dtype).reshape(value.shape)
        constants.append((int(position), value, growth))
    return _Step(OPERATORS.get(operator.op), operator, attrs, tuple(constants))
