"""The report: complete, self-contained, safe to open whatever a model calls its ops, and equal in both
forms."""

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from converters.errors import ConversionError
from converters.report import (
    ERROR_EDGES,
    REPORT_HTML,
    REPORT_JSON,
    ConversionReport,
    Removed,
    TableUse,
    UnsupportedOp,
    read_report,
    sample_scores,
    write_report,
    write_report_file,
)
from jaxrank import bundle as files
from jaxrank.certificate import Example, certify
from jaxrank.manifest import OpPlacement, Signature, Source, TensorSpec

HOSTILE = "scope/<script>alert('x')</script>&amp;\"$title\""


def _spec(name: str, *shape: int | None) -> TensorSpec:
    return TensorSpec(name=name, dtype="float32", shape=shape, scope="candidate", tensor_name=f"{name}:0")


def _report(*, unsupported: bool = False, certified: bool = True) -> ConversionReport:
    rng = np.random.default_rng(0)
    examples, found = [], []
    for rows in (1, 7, 200, 5000) if certified else ():
        scores = {"y": rng.standard_normal((rows, 2)), "a<b": rng.random(rows)}
        examples.append(Example({"x": np.zeros(rows)}, scores))
        found.append({n: s + rng.choice([0.0, 1e-8, 3e-7], s.shape) for n, s in scores.items()})
    return ConversionReport(
        source=Source(format="saved_model", path=HOSTILE, tensorflow="2", jaxrank="0", created="now"),
        signature=Signature(
            name="serving_default",
            method_name="m",
            inputs=(_spec("x", None, 3), _spec(HOSTILE, None)),
            outputs=(_spec("y", None, 2), _spec("a<b", None)),
        ),
        scope_reasons={"x": "the signature leaves the number of rows open"},
        ops=(
            *(OpPlacement(name=f"mul_{i}", op="Mul", place="dense", reason="after [1]") for i in range(5)),
            OpPlacement(name=HOSTILE, op="GatherV2", place="host", reason="lookup"),
            OpPlacement(name="shape", op="Shape", place="folded", reason="constant"),
        ),
        unsupported=(UnsupportedOp(name="s", op="StringUpper", advice="<b>do</b>"),) if unsupported else (),
        tables=(
            TableUse(
                name="items", kind="embedding", place="host", rows=1 << 21, dim=64, dtype="float32",
                bytes=1 << 29, readers=(HOSTILE,),
            ),
        ),
        removed=Removed(folded=1234, frozen=56, training=7),
        notes=("The model mixes <candidates>.",),
        certificate=certify("flax", examples, found) if certified else None,
        scores=sample_scores(examples, found),
    )  # fmt: skip


class _Page(HTMLParser):
    """Checks that tags nest, and collects attributes and the text of cells."""

    VOID = {"meta", "input", "br", "wbr"}

    def __init__(self, page: str):
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.table = ""
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs
        if tag == "table":
            self.table = dict(attrs)["id"] or ""
            self.rows[self.table] = []
        elif tag == "tr":
            self.rows[self.table].append([])
        elif tag in ("td", "th"):
            self.rows[self.table][-1].append("")
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "td" in self.open or "th" in self.open:
            self.rows[self.table][-1][-1] += data


def _page(report: ConversionReport, directory: Path) -> tuple[str, _Page]:
    write_report(directory, report)
    text = (directory / REPORT_HTML).read_text("utf-8")
    return text, _Page(text)


@pytest.mark.parametrize("unsupported", [False, True])
@pytest.mark.parametrize("certified", [False, True])
def test_page_is_complete_and_safe(tmp_path: Path, unsupported: bool, certified: bool) -> None:
    report = _report(unsupported=unsupported, certified=certified)
    text, page = _page(report, tmp_path)
    assert "<script>alert" not in text and "<b>do</b>" not in text
    ops = page.rows["ops"][1:]
    expected = [[o.place, o.op, o.name, o.reason] for o in report.ops]
    expected += [["unsupported", u.op, u.name, u.advice] for u in report.unsupported]
    assert sorted(ops) == sorted(expected)
    assert page.rows["inputs"][1] == ["x", "float32 [N, 3]", "candidate", report.scope_reasons["x"]]
    assert page.rows["tables"][1] == [
        "items", "embedding float32", "host", "2,097,152", "64", "512.0 MiB", HOSTILE,
    ]  # fmt: skip
    assert "1,234" in text and "56 of them frozen weights; 7 for training" in text
    assert "The model mixes &lt;candidates&gt;." in text
    assert ("certificate" in page.rows) == certified and ("unsupported" in page.rows) == unsupported
    if certified:
        assert [row[:2] for row in page.rows["certificate"][1:]] == [
            [name, rows] for name in ("a<b", "y") for rows in ("1", "7", "200", "5,000")
        ]


def test_page_needs_nothing_but_itself(tmp_path: Path) -> None:
    text, page = _page(_report(), tmp_path)
    assert not {name for name, _ in page.attributes} & {"src", "href", "srcset", "action", "onclick"}
    assert "url(" not in text and "@import" not in text and "http" not in text


def test_plots_are_well_formed_and_inside_their_frame(tmp_path: Path) -> None:
    text, _ = _page(_report(), tmp_path)
    figures = re.findall(r"<svg.*?</svg>", text)
    assert len(figures) == 3 * 2
    for figure in figures:
        for element in ElementTree.fromstring(figure).iter():
            for name in ("x", "x1", "x2", "cx", "y", "y1", "y2", "cy"):
                if name in element.attrib:
                    limit = 320 if "x" in name else 230
                    assert 0 <= float(element.attrib[name]) <= limit
    dots = [len(re.findall(r'class="dot"', figure)) for figure in figures]
    assert dots == [4, 0, 0, 4, 0, 0]
    assert len(re.findall(r'class="point"', figures[1])) == 400


def test_plots_of_single_values(tmp_path: Path) -> None:
    """One exact row: nothing to divide by."""
    examples = [Example({}, {"y": np.array([value])}) for value in (0.0, 5.0)]
    found = [dict(e.outputs) for e in examples]
    import msgspec

    report = msgspec.structs.replace(
        _report(), certificate=certify("flax", examples, found), scores=sample_scores(examples[:1], found[:1])
    )
    text, _ = _page(report, tmp_path)
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", text))


def test_json_is_the_same_report(tmp_path: Path) -> None:
    report = _report(unsupported=True)
    write_report(tmp_path, report)
    read = read_report(tmp_path)
    assert read.counts == {
        "host": {"GatherV2": 1},
        "dense": {"Mul": 5},
        "folded": {"Shape": 1},
        "unsupported": {"StringUpper": 1},
    }
    assert (read.ops, read.certificate, read.scores) == (report.ops, report.certificate, report.scores)


def test_scores_of_all_values_are_counted() -> None:
    rng = np.random.default_rng(1)
    expected = rng.standard_normal(3000) * 10.0 ** rng.integers(-3, 4, 3000)
    errors = rng.choice([0.0, *(e * 1.5 for e in ERROR_EDGES), 1e-10], 3000)
    found = expected + errors * np.maximum(np.abs(expected), 1.0)
    (sample,) = sample_scores([Example({}, {"y": expected})], [{"y": found}])
    wrong = np.abs(found - expected) / np.maximum(np.abs(expected), 1.0)
    assert sample.exact == (wrong == 0).sum()
    counts, _ = np.histogram(wrong[wrong > 0], bins=[0.0, *ERROR_EDGES, np.inf])
    assert sample.errors == tuple(counts)
    assert len(sample.expected) == len(sample.found) == 400
    assert set(zip(sample.expected, sample.found, strict=True)) <= set(
        zip(expected.tolist(), found.tolist(), strict=True)
    )


def test_infinite_scores_are_not_plotted() -> None:
    expected = np.array([np.nan, np.inf, 1.0])
    (sample,) = sample_scores([Example({}, {"y": expected})], [{"y": expected}])
    assert (sample.expected, sample.exact, sum(sample.errors)) == ((1.0,), 1, 0)


def test_names_of_reports(tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="x.txt: a report is written as .html or .json"):
        write_report_file(tmp_path / "x.txt", _report())
    with pytest.raises(ConversionError, match="report.json is not a conversion report"):
        read_report(tmp_path)
    (tmp_path / REPORT_JSON).write_text("{}")
    with pytest.raises(ConversionError, match="is not a conversion report.*convert the model again"):
        read_report(tmp_path)


def test_a_bundle_has_its_report(ranker_bundle: Path) -> None:
    """What the conversion wrote: the same ops and certificate as the manifest, sealed with the bundle."""
    manifest, report = files.verify(ranker_bundle), read_report(ranker_bundle)
    assert {REPORT_HTML, REPORT_JSON} <= manifest.files.keys()
    assert (report.ops, report.certificate) == (manifest.ops, manifest.certificate)
    assert report.signature == manifest.signature
    assert report.scope_reasons.keys() == {t.name for t in manifest.signature.inputs}
    assert {t.name for t in report.tables} == {
        *(t.name for t in manifest.tables),
        *(v.name for v in manifest.vocabularies),
    }
    assert all(t.readers for t in report.tables)
    assert report.removed.folded > 0
    assert {s.output for s in report.scores} == {t.name for t in manifest.signature.outputs}
    _Page((ranker_bundle / REPORT_HTML).read_text("utf-8"))
