"""Two runs beside each other, and the table that says which direction is better."""

import re
import shlex
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench.agreement import agreement
from bench.compare import compare, confirmed, differences, refusals
from bench.directions import rule
from bench.every import Ended
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
from bench.serve_found import Found
from bench.serve_report import ELSEWHERE
from bench.serve_report import figures as serve_figures
from bench.timing import over_processes
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
        pytest.param(_ms(10, 9, 12), _ms(12), "unclear", id="the other is taken as unsure"),
        pytest.param(_ms(10, 9.9, 10.1), _ms(12), "worse", id="one interval, surely"),
        pytest.param(_speedup(2.0), _speedup(1.79), "worse", id="larger is better, smaller"),
        pytest.param(
            msgspec.structs.replace(_speedup(0.95), lo=0.9, hi=1.0),
            msgspec.structs.replace(_speedup(0.0), lo=0.0, hi=0.95),
            "worse",
            id="nothing, in most rounds",
        ),
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
        ("gone", "the new run, of the same command, has neither it nor a reason"),
        ("gone", "no memory"),
    ]


def test_only_ratios() -> None:
    """And whether scores are right."""
    error = Figure(name="max_abs_error", value=1e-7, unit="score")
    wrong = msgspec.structs.replace(error, value=2e-3)
    found = compare(
        _run(_ms(10), _speedup(2.0), error), _run(_ms(30), _speedup(2.0), wrong), ratios_only=True
    )
    assert [(c.old.name, c.verdict) for c in found] == [
        ("speedup_vs_tf_min", "same"),
        ("max_abs_error", "worse"),
    ]
    assert found[-1].certain


_BEST = Figure(name="din/speedup_vs_best_other/200", value=1.5, unit="ratio", lo=1.4, hi=1.6)
_MEAN = Figure(name="speedup_vs_best_peer_request_side", value=1.5, unit="ratio", lo=1.4, hi=1.6)
_PEER = Figure(name="din/openvino/200", value=15, unit="ms")
_REFUSED = NotMeasured(name="din/jaxrank/200", why="refused: its scores differ from TensorFlow's by 1.0e-03")
_NO_LIBRARY = NotMeasured(name="din/openvino", why="No module named 'openvino'; pip install 'jaxrank[bench]'")


@pytest.mark.parametrize(
    ("new", "missing", "verdicts"),
    [
        pytest.param([_PEER], [_REFUSED], ["gone", "gone"], id="ours is refused"),
        pytest.param([_ms(10), _PEER], [], ["gone"], id="a ratio without a reason"),
        pytest.param(
            [_ms(10)], [NotMeasured(name="din", why="no memory")], ["gone"], id="its model failed"
        ),
        pytest.param([_ms(10)], [NotMeasured(name="din", why=_NO_LIBRARY.why)], ["not run"], id="no library"),
        pytest.param(
            [_PEER], [NotMeasured(name="din/jaxrank", why="No module named 'iree'")], ["gone", "gone"],
            id="our own library",
        ),
        pytest.param(
            [], [NotMeasured(name="dense", why="No module named 'serving.model'")], ["gone", "gone"],
            id="our own code",
        ),
        pytest.param([_ms(10), _BEST], [], ["gone"], id="better for want of a rival"),
        pytest.param([_ms(10), _BEST], [_NO_LIBRARY], ["not judged"], id="a rival that is not installed"),
        pytest.param([_ms(10), _PEER, _BEST], [], ["same"], id="all there"),
    ],
)  # fmt: skip
def test_a_broken_engine_does_not_pass_by_its_absence(
    new: list[Figure], missing: list[NotMeasured], verdicts: list[str]
) -> None:
    """Ours, or one that ours is held against: a ratio that is not there is no ratio that is as good."""
    old = _run(_ms(10), _PEER, _BEST)
    changes = compare(old, _run(*new, missing=tuple(missing)), ratios_only=True)
    assert [c.verdict for c in changes] == verdicts


def test_a_mean_does_not_improve_by_what_it_lacks() -> None:
    """It is over other pairs then."""
    old = _run(_ms(10), _PEER, _MEAN)
    better = msgspec.structs.replace(_MEAN, value=1.9, lo=1.8, hi=2.0)
    (mean,) = compare(old, _run(_ms(10), better), ratios_only=True)
    assert mean.verdict == "gone" and mean.why == "it is without din/openvino/200"
    (mean,) = compare(old, _run(_ms(10), better, missing=(_NO_LIBRARY,)), ratios_only=True)
    assert mean.verdict == "not judged"


def test_a_part_of_a_suite_is_held_to_what_it_measured() -> None:
    """Another command did not try the rest; but what it refused, it tried."""
    part = _run(_ms(10), _PEER)
    part["dense"] = msgspec.structs.replace(part["dense"], command="python -m bench dense --sizes 200")
    old = _run(_ms(10), _PEER, _BEST)
    assert [c.verdict for c in compare(old, part, ratios_only=True)] == ["not run"]
    part["dense"] = msgspec.structs.replace(part["dense"], not_measured=[_REFUSED])
    new = NotMeasured(name="din/jaxrank/50", why=_REFUSED.why)
    assert not refusals(old, part)
    part["dense"] = msgspec.structs.replace(part["dense"], not_measured=[new])
    assert refusals(old, part) == [("dense", new)]
    model = NotMeasured(name="mmoe", why="WrongScoresError: mmoe: scores differ from TensorFlow's by 3.0e-02")
    peer = NotMeasured(name="mmoe/openvino/50", why=_REFUSED.why)
    part["dense"] = msgspec.structs.replace(part["dense"], not_measured=[model, peer])
    assert refusals(old, part) == [("dense", model)]


def test_the_committed_results_are_of_the_whole_suites() -> None:
    """`make bench-check` runs these commands: what it then lacks, it could not measure."""
    for suite in _checked_suites():
        assert read_all(COMMITTED)[suite].command == f"python -m bench {suite}"


def test_what_no_interval_supports_says_so() -> None:
    (change,) = compare(_run(_speedup(2.0)), _run(_speedup(1.7)))
    assert change.verdict == "worse" and change.why == "neither run has an interval: it may be chance"


def _simulated(speed: float, spread: float, rng: np.random.Generator) -> Figure:
    """Of three processes that differ."""
    found = over_processes(speed * np.exp(spread * rng.standard_normal(3)))
    return found.figure("speedup_vs_tf_min", "ratio", 3)


@pytest.mark.parametrize("spread", [0.02, 0.05])
def test_a_regression_is_found_and_chance_is_not(spread: float) -> None:
    """65 ratios, measured again where they are worse: what is 20% slower is found in most cases, and a check
    in which nothing changed fails in few. Processes of one ratio differ by 1 to 5% here."""
    rng = np.random.default_rng(7)
    found = failed = 0
    for _ in range(200):
        for speed in (0.8, *[1.0] * 6):
            old, first, again = (_run(_simulated(s, spread, rng)) for s in (1.0, speed, speed))
            (change,) = confirmed(compare(old, first), compare(old, again))
            found += change.regression and speed < 1
            failed += change.regression and speed == 1
    assert found > 200 / 2
    assert failed <= 1200 / 65 * 0.1  # of 18 checks of 65 ratios


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


def test_a_check_that_finds_what_is_committed_passes(tmp_path: Path) -> None:
    """`make bench-check` is held to nothing that it does not measure again: the suite `serve` has figures of
    other suites, too."""
    committed = read_all(COMMITTED)
    again = {suite: committed[suite] for suite in _checked_suites()}
    absent = [n for suite, (_, names) in ELSEWHERE.items() if suite not in again for n in names]
    serve = again["serve"]
    _, told = serve_figures(Found(100.0, tmp_path))
    assert {n.name for n in told} >= set(absent)
    again["serve"] = msgspec.structs.replace(
        serve,
        figures=[f for f in serve.figures if f.name not in absent],
        not_measured=[*serve.not_measured, *(n for n in told if n.name in absent)],
    )
    changes = compare(committed, again, ratios_only=True)
    assert len(changes) > 10 and not [c for c in changes if c.verdict in ("worse", "gone")]


def _checked_suites() -> list[str]:
    makefile = (COMMITTED.parents[1] / "Makefile").read_text()
    found = re.search(r"--suites (\S+) --out .cache/bench/check", makefile)
    assert found is not None
    return found[1].split(",")


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit codes are for CI."""
    monkeypatch.setattr("bench.results.computing_speed", lambda: 100.0)
    for name, value in (("old", 10.0), ("new", 10.5), ("slow", 14.0)):
        write_results(tmp_path / name / "dense.json", "dense", "c", [_ms(value)])
    assert jaxrank("bench", "compare", tmp_path / "old", tmp_path / "new").returncode == 0
    slower = jaxrank("bench", "compare", tmp_path / "old" / "dense.json", tmp_path / "slow")
    assert slower.returncode == 1
    assert "worse: dense din/jaxrank/200: 10 to 14 ms" in slower.stdout
    assert "1 figures judged, 1 worse by over 10%, 0 gone, 0 refused" in slower.stdout
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
    """Its products took twice as long; with the speed that it had, or one that is as good, the same figure is
    a regression. What is gone or wrong is one at any speed."""

    def written(name: str, value: float, gflops: float | None, *more: Figure, missing=()) -> Path:
        made = _run(_speedup(value), *more, missing=missing)["dense"]
        made = msgspec.structs.replace(made, machine={**made.machine, GFLOPS: gflops})
        (tmp_path / name).write_bytes(msgspec.json.encode(made))
        return tmp_path / name

    old = written("old.json", 2.0, 100.0)
    slow = jaxrank("bench", "compare", old, written("slow.json", 1.5, 50.0))
    assert slow.returncode == 2 and "100 GFLOP/s in the old run, 50 in the new" in slow.stdout
    assert jaxrank("bench", "compare", old, written("worse.json", 1.5, 80.0)).returncode == 1
    error = Figure(name="max_abs_error", value=1e-7, unit="score")
    wrong = msgspec.structs.replace(error, value=1e-3)
    right = written("right.json", 2.0, 100.0, error)
    assert jaxrank("bench", "compare", right, written("wrong.json", 1.5, 50.0, wrong)).returncode == 1
    refused = written("refused.json", 1.5, 50.0, missing=(_REFUSED,))
    done = jaxrank("bench", "compare", old, refused, "--ratios")
    assert done.returncode == 1 and f"dense din/jaxrank/200: {_REFUSED.why}" in done.stdout
    assert jaxrank("bench", "compare", old, written("unknown.json", 1.5, None)).returncode == 1
    assert jaxrank("bench", "compare", old, written("fine.json", 1.95, 50.0)).returncode == 0


def test_one_suite_on_a_slower_machine_does_not_excuse_another(tmp_path: Path) -> None:
    for name, value, gflops in (("old", 2.0, 100.0), ("new", 1.5, 50.0)):
        for suite in ("dense", "sparse"):
            made = _run(_speedup(value), suite=suite)[suite]
            speed = gflops if suite == "dense" else 100.0
            made = msgspec.structs.replace(made, machine={**made.machine, GFLOPS: speed})
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / f"{suite}.json").write_bytes(msgspec.json.encode(made))
    assert jaxrank("bench", "compare", tmp_path / "old", tmp_path / "new").returncode == 1
    (tmp_path / "new" / "sparse.json").unlink()
    assert jaxrank("bench", "compare", tmp_path / "old", tmp_path / "new").returncode == 2


@pytest.mark.parametrize(
    ("value", "code", "verdict"),
    [pytest.param(1.97, 0, "unclear", id="chance"), pytest.param(1.52, 1, "worse", id="again")],
)
def test_what_is_worse_is_measured_again(
    value: float, code: int, verdict: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run_all(names: list[str], out: Path, console: object) -> list[Ended]:
        asked.extend(names)
        write_results(out / "dense.json", "dense", "python -m bench dense", [_speedup(value)])
        return [Ended("dense", out / "dense.json", 1.0)]

    monkeypatch.setattr("bench.every.run_all", run_all)
    monkeypatch.setattr("bench.results.computing_speed", lambda: 100.0)
    for name, found in (("old", 2.0), ("new", 1.5)):
        write_results(tmp_path / name, "dense", "python -m bench dense", [_speedup(found)])
    runs = (tmp_path / "old", tmp_path / "new", "--again", tmp_path / "again")
    done = jaxrank("bench", "compare", *runs)
    assert done.returncode == code and asked == ["dense"] and f"{verdict}:" in done.stdout
    write_results(tmp_path / "new", "dense", "python -m bench dense --quick", [_speedup(1.5)])
    refused = jaxrank("bench", "compare", *runs)
    assert refused.returncode == 2 and "dense cannot be measured again" in refused.stderr


def test_figures_of_one_run_alone_do_not_agree() -> None:
    """Whichever has them; points of a curve have no interval, and another rate in each run."""
    both, ratio = _ms(10, 9, 11), _speedup(2.0)
    point = Figure(name="din/p99/jaxrank/211.0", value=20, unit="ms", lo=10)
    assert agreement(_run(both, point), _run(both)).holds
    for first, second in ((_run(both, ratio), _run(both)), (_run(both), _run(both, ratio))):
        found = agreement(first, second)
        assert not found.holds and found.lone == [("dense", ratio)]


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
        pytest.param({"commit": "abc-dirty"}, "commits  and abc-dirty", id="another commit"),
        pytest.param({"machine": {"cores": 8}}, "machines .*2.* and .*8", id="machine"),
        pytest.param({"figures": []}, "no figure with an interval in common", id="figures"),
    ],
)
def test_what_are_not_two_runs_of_the_same(change: dict, message: str) -> None:
    first = _run(_ms(10, 9, 11))
    with pytest.raises(ResultsError, match=message):
        agreement(first, {"dense": msgspec.structs.replace(first["dense"], **change)})
    dirty = {"dense": msgspec.structs.replace(first["dense"], commit="abc-dirty")}
    with pytest.raises(ResultsError, match="sources differed from the commit"):
        agreement(dirty, dirty)
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
