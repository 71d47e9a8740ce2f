"""Requests against the signature: dtypes, shapes, and one number of rows."""

from collections.abc import Iterable, Mapping

import numpy as np

from converters.errors import ConversionError
from converters.examples.composites import (
    check_parts,
    composites,
    first_row,
    repeat_parts,
    rows_of,
    rows_of_parts,
)
from jaxrank.manifest import Signature, TensorSpec


def fit(features: Mapping[str, np.ndarray], signature: Signature, where: str) -> dict[str, np.ndarray]:
    """One request as the bundle takes it; strings become object arrays of bytes.

    A request-scope input recorded with the same row for every candidate becomes one row, where the signature
    leaves its rows open. Raises `ConversionError`, each message beginning with `where`.
    """
    check_names(features, signature, where)
    fitting = {t.name: _fitting(features[t.name], t, where) for t in signature.inputs}
    for feature, parts in composites(signature.inputs).items():
        check_parts(feature, parts, fitting, where)
        rows = rows_of_parts(parts, fitting)
        if parts[0].scope == "request" and rows > 1:
            first = first_row(parts, fitting)
            again = repeat_parts(parts, first, rows)
            if not all(_equal(fitting[name], value) for name, value in again.items()):
                raise _rows_differ(feature, rows, where)
            fitting.update(first)
    for t in signature.inputs:
        if t.part == "rows" and t.scope == "request" and t.shape[0] is None and len(fitting[t.name]):
            fitting[t.name] = _one_row(fitting[t.name], t.name, where)
    _check_rows(fitting, signature, where)
    return fitting


def check_names(names: Iterable[str], signature: Signature, where: str) -> None:
    """Raises `ConversionError` naming inputs that are missing and names that are no inputs."""
    odd = set(names) ^ {t.name for t in signature.inputs}
    if odd:
        raise ConversionError(f"{where} and the signature disagree on: {', '.join(sorted(odd))}")


def _fitting(value: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    if spec.dtype == "string":
        if value.dtype.kind not in "SO":
            raise ConversionError(f"{where}: {spec.name} is {value.dtype}, byte strings (dtype S) are needed")
        value = value.astype(object)
    elif value.dtype != np.dtype(spec.dtype):
        raise ConversionError(f"{where}: {spec.name} is {value.dtype}, the signature says {spec.dtype}")
    if len(value.shape) != len(spec.shape) or any(
        want not in (None, got) for got, want in zip(value.shape[1:], spec.shape[1:], strict=True)
    ):
        raise ConversionError(
            f"{where}: {spec.name} has shape {value.shape}, the signature says {list(spec.shape)}"
        )
    return value


def _one_row(value: np.ndarray, name: str, where: str) -> np.ndarray:
    first = value[:1]
    if not _equal(value, np.broadcast_to(first, value.shape)):
        raise _rows_differ(name, len(value), where)
    return first


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _rows_differ(name: str, rows: int, where: str) -> ConversionError:
    return ConversionError(
        f"{where}: {name} is request-scope, but its {rows} rows differ; if it has one row per candidate, "
        "change --request-inputs"
    )


def _check_rows(features: dict[str, np.ndarray], signature: Signature, where: str) -> None:
    rows = rows_of(signature, features)
    scopes = {t.feature or t.name: t.scope for t in signature.inputs}
    candidates = {name: count for name, count in rows.items() if scopes[name] == "candidate"}
    if len(set(candidates.values())) > 1 or 0 in candidates.values():
        counts = ", ".join(f"{name} {count}" for name, count in candidates.items())
        raise ConversionError(
            f"{where}: every candidate input needs the same number of rows, at least one, but they have: "
            f"{counts}; "
            "inputs with one row for the whole request are named with --request-inputs"
        )
    for name, count in rows.items():
        if scopes[name] == "request" and count != 1:
            raise ConversionError(
                f"{where}: {name} has {count} rows, but it is the same for all candidates: give one"
            )
