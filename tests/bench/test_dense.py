"""The suite `dense` on a small model, with the real engines."""

import ast
import json
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench import dense, dense_build, dense_models, peers
from bench.dense import Measured, checked, largest_error, prepare_engines
from bench.dense_build import build
from bench.dense_report import figures
from bench.optional_peers import torch_engine
from bench.peers import Call, Prepare, Task, padded
from bench.results import NotMeasured
from bench.timing import Timing
from serving.host import HostProgramRunner
from serving.host.program import FeatureBlocks
from tests.bench.conftest import TINY

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def task(work: Path) -> Task:
    built = build(TINY, work)
    return Task.of(built)


def _blocks(task: Task, rows: int) -> FeatureBlocks:
    return HostProgramRunner(task.bundle, task.manifest).run(TINY.request(rows, seed=3))


def _scores(task: Task, rows: int) -> list[np.ndarray]:
    from converters.loaders import load

    expected = load(task.bundle.parent / "saved_model").predict(TINY.request(rows, seed=3))
    return [expected[name] for name in task.outputs]


@pytest.mark.parametrize("engine", list(peers.ENGINES))
def test_every_engine_gives_tensorflows_scores(engine: str, task: Task) -> None:
    """One engine object, several numbers of candidates, padded ones among them."""
    prepare = peers.ENGINES[engine](task)
    for rows in (1, 7, 50):
        assert largest_error(prepare(_blocks(task, rows))(), _scores(task, rows)) <= 1e-5


@pytest.mark.usefixtures("here")
def test_a_run_from_end_to_end(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command, on the small model: JSON with the promised names, and no second compilation."""
    monkeypatch.setattr(dense_models, "MODELS", (TINY,))
    monkeypatch.setattr(dense, "STATIC_SIZES", (200,))
    out = tmp_path / "dense.json"
    build(TINY, work)
    stamps = (work / "tiny" / "stamps.json").read_bytes()
    sizes = ["1", "200", "5000"]
    dense.main(["--quick", "--sizes", *sizes, "--work", str(work), "--out", str(out)])
    assert (work / "tiny" / "stamps.json").read_bytes() == stamps
    document = json.loads(out.read_text())
    figures = {f["name"]: f for f in document["figures"]}
    for name in (
        "speedup_vs_tf_request_side",
        "speedup_vs_best_peer_request_side",
        "speedup_vs_tf_min",
        "ms_per_candidate_5000_over_200",
    ):
        assert figures[name]["value"] > 0
    assert figures["max_abs_error"]["value"] <= 1e-5
    assert 0 < figures["harness_overhead"]["value"] < 0.02
    speedup = figures["speedup_vs_tf_request_side"]
    assert speedup["lo"] <= speedup["value"] <= speedup["hi"]
    for engine in peers.ENGINES:
        for size in sizes:
            figure = figures[f"tiny/{engine}/{size}"]
            assert figure["unit"] == "ms" and figure["lo"] <= figure["value"] <= figure["hi"]
    assert {m["name"] for m in document["not_measured"]} == {
        "speedup_vs_best_peer_no_request_side",
        "dynamic_over_static",
    } | {
        f"tiny/{name}"
        for name, module in (("torch_compile", "torch"), ("tvm", "tvm"))
        if not find_spec(module)
    }


def test_a_module_for_one_shape_gives_the_same_scores(work: Path, task: Task) -> None:
    from bench.dense_build import build_static
    from serving.engines import load_engine

    built = build(TINY, work)
    manifest = build_static(built, 50)
    engine = load_engine(built.directory / "static_50", manifest, manifest.targets[0], streams=1)
    try:
        assert largest_error(engine.run(_blocks(task, 50)), _scores(task, 50)) <= 1e-5
    finally:
        engine.close()
    assert all(t.median > 0 for t in dense.dynamic_and_static(built, TINY, 50, lambda text: None))


@pytest.mark.parametrize("off", [1e-3, 1e-4])
@pytest.mark.parametrize("engine", ["jaxrank", "onnxruntime"])
def test_an_engine_with_wrong_scores_is_refused(engine: str, off: float, task: Task) -> None:
    """Ours, too."""

    def broken(task: Task) -> Prepare:
        prepare = peers.ENGINES[engine](task)

        def prepared(blocks: FeatureBlocks) -> Call:
            call = prepare(blocks)
            return lambda: [value + np.float32(off) for value in call()]

        return prepared

    found = Measured("tiny", "", True)
    assert checked(engine, broken(task), _blocks(task, 7), _scores(task, 7), 7, found) is None
    (missing,) = found.missing
    assert missing.name == f"tiny/{engine}/7"
    assert f"refused: its scores differ from TensorFlow's by {off:.1e}" in missing.why


def test_a_library_that_is_missing_is_reported(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "openvino", None)
    found = Measured("tiny", "", True)
    engines = {"openvino": peers.openvino_engine, "onnxruntime": peers.onnxruntime_engine}
    assert list(prepare_engines(engines, task, found)) == ["onnxruntime"]
    (missing,) = found.missing
    assert missing.name == "tiny/openvino"
    assert "openvino" in missing.why and "pip install 'jaxrank[bench]'" in missing.why
    monkeypatch.setitem(sys.modules, "torch", None)
    assert not prepare_engines({"torch_compile": torch_engine}, task, found)
    assert found.missing[-1].name == "tiny/torch_compile" and "pip install torch" in found.missing[-1].why


@pytest.mark.usefixtures("here")
def test_a_model_that_fails_leaves_the_others(
    work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And what is printed into a pipe has every figure whole."""

    def fail() -> Any:
        raise ValueError("no weights\nat all")

    broken = dense_models.DenseModel("broken", fail, TINY.inputs, True, "none")
    monkeypatch.setattr(dense_models, "MODELS", (broken, TINY))
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "dense.json"
    dense.main(["--quick", "--sizes", "7", "--work", str(work), "--out", str(out)])
    document = json.loads(out.read_text())
    assert {"name": "broken", "why": "ValueError: no weights at all"} in document["not_measured"]
    assert "tiny/jaxrank/7" in {f["name"] for f in document["figures"]}
    printed = capsys.readouterr().out
    assert "tensorflow_xla" in printed and "…" not in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--models", "dinn"], "there is no model dinn; models are: din, bst", id="model"),
        pytest.param(["--sizes", "0"], "", id="size"),
        pytest.param(["--cores", "1000"], "error: --cores 1000: this process may use", id="cores"),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = partial(dense.main, [*arguments, "--out", str(tmp_path / "dense.json")])
    with pytest.raises(SystemExit) as stopped:
        run()
    assert message in str(stopped.value) if message else "from 1 to 5000" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_processes_that_differ() -> None:
    """An engine that one process refused has no time, one process that timed nothing takes nothing away, and
    every reason is listed once."""

    def process(engines: str, *missing: str, error: float = 0.0) -> Measured:
        found = Measured(
            "din", "", True, error=error, missing=[NotMeasured(name=m, why="no") for m in missing]
        )
        if engines:
            found.times[200] = {name: Timing(np.full((2, 3), 4.0)) for name in engines.split()}
        return found

    rounds = [
        process("jaxrank jax", "tvm", error=1e-7),
        process("jaxrank jax openvino", "tvm"),
        process("jaxrank openvino", "tvm", "din/jax/200", error=2e-7),
        process("", "din"),
    ]
    both = dense.joined(rounds)
    assert list(both.times) == [200] and list(both.times[200]) == ["jaxrank"]
    assert both.times[200]["jaxrank"].milliseconds.shape == (3, 2, 3)
    assert [m.name for m in both.missing] == ["tvm", "din/jax/200", "din"] and both.error == 2e-7
    assert dense.joined(rounds[3:]).missing == rounds[3].missing


def test_a_size_that_one_process_did_not_reach() -> None:
    """It has the times of those that did; so have modules for one shape."""

    def timing(value: float) -> Timing:
        return Timing(np.full((2, 3), value))

    def process(*sizes: int) -> Measured:
        times = {n: {"jaxrank": timing(1.0), "tensorflow": timing(2.0)} for n in sizes}
        found = Measured("din", "", True, times=times)
        if 5000 in sizes:
            found.dynamic[200], found.static[200] = timing(1.0), timing(1.0)
        return found

    both = dense.joined([process(200), process(200, 1000, 5000), process(200, 1000, 5000)])
    assert {n: t["jaxrank"].milliseconds.shape[0] for n, t in both.times.items()} == {
        200: 3, 1000: 2, 5000: 2,
    }  # fmt: skip
    assert both.dynamic[200].milliseconds.shape[0] == both.static[200].milliseconds.shape[0] == 2


def test_a_mean_says_what_it_is_without() -> None:
    """Models and sizes at which ours, or what it is held against, was not timed."""

    def model(name: str, **engines: str) -> Measured:
        times = {
            int(rows[1:]): {e: Timing(np.full((1, 2, 3), 4.0)) for e in held.split()}
            for rows, held in engines.items()
        }
        return Measured(name, "", True, times=times)

    whole = model("din", n200="jaxrank tensorflow jax", n1000="jaxrank tensorflow jax")
    part = model("bst", n200="jaxrank jax")
    notes = {f.name: f.note for f in figures([whole, part])[0]}
    assert "sizes from 200; without bst at 200, bst at 1,000" in notes["speedup_vs_tf_request_side"]
    assert "sizes from 200; without bst at 1,000" in notes["speedup_vs_best_peer_request_side"]
    assert "without" not in {f.name: f.note for f in figures([whole])[0]}["speedup_vs_tf_min"]


def test_a_part_does_not_take_the_place_of_the_whole() -> None:
    assert dense.parse([]).out == dense.RESULTS
    for arguments in (["--quick"], ["--cores", "1"], ["--models", "din"], ["--sizes", "200"]):
        assert dense.parse(arguments).out == Path("dense.json")
        assert dense.parse([*arguments, "--out", "a.json"]).out == Path("a.json")


def test_a_model_is_made_again_where_anything_that_makes_it_has_changed() -> None:
    """Every module of the suite's and of the zoo that a source of it imports; but for what draws requests,
    and what other models of the zoo need."""
    left_out = {"bench/draws.py", "tests/zoo/references.py", "tests/zoo/__init__.py"}
    for source in dense_build._MODEL_SOURCES:
        for node in ast.walk(ast.parse((dense_build.ROOT / source).read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(("bench.", "tests.zoo")):
                path = f"{(node.module or '').replace('.', '/')}.py"
                path = path if path != "tests/zoo.py" else f"tests/zoo/{node.names[0].name}.py"
                assert path in {*dense_build._MODEL_SOURCES, *left_out}, source
    assert "bench/profiles.py" in dense_build._MODEL_SOURCES


def test_errors_are_relative_beyond_one() -> None:
    assert largest_error([np.array([100.001])], [np.array([100.0])]) == pytest.approx(1e-5, rel=1e-3)
    assert largest_error([np.array([0.5])], [np.array([0.25])]) == 0.25
    assert largest_error([np.array([np.nan])], [np.array([0.25])]) == float("inf")
    assert largest_error([np.zeros(2)], [np.zeros(3)]) == float("inf")


def test_padding_wastes_at_most_a_quarter() -> None:
    assert [padded(n) for n in (1, 5, 50, 200, 1000, 5000)] == [1, 5, 56, 224, 1024, 5120]
    assert all(n <= padded(n) < 1.25 * n or n < 4 for n in range(1, 5001))
