"""Two runs beside each other, and the table that says which direction is better."""

import re
import shlex
from pathlib import Path

import msgspec
import pytest

from bench.compare import agreement, compare, differences
from bench.directions import rule
from bench.results import (
    GFLOPS,
    Figure,
    NotMeasured,
    Results,
    ResultsError,
    read_all,
    read_results,
    suite_command,
    write_results,
)
from bench.serve_report import ELSEWHERE
from tests.command_line import jaxrank

COMMITTED = Path(__file__).parents[2] / "bench/results"


def _run(*figures: Figure, missing: tuple[NotMeasured, ...] = (), suite: str = "dense") -> dict[str, Results]:
    made = Results(
        suite=suite, command="", commit="", date="", machine={"cores": 2}, versions={}, figures=list(figures),
        not_measured=list(missing),
    )  # fmt: skip
    return {suite: made}


def _ms(value: float, lo: float | None = None, hi: float | None = None) -> Figure:
    return Figure(name="din/jaxrank/200", value=value, unit="ms", lo=lo, hi=hi)


def _speedup(value: float) -> Figure:
    return Figure(name="speedup_vs_tf_min", value=value, unit="ratio")


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [
        pytest.param(_ms(10), _ms(10.9), "same", id="within"),
        pytest.param(_ms(10), _ms(11.1), "worse", id="slower"),
        pytest.param(_ms(10), _ms(8.9), "better", id="faster"),
        pytest.param(_ms(10, 9, 12), _ms(12, 11, 13), "unclear", id="within both intervals"),
        pytest.param(_ms(10, 9, 11.2), _ms(12, 11, 13), "worse", id="intervals just overlap"),
        pytest.param(
            msgspec.structs.replace(_speedup(2.0), lo=1.8, hi=2.1),
            msgspec.structs.replace(_speedup(1.75), lo=1.7, hi=1.95),
            "unclear",
            id="larger is better, within both",
        ),
        pytest.param(_ms(10, 9, 11), _ms(12, 11.5, 13), "worse", id="intervals apart"),
        pytest.param(_ms(10, 9, 12), _ms(12), "worse", id="one interval says nothing"),
        pytest.param(_speedup(2.0), _speedup(1.79), "worse", id="larger is better, smaller"),
        pytest.param(_speedup(2.0), _speedup(2.3), "better", id="larger is better, larger"),
        pytest.param(
            Figure(name="max_abs_error", value=1e-7, unit="score"),
            Figure(name="max_abs_error", value=9e-7, unit="score"),
            "same",
            id="an error within its bound",
        ),
        pytest.param(
            Figure(name="max_abs_error", value=1e-7, unit="score"),
            Figure(name="max_abs_error", value=2e-5, unit="score"),
            "worse",
            id="an error beyond its bound",
        ),
        pytest.param(
            Figure(name="crashes", value=0, unit="crashes"),
            Figure(name="crashes", value=1, unit="crashes"),
            "worse",
            id="from nothing",
        ),
        pytest.param(
            Figure(name="din/tensorflow/200", value=10, unit="ms"),
            Figure(name="din/tensorflow/200", value=20, unit="ms"),
            "not judged",
            id="what others do",
        ),
        pytest.param(
            Figure(name="peak_rss", value=10, unit="MiB"),
            Figure(name="peak_rss", value=20, unit="KiB"),
            "not judged",
            id="another unit",
        ),
    ],
)
def test_verdicts(old: Figure, new: Figure, verdict: str) -> None:
    (change,) = compare(_run(old), _run(new))
    assert change.verdict == verdict


def test_what_the_new_run_could_not_measure_is_a_regression() -> None:
    """As opposed to what it did not try."""
    old = _run(_ms(10), _speedup(2.0), Figure(name="bst/jaxrank/200", value=1, unit="ms"))
    refused = NotMeasured(name="din/jaxrank/200", why="its scores differ")
    found = compare(old, _run(missing=(refused, NotMeasured(name="bst", why="no memory"))))
    assert [(c.verdict, c.why) for c in found] == [
        ("gone", "its scores differ"),
        ("not run", ""),
        ("gone", "no memory"),
    ]


def test_only_ratios() -> None:
    found = compare(_run(_ms(10), _speedup(2.0)), _run(_ms(30), _speedup(2.0)), ratios_only=True)
    assert [c.old.name for c in found] == ["speedup_vs_tf_min"]


def test_another_machine_is_told() -> None:
    old, new = _run(_ms(10)), _run(_ms(10))
    new["dense"] = msgspec.structs.replace(new["dense"], machine={"cores": 8}, versions={"numpy": "2.4"})
    told = differences({**old, **_run(suite="serve")}, new)
    assert told == [
        "dense: the machine differs (cores 2 -> 8): only ratios can be compared",
        "dense: packages differ (numpy none -> 2.4)",
        "serve: only the old run has it",
    ]


def test_the_direction_of_every_committed_figure_is_known() -> None:
    unknown = [
        f"{results.suite} {figure.name} {figure.unit}"
        for results in read_all(COMMITTED).values()
        for figure in results.figures
        if rule(figure) is None
    ]
    assert not unknown, "bench/directions.py has no rule for these"


def test_a_check_that_finds_what_is_committed_passes() -> None:
    """`make bench-check` is held to nothing that it does not measure again: the suite `serve` has figures of
    other suites, too."""
    makefile = (COMMITTED.parents[1] / "Makefile").read_text()
    found = re.search(r"--suites (\S+) --out .cache/bench/check", makefile)
    assert found is not None
    committed = read_all(COMMITTED)
    again = {suite: committed[suite] for suite in found[1].split(",")}
    absent = [n for suite, (_, names) in ELSEWHERE.items() if suite not in again for n in names]
    serve = again["serve"]
    again["serve"] = msgspec.structs.replace(
        serve,
        figures=[f for f in serve.figures if f.name not in absent],
        not_measured=[*serve.not_measured, *(NotMeasured(name=n, why="not there") for n in absent)],
    )
    changes = compare(committed, again, ratios_only=True)
    assert len(changes) > 10 and not [c for c in changes if c.verdict in ("worse", "gone")]


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit codes are for CI."""
    monkeypatch.setattr("bench.results.computing_speed", lambda: 100.0)
    for name, value in (("old", 10.0), ("new", 10.5), ("slow", 14.0)):
        write_results(tmp_path / name / "dense.json", "dense", "c", [_ms(value)])
    assert jaxrank("bench", "compare", tmp_path / "old", tmp_path / "new").returncode == 0
    slower = jaxrank("bench", "compare", tmp_path / "old" / "dense.json", tmp_path / "slow")
    assert slower.returncode == 1
    assert "worse: dense din/jaxrank/200: 10 to 14 ms" in slower.stdout
    assert "1 figures judged, 1 worse by over 10%" in slower.stdout
    assert jaxrank("bench", "compare", tmp_path / "old", tmp_path / "slow", "--allow", "50%").returncode == 0
    refused = jaxrank("bench", "compare", tmp_path / "old", tmp_path / "slow", "--allow", "a lot")
    assert refused.returncode == 2 and "such as 10% or 0.1" in refused.stderr


def test_two_runs_of_one_commit(tmp_path: Path) -> None:
    """A committed run agrees with itself, also with one figure of a hundred apart, and not where everything
    took 99 times as long. Figures without bounds are not asked."""
    run = read_results(COMMITTED / "dense.json")
    bounded = [f for f in run.figures if f.lo is not None and f.hi is not None and f.lo <= f.value <= f.hi]

    def slower(figures: list[Figure]) -> Path:
        made = [
            msgspec.structs.replace(f, value=f.value * 99, lo=f.lo and f.lo * 99, hi=f.hi and f.hi * 99)
            if f in figures
            else f
            for f in run.figures
        ]
        path = tmp_path / f"slower_{len(figures)}.json"
        path.write_bytes(msgspec.json.encode(msgspec.structs.replace(run, figures=made)))
        return path

    one = next(f for f in bounded if f.name == "din/jaxrank/200")
    for figures, code in (([], 0), ([one], 0), (list(run.figures), 1)):
        done = jaxrank("bench", "compare", COMMITTED / "dense.json", slower(figures), "--agree")
        apart = sum("apart: dense " in line for line in done.stdout.splitlines())
        assert done.returncode == code and apart == len(figures and bounded if code else figures)
        assert f"{len(bounded) - apart} of {len(bounded)} figures agree" in done.stdout


def test_a_machine_that_is_slower_decides_nothing(tmp_path: Path) -> None:
    """Its products took twice as long; with the speed that it had, the same figure is a regression."""

    def written(name: str, value: float, gflops: float | None) -> Path:
        made = _run(_speedup(value))["dense"]
        made = msgspec.structs.replace(made, machine={**made.machine, GFLOPS: gflops})
        (tmp_path / name).write_bytes(msgspec.json.encode(made))
        return tmp_path / name

    old = written("old.json", 2.0, 100.0)
    slow = jaxrank("bench", "compare", old, written("slow.json", 1.5, 50.0))
    assert slow.returncode == 2 and "100 GFLOP/s in the old run, 50 in the new" in slow.stdout
    assert jaxrank("bench", "compare", old, written("worse.json", 1.5, 90.0)).returncode == 1
    assert jaxrank("bench", "compare", old, written("unknown.json", 1.5, None)).returncode == 1
    assert jaxrank("bench", "compare", old, written("fine.json", 1.95, 50.0)).returncode == 0


def test_times_may_be_apart_where_ratios_agree() -> None:
    """As on a machine that is slower in the second run."""
    ratio = msgspec.structs.replace(_speedup(2.0), lo=1.9, hi=2.1)
    first, second = _run(ratio, _ms(10, 9, 11)), _run(ratio, _ms(14, 13, 15))
    assert not agreement(first, second).holds and agreement(first, second, ratios_only=True).holds
    slower = msgspec.structs.replace(_speedup(1.5), lo=1.4, hi=1.6)
    assert not agreement(first, _run(slower, _ms(10, 9, 11)), ratios_only=True).holds


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param({"commit": "other"}, "commits  and other", id="commit"),
        pytest.param({"machine": {"cores": 8}}, "machines .*2.* and .*8", id="machine"),
        pytest.param({"figures": []}, "no figure with an interval in common", id="figures"),
    ],
)
def test_what_are_not_two_runs_of_the_same(change: dict, message: str) -> None:
    first = _run(_ms(10, 9, 11))
    with pytest.raises(ResultsError, match=message):
        agreement(first, {"dense": msgspec.structs.replace(first["dense"], **change)})
    with pytest.raises(ResultsError, match="suites dense and serve"):
        agreement(first, _run(_ms(10, 9, 11), suite="serve"))


def test_commands_are_recorded_as_a_shell_takes_them() -> None:
    """Without where figures and models are kept, however that is written."""
    arguments = ["my model", "--out", "a dir/x.json", "--work=w", "--name", "it's"]
    command = suite_command("serve", [*arguments, "--out=b"])
    assert shlex.split(command) == ["python", "-m", "bench", "serve", "my model", "--name", "it's"]
    assert "'my model'" in command


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param(None, "No such file", id="missing"),
        pytest.param(b"{", "is not a results file", id="not JSON"),
        pytest.param(b'{"suite": "dense", "figures": [{"name": "a"}]}', "is not a results file", id="schema"),
        pytest.param(b'{"suite": "dense", "figures": 3}', "$.figures", id="the field is named"),
    ],
)
def test_what_is_no_results_file(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "dense.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ResultsError) as refused:
        read_results(path)
    assert message in str(refused.value) and str(path) in str(refused.value)


def test_directories_that_cannot_be_read_as_one_run(tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="has no results; `jaxrank bench all --out"):
        read_all(tmp_path)
    for name in ("a", "b"):
        write_results(tmp_path / f"{name}.json", "dense", "c", [_ms(1)])
    with pytest.raises(ResultsError, match="two files of the suite dense"):
        read_all(tmp_path)
    with pytest.raises(ResultsError, match="nothing to compare: the old run has dense, the new one serve"):
        compare(_run(), _run(suite="serve"))
