"""Runs a host program: raw features in, two feature blocks out."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.host_program import TABLE_PREFIX, HostOperator, HostProgram
from jaxrank.manifest import Manifest, Scope, Signature
from serving.errors import InvalidRequestError
from serving.host.lookups import open_table, open_vocabulary
from serving.host.operators import OPERATORS, Lookups, Operator, decode_constant

REPEAT_ROWS = "repeat_rows"
"""The one operator that needs the number of candidates: a request's row, once for each of them."""
_INT32 = np.iinfo(np.int32)


@dataclass(frozen=True)
class FeatureBlocks:
    """`request` is `[1, R]`, `candidate` is `[N, C]`; float32, C-contiguous. `outputs` are the signature's
    outputs that the host made, `[N, ...]`."""

    request: np.ndarray
    candidate: np.ndarray
    outputs: Mapping[str, np.ndarray]


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
    read-only tables."""

    def __init__(self, bundle: Path, manifest: Manifest):
        self.program = files.read_host_program(bundle)
        unknown = sorted({o.op for o in self.program.operators} - OPERATORS.keys() - {REPEAT_ROWS})
        if unknown:
            raise BundleError(
                f"{bundle / files.HOST_PROGRAM} uses host operators that this jaxrank does not have: "
                f"{', '.join(unknown)}"
            )
        self._signature = manifest.signature
        self._lookups = Lookups(
            tables={t.name: open_table(bundle, t) for t in manifest.tables},
            vocabularies={v.name: open_vocabulary(bundle, v) for v in manifest.vocabularies},
        )
        self._tables = {TABLE_PREFIX + name: table for name, table in self._lookups.tables.items()}
        self._steps = [_step(o) for o in self.program.operators]
        self._raw = _raw_features(self.program)

    @property
    def tables(self) -> Mapping[str, np.ndarray]:
        """The embedding tables by name, mapped from their files."""
        return self._lookups.tables

    def run(self, features: Mapping[str, np.ndarray]) -> FeatureBlocks:
        """Runs every operator and fills the blocks.

        Args:
            features: checked by `serving.validation`: request-scope arrays have one row, candidate-scope
                arrays N.

        Raises:
            InvalidRequestError: what the operators refuse: an id that has no row in its table, text that is
                not a number, a damaged tf.Example.
        """
        values: dict[str, np.ndarray] = {**self._tables, **features}
        candidates = count_candidates(features, self._signature)
        rows: dict[Scope, int] = {"request": 1, "candidate": candidates}
        for step in self._steps:
            self._run(step, values, candidates)
        blocks = {scope: np.empty((n, self.program.width(scope)), np.float32) for scope, n in rows.items()}
        for column in self.program.columns:
            value = values[column.tensor]
            if column.dtype == "int32":
                value = _as_bits(value, column.tensor)
            value = value.reshape(rows[column.scope], -1)
            blocks[column.scope][:, column.offset : column.offset + value.shape[1]] = value
        outputs = {o.output: _for_every_row(values[o.tensor], candidates) for o in self.program.outputs}
        return FeatureBlocks(request=blocks["request"], candidate=blocks["candidate"], outputs=outputs)

    def _run(self, step: _Step, values: dict[str, np.ndarray], candidates: int) -> None:
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
                found = step.run(self._lookups, *operands, **step.attrs)
        except InvalidRequestError as error:
            raw = ", ".join(map(repr, sorted(self._raw[operator.outputs[0]])))
            raise InvalidRequestError(f"feature {raw}: {error}") from error
        if not isinstance(found, tuple):
            found = (found,)
        values.update(zip(operator.outputs, found, strict=True))


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
