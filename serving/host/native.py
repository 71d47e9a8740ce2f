"""Hands a host program to the native executor (`serving/native/host/`), if all of it runs there."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jaxrank.host_program import TABLE_PREFIX, HostOperator, HostProgram
from jaxrank.manifest import Vocabulary
from serving.cores import usable_core_numbers
from serving.errors import InvalidRequestError
from serving.host import letters
from serving.host.lookups import vocabulary_parts
from serving.host.operators import OPERATORS, decode_constant
from serving.host.operators.regular_expressions import rewrite_parts
from serving.host.regex_program import TooLarge, regex_program
from serving.native import _core
from serving.tables import Table

MEMORY_LIMIT = 1 << 30
"""Bytes that one request may take in the executor: a client's shapes must not take the machine's memory."""

_DTYPES = {
    "bool",
    "string",
    "float32",
    "float64",
    *(f"{u}int{n}" for u in ("", "u") for n in (8, 16, 32, 64)),
}
_REPEAT_ROWS = "repeat_rows"
_RESHAPES = {"identity", "reshape", "expand_dims", "squeeze", "ensure_shape"}
_GROWN = "per_row_constant"


class NotNative(Exception):
    """The program runs on the NumPy operators instead; `reasons` say why, one for each operator."""

    def __init__(self, reasons: Sequence[str]):
        super().__init__("; ".join(reasons))
        self.reasons = tuple(reasons)


class NativeProgram:
    """A host program compiled for the native executor. Thread-safe; runs without Python's lock."""

    def __init__(
        self,
        program: HostProgram,
        features: Mapping[str, str | None],
        raw: Mapping[str, set[str]],
        tables: Mapping[str, Table],
        vocabularies: Mapping[str, Any],
        *,
        memory_limit: int = MEMORY_LIMIT,
    ):
        """Args:
            features: dtype of each raw feature by name; None for what another program makes.
            raw: the raw features that each tensor is made of, for messages.
            tables: by name; they are read where they are.
            vocabularies: `vocabulary_parts` by name.

        Raises `NotNative`.
        """
        reasons = [f"feature {n!r} is {d}" for n, d in features.items() if d not in (None, *_DTYPES)]
        steps, constants = [], {}
        for operator in program.operators:
            try:
                steps.extend(_steps(operator, raw, constants))
            except _Unsupported as error:
                reasons.append(f"{operator.op}: {error}")
        if reasons:
            raise NotNative(list(dict.fromkeys(reasons)))
        read = {i for o in program.operators for i in o.inputs}
        constants |= {TABLE_PREFIX + n: t.array for n, t in tables.items() if TABLE_PREFIX + n in read}
        used = {o.attrs.get(key) for o in program.operators for key in ("table", "vocabulary")}
        columns = [
            (c.tensor, _names(raw.get(c.tensor, {c.tensor})), c.scope == "candidate", c.offset,
             int(np.prod(c.shape)), c.dtype == "int32")
            for c in program.columns
        ]  # fmt: skip
        self._widths = program.width("request"), program.width("candidate")
        try:
            self._program = _core.HostProgram(
                features=list(features),
                constants=constants,
                steps=steps,
                columns=columns,
                outputs=[o.tensor for o in program.outputs],
                request_width=self._widths[0],
                candidate_width=self._widths[1],
                tables={n: (t.native, _dtype(program, n, t)) for n, t in tables.items() if n in used},
                vocabularies={n: v for n, v in vocabularies.items() if n in used},
                pool=_core.shared_pool(usable_core_numbers()),
                memory_limit=memory_limit,
            )
        except _core.Unsupported as error:
            raise NotNative([str(error)]) from error

    def with_tables(self, tables: Mapping[str, Table]) -> "NativeProgram":
        """The same program with other states of its tables, for requests that begin from now on."""
        made = copy.copy(self)
        made._program = self._program.with_tables({n: t.native for n, t in tables.items()})
        return made

    @property
    def groups(self) -> int:
        """Parts of the program that do not depend on each other: what threads share."""
        return self._program.groups

    @property
    def shared_runs(self) -> int:
        """Runs whose groups were offered to other threads."""
        return self._program.shared_runs

    def run(
        self, features: Mapping[str, np.ndarray], candidates: int
    ) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Both feature blocks and the program's outputs. Features must not change while it runs.

        Raises `InvalidRequestError`.
        """
        try:
            blocks, outputs = self._program.run(
                features if isinstance(features, dict) else dict(features), candidates
            )
        except _core.Refusal as error:
            raise InvalidRequestError(str(error)) from error
        request, candidate = self._widths
        return (
            np.frombuffer(blocks, np.float32, request).reshape(1, request),
            np.frombuffer(blocks, np.float32, candidates * candidate, self._program.candidate_offset).reshape(
                candidates, candidate
            ),
            [_array(o) for o in outputs],
        )


class _Unsupported(Exception):
    pass


def _dtype(program: HostProgram, name: str, table: Table) -> str:
    """Of the values that lookups in a table give. The executor has no float16, but a row that only goes to
    the float32 block is the same decoded."""
    if table.dtype != np.float16:
        return str(table.dtype)
    lookups = [o for o in program.operators if o.attrs.get("table") == name]
    plain = all(o.op == "embedding_lookup" and o.attrs.get("max_norm") is None for o in lookups)
    to_columns = plain and all(_only_columns_read(program, o.outputs[0]) for o in lookups)
    return "float32" if to_columns else "float16"


def _only_columns_read(program: HostProgram, tensor: str) -> bool:
    readers = [o for o in program.operators if tensor in o.inputs]
    return tensor not in {o.tensor for o in program.outputs} and all(
        o.op in _RESHAPES and _only_columns_read(program, o.outputs[0]) for o in readers
    )


def _names(features: set[str]) -> str:
    return ", ".join(map(repr, sorted(features)))


def _array(found: np.ndarray | tuple[list[bytes], list[int]]) -> np.ndarray:
    if isinstance(found, np.ndarray):
        return found
    texts, shape = found
    out = np.empty(len(texts), object)
    out[:] = texts
    return out.reshape(shape)


def _steps(
    operator: HostOperator, raw: Mapping[str, set[str]], constants: dict[str, np.ndarray]
) -> list[tuple[str, str, list[str], list[str], dict[str, Any]]]:
    """The operator as the executor takes it: constants by names among its inputs, attributes with their
    defaults."""
    operator = _with_static_pattern(operator)
    if operator.op not in _core.host_operators():
        raise _Unsupported("there is no native operator of this name")
    feature = _names(raw[operator.outputs[0]]) if operator.outputs else ""
    inputs, steps = list(operator.inputs), []
    for position, constant in sorted(operator.constants.items(), key=lambda item: int(item[0])):
        name = f"constant:{operator.outputs[0]}:{position}"
        constants[name] = decode_constant(constant)
        if "per_row" in constant:
            growth = np.array(constant["per_row"], constants[name].dtype).reshape(constants[name].shape)
            constants[f"{name}:growth"] = growth
            steps.append((_GROWN, feature, [name, f"{name}:growth"], [f"{name}:grown"], {}))
            name = f"{name}:grown"
        inputs.insert(int(position), name)
    steps.append((operator.op, feature, inputs, list(operator.outputs), _attributes(operator)))
    return steps


def _with_static_pattern(operator: HostOperator) -> HostOperator:
    """A regular expression that is a constant input as an attribute."""
    names = {"regex_replace": ("pattern", "rewrite"), "regex_full_match": ("pattern",)}.get(operator.op)
    if names is None:
        return operator
    if operator.constants.keys() != {str(i + 1) for i in range(len(names))}:
        raise _Unsupported("a pattern that is no constant")
    values = [decode_constant(operator.constants[str(i + 1)]) for i in range(len(names))]
    if any(value.shape for value in values):
        raise _Unsupported("a pattern that is no scalar")
    texts = {n: v.item().decode("utf-8", "surrogateescape") for n, v in zip(names, values, strict=True)}
    return msgspec.structs.replace(
        operator, op=f"static_{operator.op}", attrs={**operator.attrs, **texts}, constants={}
    )


def _attributes(operator: HostOperator) -> dict[str, Any]:
    if operator.op == _REPEAT_ROWS:
        return {}
    parameters = inspect.signature(OPERATORS[operator.op]).parameters.values()
    attrs = {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    attrs |= operator.attrs
    if operator.op == "vocabulary_lookup":
        override = attrs.pop("override")
        attrs["override_key"] = decode_constant(override["key"])[()] if override else None
        attrs["override_value"] = override["value"] if override else None
        if isinstance(attrs["override_key"], np.generic):
            attrs["override_key"] = attrs["override_key"].item()
    if operator.op in ("static_regex_replace", "static_regex_full_match"):
        attrs |= _regex(attrs)
    if operator.op in ("string_lower", "string_upper") and attrs["encoding"]:
        if attrs["encoding"].lower() != "utf-8":
            raise _Unsupported(f"encoding {attrs['encoding']!r}")
        attrs |= letters.lower_case() if operator.op == "string_lower" else letters.upper_case()
    return attrs


def _regex(attrs: Mapping[str, Any]) -> dict[str, Any]:
    try:
        program = regex_program(attrs["pattern"])
        if "rewrite" in attrs:
            rewrite = attrs["rewrite"].encode("utf-8", "surrogateescape")
            program["parts"] = list(rewrite_parts(rewrite, program["groups"]))
    except (InvalidRequestError, TooLarge) as error:
        raise _Unsupported(str(error)) from error
    return program


def open_native(
    bundle: Path,
    program: HostProgram,
    features: Mapping[str, str | None],
    raw: Mapping[str, set[str]],
    tables: Mapping[str, Table],
    vocabularies: Sequence[Vocabulary],
) -> NativeProgram:
    """The bundle's program for the executor. Raises `NotNative`."""
    return NativeProgram(
        program, features, raw, tables, {v.name: vocabulary_parts(bundle, v) for v in vocabularies}
    )
