"""Reports of results files: what they say of them, and that a browser shows it."""

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from bench.report import document, html, markdown, prices
from bench.report.blocks import Chart, Listing, Section, Table
from bench.results import Figure, NotMeasured, Results, ResultsError, read_all, write_results
from tests.command_line import jaxrank

ROOT = Path(__file__).parents[2]
COMMITTED = ROOT / "bench/results"
PRICES = prices.Prices("USD", [prices.Machine("small", 0.36, cores=2), prices.Machine("big", 1.44, cores=8)])


def _figure(name: str, value: float, unit: str, lo: float | None = None, hi: float | None = None) -> Figure:
    return Figure(name=name, value=value, unit=unit, lo=lo, hi=hi)


DENSE = [
    *(_figure(f"din/{engine}/{rows}", ms * rows, "ms", 0.9 * ms * rows, 1.1 * ms * rows)
      for rows in (1, 200, 5000)
      for engine, ms in (("jaxrank", 0.1), ("tensorflow", 0.4), ("openvino", 0.3))),
    _figure("dlrm/jaxrank/200", 10.0, "ms"),
    _figure("dlrm/onnxruntime/200", 5.0, "ms"),
    _figure("ple/jaxrank/200", 10.0, "ms"),
    _figure("ple/jax/200", 10.1, "ms"),
    _figure("bst/jaxrank/200", 10.0, "ms"),
    _figure("bst/jax/200", 13.0, "ms"),
    _figure("bst/speedup_vs_best_other/200", 1.3, "ratio", 0.9, 1.8),
    _figure("din/mflop_per_candidate", 1.8, "MFLOP"),
    _figure("din/request_mflop", 2.0, "MFLOP"),
    _figure("din/source_mflop_per_candidate", 4.7, "MFLOP"),
    _figure("max_abs_error", 3e-7, "score"),
]  # fmt: skip
SERVE = [
    _figure("slo_ms", 100.0, "ms"),
    _figure("din/throughput/jaxrank", 200.0, "1/s"),
    _figure("din/throughput/tensorflow", 50.0, "1/s"),
    _figure("mmoe/throughput/jaxrank", 0.0, "1/s"),
    _figure("mmoe/throughput/tensorflow", 40.0, "1/s"),
    *(_figure(f"din/p99/{server}/{rate}", 9.0 + rate / 10, "ms", 5.0)
      for server in ("jaxrank", "tensorflow") for rate in (50.0, 100.0)),
    *(_figure(f"mmoe/goodput/{kind}/{multiple:g}", 90.0, "1/s")
      for kind in ("plain", "degraded") for multiple in (0.7, 2.0)),
    _figure("host_us_per_request", 60.0, "us"),
    _figure("dense_us_per_request", 900.0, "us"),
    _figure("overhead_us_per_request", 240.0, "us"),
    _figure("copies_per_byte", 1.0, "copies"),
]  # fmt: skip
SPARSE = [
    _figure("speedup_vs_tf_lookup", 4.3, "ratio"),
    _figure("roofline_fraction_min", 0.35, "ratio"),
    _figure("roofline_fraction_uniform_8", 0.9, "ratio"),
    _figure("ns_per_row_1000_rows", 4.0, "ns"),
    _figure("ns_per_row_10000_rows", 5.0, "ns"),
]
ALL_CHARTS = {
    "cost", "cost_ratios", "flops", "load", "throughput", "overload", "phases", "rivals", "roofline",
    "growth",
}  # fmt: skip


def _results(suite: str, figures: Sequence[Figure], missing: Sequence[NotMeasured] = ()) -> Results:
    return Results(
        suite=suite, command=f"python -m bench {suite}", commit="abc", date="2026-11-29T00:00:00+00:00",
        machine={"cpu": "a CPU", "cores": 2}, versions={"numpy": "2.4"}, figures=list(figures),
        not_measured=list(missing),
    )  # fmt: skip


def _document(**figures: Sequence[Figure]) -> document.Document:
    return document.document({suite: _results(suite, found) for suite, found in figures.items()}, PRICES)


def _section(made: document.Document, title: str) -> Section:
    return next(s for s in made.sections if s.title == title)


def _texts(section: Section) -> str:
    listed = [i for b in section.blocks if isinstance(b, Listing) for i in b.items]
    return "\n".join([*listed, *(b for b in section.blocks if isinstance(b, str))])


def test_who_wins_and_where_we_lose() -> None:
    unsure = [
        _figure("ple/throughput/jaxrank", 50.0, "1/s"),
        _figure("ple/throughput/tensorflow", 60.0, "1/s"),
        _figure("ple/throughput_vs_tensorflow", 0.85, "ratio", 0.6, 1.1),
    ]
    made = _document(dense=DENSE, serve=[*SERVE, *unsure], sparse=SPARSE)
    wins, level, losses = (b.items for b in _section(made, "Who wins where").blocks if isinstance(b, Listing))
    assert list(wins) == [
        "Serving din, requests/s with p99 within 100 ms: jaxrank 200, tensorflow 50: 4.00 times as many.",
        "Dense half of din, 1, 200 and 5,000 candidates: 3.00 times as fast as the next engine.",
        "Beside TensorFlow's embedding_lookup_sparse: 4.30 times as fast.",
    ]
    assert list(level) == [
        "Serving ple, requests/s with p99 within 100 ms: jaxrank 50, tensorflow 60.",
        "Dense half of ple, 200 candidates (jax).",
        "Dense half of bst, 200 candidates (jax).",
    ]
    assert list(losses) == [
        "Serving mmoe, requests/s with p99 within 100 ms: jaxrank 0, tensorflow 40; "
        "jaxrank did not keep the promise in every round.",
        "Dense half of dlrm, 200 candidates (onnxruntime, 2.00 times as fast).",
        "Lookups reach 0.35 of the plainest C++ loop where they reach least.",
    ]


def test_where_jaxrank_has_no_figure_it_loses() -> None:
    """Refused or failing, for a size, an engine or a model; that is told first."""
    missing = [
        NotMeasured(name="dlrm/jaxrank/1000", why="refused: its scores differ"),
        NotMeasured(name="ple/jaxrank", why="no module for this CPU"),
        NotMeasured(name="bst", why="no memory"),
        NotMeasured(name="dlrm/openvino/1000", why="no kernel"),
        NotMeasured(name="dynamic_over_static", why="nothing"),
    ]
    made = document.document({"dense": _results("dense", DENSE, missing)}, PRICES)
    losses = [b.items for b in _section(made, "Who wins where").blocks if isinstance(b, Listing)][-1]
    assert list(losses)[:3] == [
        "Dense half of dlrm, 1,000 candidates: jaxrank has no figure: refused: its scores differ",
        "Dense half of ple, all sizes: jaxrank has no figure: no module for this CPU",
        "Dense half of bst: its measurement failed: no memory",
    ]
    assert not any("openvino" in text or "dynamic_over" in text for text in losses)


def test_what_a_million_requests_cost() -> None:
    """0.36 an hour is 0.0001 a second: 200 requests/s make a million in 5,000 s."""
    blocks = _section(_document(serve=SERVE), "Cost of a million requests").blocks
    (table,) = (b for b in blocks if isinstance(b, Table))
    assert table.columns[:5] == ["machine", "USD an hour", "model", "jaxrank, USD", "tensorflow, USD"]
    assert [list(row[:5]) for row in table.rows] == [
        ["small", "0.36", "din", "0.500", "2"],
        ["small", "0.36", "mmoe", "-", "2.50"],
        ["big", "1.44", "din", "0.500", "2"],
        ["big", "1.44", "mmoe", "-", "2.50"],
    ]
    assert [row[-1] for row in table.rows[1:3]] == ["measured", "2 cores measured, taken to grow with cores"]


def test_machines_that_were_measured_there_or_not_at_all(tmp_path: Path) -> None:
    for name, slo in (("gpu", 100.0), ("slow", 300.0)):
        figures = [_figure("slo_ms", slo, "ms"), _figure("din/throughput/jaxrank", 1000.0, "1/s")]
        write_results(tmp_path / name / "serve.json", "serve", "c", figures)
    file = tmp_path / "prices.toml"
    machine = '[[machine]]\nname = "{}"\nprice_per_hour = 3.6\n'
    with_results = machine + 'results = "{}"\n'
    file.write_text(
        'currency = "EUR"\n' + with_results.format("a GPU", "gpu") + machine.format("B")
        + with_results.format("C", "slow") + with_results.format("D", "absent")
    )  # fmt: skip
    blocks = prices.cost_blocks(_results("serve", SERVE), prices.read_prices(file))
    (table,) = (b for b in blocks if isinstance(b, Table))
    assert [list(row) for row in table.rows] == [
        ["a GPU", "3.6", "din", "1", "-", "1,000", "-", "measured there"]
    ]
    assert isinstance(blocks[-1], str)
    assert blocks[-1].startswith(
        "Not measured: B (run `jaxrank bench serve` there, and name its directory as `results`); "
        "C (slow promises p99 within 300 ms, these results p99 within 100 ms: measure it there with "
        "`--slo-ms 100`); D ("
    )
    assert f"{tmp_path / 'absent'}" in blocks[-1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("currency = 3", "is not a table of prices", id="type"),
        pytest.param('currency = "USD"\n[[machine]]\nname = "a"', "price_per_hour", id="no price"),
        pytest.param('currency = "USD"\n[[machine]]\nname = "a"\nprice_per_hour = 0', "above 0", id="free"),
        pytest.param(
            'currency = "USD"\n[[machine]]\nname = "a"\nprice_per_hour = 1\ncores = 2\nresults = "."',
            "give one of them",
            id="both",
        ),
    ],
)
def test_prices_that_cannot_be_read(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "prices.toml"
    file.write_text(text)
    with pytest.raises(ResultsError, match=message):
        prices.read_prices(file)


def test_what_is_not_there_is_told() -> None:
    """A section of a suite that was not run, and everything under "Not measured"."""
    refused = NotMeasured(name="din/openvino", why="openvino is not installed")
    made = document.document({"dense": _results("dense", DENSE, [refused])}, PRICES)
    assert made.missing == [s for s in document.EXPECTED if s != "dense"]
    for title in ("Latency against load", "Throughput within the promise", "Cost of a million requests"):
        assert _texts(_section(made, title)).startswith("Not measured: there are no results of `serve`")
    told = _texts(_section(made, "Not measured"))
    assert "dense, din/openvino: openvino is not installed" in told
    assert "`jaxrank bench sparse` measures them" in told and "`python -m bench tiers` measures them" in told


def test_a_run_without_points_has_sentences_for_charts() -> None:
    made = _document(serve=SERVE[:1], dense=DENSE[-1:], sparse=[_figure("kills_survived", 3, "kills")])
    assert not [b for section in made.sections for b in section.blocks if isinstance(b, Chart)]
    assert "nothing to draw" in _texts(_section(made, "Latency against load"))
    assert "No throughput was measured" in _texts(_section(made, "Cost of a million requests"))
    html.page(made)


def test_results_without_figures_are_no_report(tmp_path: Path) -> None:
    """The reasons why there are none are said instead."""
    missing = [NotMeasured(name="dense", why="TensorFlow is not installed")]
    write_results(tmp_path / "dense.json", "dense", "c", [], missing)
    done = jaxrank("bench", "report", tmp_path)
    assert done.returncode == 2
    assert "have no figures to report; not measured: dense: TensorFlow is not installed" in done.stderr
    assert "has no results" in jaxrank("bench", "report", ROOT / "docs").stderr


def test_a_browser_draws_every_chart(tmp_path: Path) -> None:
    """Every chart has something drawn in it, and the page is one file that loads nothing."""
    for suite, figures in (("dense", DENSE), ("serve", SERVE), ("sparse", SPARSE)):
        write_results(tmp_path / f"{suite}.json", suite, "c", figures)
    done = jaxrank("bench", "report", tmp_path, "-o", tmp_path / "out.html", "--page", tmp_path / "page.md")
    assert done.returncode == 0, done.stderr
    assert "not among the results: convert, host" in done.stdout
    everything = json.loads((tmp_path / "out.json").read_text())
    assert everything["results"]["dense"]["figures"][0]["name"] == "din/jaxrank/1"
    text = (tmp_path / "out.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=\s*["'](?!#)[^"']*|url\((?!#)|@import""", text)
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and {f"chart-{name}" for name in ALL_CHARTS} <= set(ids)
    linked = re.findall(r"\]\((charts/[^)]+)\)", (tmp_path / "page.md").read_text().replace("(./", "("))
    assert {Path(link).stem for link in linked} == ALL_CHARTS
    assert all((tmp_path / link).stat().st_size > 5_000 for link in linked)

    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    # What the browser made of each drawing: how many marks have a place on the page.
    script = """<script>
    for (const figure of document.querySelectorAll("figure")) {
      const marks = [...figure.querySelectorAll("svg path, svg use")].filter((mark) => {
        const box = mark.getBoundingClientRect();
        return box.width + box.height > 0;
      });
      figure.dataset.marks = marks.length;
      figure.dataset.width = figure.querySelector("svg").getBoundingClientRect().width;
    }
    </script></body>"""
    (tmp_path / "watched.html").write_text(text.replace("</body>", script))
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'browser'}",
    ]
    command += ["--dump-dom", (tmp_path / "watched.html").as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    drawn = re.findall(r'<figure id="chart-(\w+)" data-marks="(\d+)" data-width="([\d.]+)"', shown)
    assert {name for name, _, _ in drawn} == ALL_CHARTS
    assert not [name for name, marks, width in drawn if int(marks) < 30 or float(width) < 300], drawn


def test_the_committed_page_is_what_the_results_give() -> None:
    made = document.document(read_all(COMMITTED), prices.read_prices(prices.DEFAULT))
    page = ROOT / "docs/performance.md"
    text = markdown.page(made, Path("bench/results"), Path("docs/performance.md"))
    assert page.read_text() == text, "run: jaxrank bench report --page docs/performance.md"
    for link in re.findall(r"\]\((\.\./bench/results/charts/[^)]+)\)", text):
        assert (page.parent / link).is_file(), link
