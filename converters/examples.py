"""Example requests for a certificate: recorded ones from a file, or random ones that fit the signature."""

from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from jaxrank.certificate import GROUP_ROWS
from jaxrank.host_program import HostProgram
from jaxrank.manifest import Manifest, Signature, TensorSpec
from serving.host.lookups import read_keys

_SEED = 20240501


def read_examples(path: Path, signature: Signature) -> list[dict[str, np.ndarray]]:
    """Reads requests from an `.npz` with arrays `<request>/<feature>`, `<request>` counting from 0.

    Strings are NumPy byte strings (`S`), which must not end in a zero byte. Raises `ConversionError` for a
    file that does not fit the signature.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except (OSError, ValueError) as error:
        raise ConversionError(f"{path} is not an .npz of example requests: {error}") from error
    requests: dict[str, dict[str, np.ndarray]] = {}
    for key, value in arrays.items():
        request, _, feature = key.partition("/")
        requests.setdefault(request, {})[feature] = value
    expected = {t.name: t for t in signature.inputs}
    for request, features in requests.items():
        if features.keys() != expected.keys():
            odd = ", ".join(sorted(features.keys() ^ expected.keys()))
            raise ConversionError(f"{path}: request {request} and the signature disagree on: {odd}")
        for name, spec in expected.items():
            features[name] = _fitting(features[name], spec, f"{path}: request {request}")
        _check_rows(features, signature, f"{path}: request {request}")
    if not requests:
        raise ConversionError(f"{path} has no requests; write arrays named <request>/<feature>")
    return [requests[key] for key in sorted(requests, key=lambda k: (len(k), k))]


def _check_rows(features: dict[str, np.ndarray], signature: Signature, where: str) -> None:
    rows = {t.name: len(features[t.name]) for t in signature.inputs if t.scope == "candidate"}
    if len(set(rows.values())) > 1 or 0 in rows.values():
        counts = ", ".join(f"{name} {count}" for name, count in rows.items())
        raise ConversionError(
            f"{where}: every candidate input needs the same number of rows, at least one, but they have: "
            f"{counts}; "
            "inputs with one row for the whole request are named with --request-inputs"
        )
    for t in signature.inputs:
        if t.scope == "request" and len(features[t.name]) != 1:
            raise ConversionError(
                f"{where}: {t.name} has {len(features[t.name])} rows, but it is the same for all "
                "candidates: give one"
            )


def _fitting(value: np.ndarray, spec: TensorSpec, where: str) -> np.ndarray:
    if spec.dtype == "string":
        if value.dtype.kind != "S":
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


def draw(
    signature: Signature, program: HostProgram, bundle: Path, manifest: Manifest
) -> list[dict[str, np.ndarray]]:
    """Random requests of 1, 7 and 200 candidates, and of as many as the bundle takes.

    Features that feed a vocabulary are drawn from its keys with one in eight unknown or empty; ids that feed
    a table directly stay inside of it; numbers are normal around 0.
    """
    rng = np.random.default_rng(_SEED)
    keys = {v.name: read_keys(bundle, v) for v in manifest.vocabularies}
    rows_of = {t.name: t.rows for t in manifest.tables}
    values: dict[str, np.ndarray] = {}
    limits: dict[str, int] = {}
    for operator in program.operators:
        for name in operator.inputs:
            if operator.op == "vocabulary_lookup":
                values[name] = keys[operator.attrs["vocabulary"]]
            elif operator.op == "embedding_lookup":
                limits[name] = min(limits.get(name, 1 << 62), rows_of[operator.attrs["table"]])

    def feature(spec: TensorSpec, rows: int) -> np.ndarray:
        shape = (rows, *(d or 1 for d in spec.shape[1:]))
        if spec.dtype == "string":
            pool = values.get(
                spec.name, np.array([b"a", b"7", b"\xc3\xa9t\xc3\xa9", b"some longer text"], object)
            )
            odd = np.array([b"", b"unknown \xe2\x98\x83"], object)
            return np.where(rng.random(shape) < 0.875, rng.choice(pool, shape), rng.choice(odd, shape))
        if np.dtype(spec.dtype).kind in "iu":
            if spec.name in values and len(values[spec.name]):
                known = rng.choice(values[spec.name], shape)
                return np.where(rng.random(shape) < 0.875, known, rng.integers(0, 1 << 20, shape)).astype(
                    spec.dtype
                )
            return rng.integers(0, limits.get(spec.name, 100), shape).astype(spec.dtype)
        if spec.dtype == "bool":
            return rng.random(shape) < 0.5
        return rng.standard_normal(shape).astype(spec.dtype)

    return [
        {t.name: feature(t, 1 if t.scope == "request" else rows) for t in signature.inputs}
        for rows in (*GROUP_ROWS, manifest.max_candidates)
        for _ in range(2)
    ]
