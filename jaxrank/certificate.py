"""The certificate of equivalence: how far scores are from TensorFlow's, and whether anybody's ranking
changed."""

import itertools
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank import ranking
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


@dataclass(frozen=True)
class Example:
    """One recorded request: raw features, and TensorFlow's outputs for them."""

    features: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)
    """What happened, bool with the shape of the output that predicts it, where that was recorded."""

    @property
    def rows(self) -> int:
        return len(next(iter(self.outputs.values())))


def certify(
    stage: str,
    examples: Sequence[Example],
    found: Sequence[Mapping[str, np.ndarray]],
    tolerance: float = TOLERANCE,
    constants: Container[str] = (),
    *,
    bound: float | None = None,
) -> Certificate:
    """Compares found outputs with the recorded ones, request by request.

    `bound`, infinite for one that another rule replaces, is the largest error where it is not the
    tolerance; it does not let a NaN or an infinity pass that TensorFlow does not give.

    Raises `CertificateError` naming the first output beyond the tolerance; a NaN is beyond every tolerance
    unless TensorFlow gives one in the same place. Examples on which TensorFlow's output never changes are
    refused: they prove nothing.
    """
    groups: dict[tuple[str, int], list[tuple[np.ndarray, np.ndarray]]] = {}
    for example, outputs in zip(examples, found, strict=True):
        for name, expected in example.outputs.items():
            groups.setdefault((name, example.rows), []).append((expected, outputs[name]))
    for name in sorted({name for name, _ in groups if name not in constants}):
        _refuse_constant(name, [e for (n, _), pairs in groups.items() if n == name for e, _ in pairs])
    results, errors = [], []
    for (name, rows), pairs in sorted(groups.items()):
        for expected, actual in pairs:
            if (expected.shape, expected.dtype) != (actual.shape, actual.dtype):
                raise CertificateError(
                    f"{stage}: output {name!r} is {actual.dtype}{list(actual.shape)}, TensorFlow's is "
                    f"{expected.dtype}{list(expected.shape)}; an output needs one row for each candidate"
                )
        pairs = [_as_numbers(e, a) for e, a in pairs]
        errors.append(max(_scaled_error(e, a) for e, a in pairs))
        results.append(_output_certificate(name, rows, pairs, tolerance))
    largest = tolerance if bound is None else bound
    for result, error in zip(results, errors, strict=True):
        if not error <= largest or not np.isfinite(error):
            raise CertificateError(
                f"{stage}: output {result.output!r} differs from TensorFlow's by {error:.2e} on "
                f"{result.rows} candidates; the tolerance is {largest:.0e}{_hint(result.rows, error)}"
            )
    return Certificate(stage=stage, tolerance=tolerance, requests=len(examples), outputs=tuple(results))


def _as_numbers(expected: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is compared: values in double precision; of strings, 1 where they differ from TensorFlow's."""
    if expected.dtype == object:
        return np.zeros(expected.shape), np.asarray(found != expected, np.float64)
    return expected.astype(np.float64), found.astype(np.float64)


def _output_certificate(
    name: str, rows: int, pairs: Sequence[tuple[np.ndarray, np.ndarray]], tolerance: float
) -> OutputCertificate:
    """The worst of all requests and, where an output has several, of all columns; inversions are summed."""
    columns = [column for e, a in pairs for column in _columns(e, a)]
    counted = [ranking.inversions(e, a, tolerance) for e, a in columns]
    inverted, ordered = sum(i for i, _ in counted), sum(o for _, o in counted)
    return OutputCertificate(
        output=name,
        rows=rows,
        max_abs_error=max(_abs_error(e, a) for e, a in pairs),
        max_rel_error=max(_rel_error(e, a) for e, a in pairs),
        spearman=min((ranking.spearman(e, a) for e, a in columns), default=1.0),
        top1_overlap=min((ranking.top_overlap(e, a, 1) for e, a in columns), default=1.0),
        top10_overlap=min((ranking.top_overlap(e, a, 10) for e, a in columns), default=1.0),
        top50_overlap=min((ranking.top_overlap(e, a, 50) for e, a in columns), default=1.0),
        inversions=inverted,
        inversion_share=inverted / ordered if ordered else 0.0,
    )


def _columns(expected: np.ndarray, found: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """`[rows, ...]` as one pair of score lists for each column: each is a ranking of its own."""
    rows = len(expected)
    yield from zip(expected.reshape(rows, -1).T, found.reshape(rows, -1).T, strict=True)


def _refuse_constant(name: str, outputs: Sequence[np.ndarray]) -> None:
    """Rows that are all the same, whatever the request, cannot tell a right model from a wrong one."""
    rows = [row for value in outputs for row in value.reshape(len(value), -1)]
    first = rows[0]
    if len(rows) > 1 and all(r.shape == first.shape and _all_equal(r, first) for r in rows):
        shown = first[0] if first.size == 1 else first
        raise CertificateError(
            f"TensorFlow's output {name!r} is the same, {shown}, on all {len(rows)} example rows, "
            "which proves nothing; "
            "give recorded requests with --examples"
        )


def _all_equal(a: np.ndarray, b: np.ndarray) -> bool:
    return np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def save_examples(bundle: Path, examples: Sequence[Example], name: str = files.EXAMPLES) -> None:
    """Writes examples to `warmup/examples.npz`, or another file of the bundle. An array's name says its
    request, kind and form: `v` for values, `b` and `l` for the joined bytes and the lengths of strings."""
    arrays: dict[str, np.ndarray] = {"count": np.array(len(examples))}
    for i, example in enumerate(examples):
        parts = (("in", example.features), ("out", example.outputs), ("label", example.labels))
        for kind, values in parts:
            for key, value in values.items():
                if value.dtype == object:
                    flat = value.ravel().tolist()
                    arrays[f"{i}/{kind}/b/{key}"] = np.frombuffer(b"".join(flat), np.uint8)
                    lengths = np.array([len(v) for v in flat], np.int64)
                    arrays[f"{i}/{kind}/l/{key}"] = lengths.reshape(value.shape)
                else:
                    arrays[f"{i}/{kind}/v/{key}"] = value
    path = bundle / name
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]


def load_examples(bundle: Path, file: str = files.EXAMPLES, most: int | None = None) -> list[Example]:
    """Reads what `save_examples` wrote, the first `most` of it."""
    return list(itertools.islice(read_examples(bundle, file), most))


def read_examples(bundle: Path, file: str = files.EXAMPLES) -> Iterator[Example]:
    """What `load_examples` gives, each read when it is asked for."""
    with np.load(bundle / file, allow_pickle=False) as stored:
        keys: dict[int, list[str]] = {}
        for key in stored.files:
            if key != "count":
                keys.setdefault(int(key.split("/", 1)[0]), []).append(key)
        for number in range(int(stored["count"])):
            parts: dict[str, dict[str, np.ndarray]] = {"in": {}, "out": {}, "label": {}}
            for key in keys.get(number, ()):
                index, kind, form, name = key.split("/", 3)
                if form == "v":
                    parts[kind][name] = stored[key]
                elif form == "b":
                    lengths = stored[f"{index}/{kind}/l/{name}"]
                    parts[kind][name] = _split_bytes(stored[key].tobytes(), lengths)
            yield Example(features=parts["in"], outputs=parts["out"], labels=parts["label"])


def _split_bytes(text: bytes, lengths: np.ndarray) -> np.ndarray:
    ends = np.cumsum(lengths.ravel())
    out = np.empty(lengths.size, object)
    out[:] = [text[end - size : end] for end, size in zip(ends, lengths.ravel(), strict=True)]
    return out.reshape(lengths.shape)


def _abs_error(expected: np.ndarray, actual: np.ndarray) -> float:
    if not np.array_equal(np.isnan(expected), np.isnan(actual)):
        return float("inf")
    return float(np.max(_differences(expected, actual), initial=0.0))


def _differences(expected: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """Absolute differences where TensorFlow has a number; equal infinities differ by 0."""
    number = ~np.isnan(expected)
    expected, actual = expected[number], actual[number]
    same = expected == actual
    return np.abs(np.subtract(expected, actual, where=~same, out=np.zeros_like(expected)))


def _scaled_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """What the tolerance bounds: the error of each value over its size, or over 1 where it is smaller."""
    if not np.array_equal(np.isnan(expected), np.isnan(actual)):
        return float("inf")
    for infinity in (np.inf, -np.inf):
        if not np.array_equal(expected == infinity, actual == infinity):
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
        "the number of rows as a value)"
    )


def _rel_error(expected: np.ndarray, actual: np.ndarray) -> float:
    if not np.array_equal(np.isnan(expected), np.isnan(actual)):
        return float("inf")
    scale = np.maximum(np.abs(expected[~np.isnan(expected)]), np.finfo(np.float32).tiny)
    differences = _differences(expected, actual)
    # An infinity that is finite elsewhere is infinitely far, not NaN.
    ratios = np.divide(differences, scale, where=np.isfinite(differences), out=differences.copy())
    return float(np.max(ratios, initial=0.0))
