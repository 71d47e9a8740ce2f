"""Writes and reads the report, and samples the scores that its plots show."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from converters.errors import ConversionError
from converters.report.page import render
from converters.report.schema import ERROR_EDGES, ConversionReport, ScoreSample
from jaxrank import bundle as files
from jaxrank.certificate import Example

REPORT_JSON = "report.json"
REPORT_HTML = "report.html"
_SAMPLED_SCORES = 400


def write_report(bundle: Path, report: ConversionReport) -> None:
    """Writes `report.json` and `report.html` into the bundle."""
    write_report_file(bundle / REPORT_JSON, report)
    write_report_file(bundle / REPORT_HTML, report)


def write_report_file(path: Path, report: ConversionReport) -> None:
    """Writes one form of the report. Raises `ConversionError` unless the name ends in .html or .json."""
    report = msgspec.structs.replace(report, counts=op_counts(report))
    if check_report_path(path) == ".json":
        files.write_json(path, report)
    else:
        path.write_text(render(report), encoding="utf-8")


def check_report_path(path: Path) -> str:
    """The form that a report's name asks for, ".html" or ".json". Raises `ConversionError` for another."""
    if path.suffix not in (".html", ".json"):
        raise ConversionError(f"{path}: a report is written as .html or .json")
    return path.suffix


def read_report(bundle: Path) -> ConversionReport:
    """Reads a bundle's `report.json`. Raises `ConversionError`."""
    path = bundle / REPORT_JSON
    try:
        return msgspec.json.decode(path.read_bytes(), type=ConversionReport)
    except (OSError, msgspec.DecodeError) as error:
        raise ConversionError(
            f"{path} is not a conversion report: {error}; convert the model again"
        ) from error


def op_counts(report: ConversionReport) -> dict[str, dict[str, int]]:
    """Ops by place and type, the most frequent first."""
    places = {
        place: Counter(o.op for o in report.ops if o.place == place) for place in ("host", "dense", "folded")
    }
    places["unsupported"] = Counter(u.op for u in report.unsupported)
    return {place: dict(sorted(c.items(), key=lambda i: (-i[1], i[0]))) for place, c in places.items()}


def sample_scores(
    examples: Sequence[Example], found: Sequence[Mapping[str, np.ndarray]], *, seed: int = 0
) -> tuple[ScoreSample, ...]:
    """What the plots of a report show, from the examples and the outputs found for them."""
    rng = np.random.default_rng(seed)
    samples = []
    outputs = examples[0].outputs if examples else {}
    for name in sorted(n for n, value in outputs.items() if value.dtype != object):
        pairs = [(e.outputs[name], f[name]) for e, f in zip(examples, found, strict=True)]
        expected = np.concatenate([e.ravel() for e, _ in pairs]).astype(np.float64)
        actual = np.concatenate([a.ravel() for _, a in pairs]).astype(np.float64)
        finite = np.isfinite(expected) & np.isfinite(actual)
        expected, actual = expected[finite], actual[finite]
        errors = np.abs(expected - actual) / np.maximum(np.abs(expected), 1.0)
        wrong = errors[errors > 0]
        bins = np.bincount(np.searchsorted(ERROR_EDGES, wrong, side="right"), minlength=len(ERROR_EDGES) + 1)
        chosen = np.sort(rng.permutation(len(expected))[:_SAMPLED_SCORES])
        samples.append(
            ScoreSample(
                output=name,
                expected=tuple(expected[chosen].tolist()),
                found=tuple(actual[chosen].tolist()),
                exact=len(errors) - len(wrong),
                errors=tuple(bins.tolist()),
            )
        )
    return tuple(samples)
