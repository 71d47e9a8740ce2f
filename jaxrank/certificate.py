"""The certificate of equivalence: how far scores are from TensorFlow's, and whether anybody's ranking
changed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.errors import JaxrankError
from jaxrank.manifest import Certificate, OutputCertificate

TOLERANCE = 1e-5
"""Largest error of an output: absolute for values up to 1, relative to the value beyond. Float32 carries 24
bits: sums of a few thousand products in another order differ by a few times 1e-7 of their size; 1e-5 leaves
room for deep models and is far below what reorders a ranking."""

GROUP_ROWS = (1, 7, 200)
"""Candidates per example request: one row, an odd few, and a page of results; a model that mixes rows fails
one of them."""


class CertificateError(JaxrankError):
    """Scores differ from TensorFlow's by more than the tolerance."""

    exit_code = 2


@dataclass(frozen=True)
class Example:
    """One recorded request: raw features, and TensorFlow's outputs for them."""

    features: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]

    @property
    def rows(self) -> int:
        return len(next(iter(self.outputs.values())))


def certify(
    stage: str,
    examples: Sequence[Example],
    found: Sequence[Mapping[str, np.ndarray]],
    tolerance: float = TOLERANCE,
) -> Certificate:
    """Compares found outputs with the recorded ones, request by request.

    Raises `CertificateError` naming the first output beyond the tolerance; a NaN is beyond every tolerance
    unless TensorFlow gives one in the same place. Examples on which TensorFlow's output never changes are
    refused: they prove nothing.
    """
    groups: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for example, outputs in zip(examples, found, strict=True):
        for name, expected in example.outputs.items():
            groups.setdefault((name, example.rows), []).append((expected, outputs[name]))
    for name in {name for name, _ in groups}:
        seen = np.concatenate([e.ravel() for (n, _), pairs in groups.items() if n == name for e, _ in pairs])
        if seen.size > 1 and (seen == seen[0]).all():
            raise CertificateError(
                f"TensorFlow's output {name!r} is the same, {seen[0]}, on all {seen.size} example rows, "
                "which proves nothing; "
                "give recorded requests with --examples"
            )
    results, errors = [], []
    for (name, rows), pairs in sorted(groups.items()):
        for expected, actual in pairs:
            if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
                raise CertificateError(
                    f"{stage}: output {name!r} is {actual.dtype}{list(actual.shape)}, TensorFlow's is "
                    f"{expected.dtype}{list(expected.shape)}; an output needs one row for each candidate"
                )
        pairs = [(e.astype(np.float64), a.astype(np.float64)) for e, a in pairs]
        errors.append(max(_scaled_error(e, a) for e, a in pairs))
        results.append(
            OutputCertificate(
                output=name,
                rows=rows,
                max_abs_error=max(_abs_error(e, a) for e, a in pairs),
                max_rel_error=max(_rel_error(e, a) for e, a in pairs),
                spearman=min(_spearman(e, a) for e, a in pairs),
                top10_overlap=min(_top_overlap(e, a, 10) for e, a in pairs),
            )
        )
    for result, error in zip(results, errors, strict=True):
        if not error <= tolerance:
            raise CertificateError(
                f"{stage}: output {result.output!r} differs from TensorFlow's by {error:.2e} on "
                f"{result.rows} candidates; the tolerance is {tolerance:.0e}{_hint(result.rows, error)}"
            )
    return Certificate(stage=stage, tolerance=tolerance, requests=len(examples), outputs=tuple(results))


def save_examples(bundle: Path, examples: Sequence[Example]) -> None:
    """Writes examples to `warmup/examples.npz`. An array's name says its request, kind and form: `v` for
    values, `b` and `l` for the joined bytes and the lengths of strings."""
    arrays: dict[str, np.ndarray] = {"count": np.array(len(examples))}
    for i, example in enumerate(examples):
        for kind, values in (("in", example.features), ("out", example.outputs)):
            for name, value in values.items():
                if value.dtype == object:
                    flat = value.ravel().tolist()
                    arrays[f"{i}/{kind}/b/{name}"] = np.frombuffer(b"".join(flat), np.uint8)
                    lengths = np.array([len(v) for v in flat], np.int64)
                    arrays[f"{i}/{kind}/l/{name}"] = lengths.reshape(value.shape)
                else:
                    arrays[f"{i}/{kind}/v/{name}"] = value
    path = bundle / files.EXAMPLES
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]


def load_examples(bundle: Path) -> list[Example]:
    """Reads what `save_examples` wrote."""
    with np.load(bundle / files.EXAMPLES, allow_pickle=False) as stored:
        parts: list[dict[str, dict[str, np.ndarray]]] = [
            {"in": {}, "out": {}} for _ in range(int(stored["count"]))
        ]
        for key in stored.files:
            if key == "count":
                continue
            index, kind, form, name = key.split("/", 3)
            value = stored[key]
            if form == "l":
                continue
            if form == "b":
                value = _split_bytes(value.tobytes(), stored[f"{index}/{kind}/l/{name}"])
            parts[int(index)][kind][name] = value
    return [Example(features=p["in"], outputs=p["out"]) for p in parts]


def _split_bytes(text: bytes, lengths: np.ndarray) -> np.ndarray:
    ends = np.cumsum(lengths.ravel())
    out = np.empty(lengths.size, object)
    out[:] = [text[end - size : end] for end, size in zip(ends, lengths.ravel(), strict=True)]
    return out.reshape(lengths.shape)


def _abs_error(expected: np.ndarray, actual: np.ndarray) -> float:
    if not np.array_equal(np.isnan(expected), np.isnan(actual)):
        return float("inf")
    return float(np.nanmax(np.abs(expected - actual), initial=0.0))


def _scaled_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """What the tolerance bounds: the error of each value over its size, or over 1 where it is smaller."""
    if not np.array_equal(np.isnan(expected), np.isnan(actual)):
        return float("inf")
    if not np.array_equal(np.isinf(expected) * np.sign(expected), np.isinf(actual) * np.sign(actual)):
        return float("inf")
    finite = np.isfinite(expected)
    expected, actual = expected[finite], actual[finite]
    return float(np.max(np.abs(expected - actual) / np.maximum(np.abs(expected), 1.0), initial=0.0))


def _hint(rows: int, error: float) -> str:
    if error < 1e-3:
        return "; scores that small a distance apart may be this model's rounding (--tolerance)"
    if rows == 1:
        return ""
    return (
        ". If a single candidate was within it, the model may mix candidates (a softmax or a rank over them, "
        "the number of rows as a value), which is not supported yet"
    )


def _rel_error(expected: np.ndarray, actual: np.ndarray) -> float:
    scale = np.maximum(np.abs(expected), np.finfo(np.float32).tiny)
    return float(np.nanmax(np.abs(expected - actual) / scale, initial=0.0))


def _spearman(expected: np.ndarray, actual: np.ndarray) -> float:
    """Rank correlation over all values; ties share their mean rank."""
    if expected.size < 2:
        return 1.0
    a, b = _ranks(expected.ravel()), _ranks(actual.ravel())
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 1.0 if np.ptp(a) == np.ptp(b) else 0.0
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return ((ends - counts + ends - 1) / 2)[inverse]


def _top_overlap(expected: np.ndarray, actual: np.ndarray, k: int) -> float:
    """Share of the expected top k found in the actual top k; rows that tie with the k-th expected score count
    as found."""
    if expected.ndim != 1:
        return _top_overlap(
            expected.reshape(len(expected), -1)[:, 0], actual.reshape(len(actual), -1)[:, 0], k
        )
    k = min(k, len(expected))
    top = np.argsort(-actual, kind="stable")[:k]
    kth = np.sort(expected)[::-1][k - 1]
    return float(np.mean(expected[top] >= kth))
