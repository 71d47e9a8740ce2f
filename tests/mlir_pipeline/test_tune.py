"""Data tiling and tiles: decided by measurement, recorded in the bundle, right whatever was decided."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from msgspec.structs import replace

from converters.convert import convert
from jaxrank import bundle as files
from jaxrank.manifest import Cost, Manifest
from jaxrank.towers import CANDIDATE_TOWER
from mlir_pipeline import tune
from mlir_pipeline.compile import compile_bundle
from mlir_pipeline.errors import CompileError
from mlir_pipeline.tune import DYNAMIC_ROWS, TILE_ROWS
from serving.engines.plan import Planner
from serving.model import Model
from tests import compiled
from tests.shared import Once

WIDTH = 64


def _save_experts(path: Path) -> None:
    """Two experts of 512-256 over the user's and the item's features: 650,000 FLOPs for a candidate."""
    keras.utils.set_random_seed(3)
    experts = [[keras.layers.Dense(w, "relu") for w in (512, 256)] for _ in range(2)]
    gate, head = keras.layers.Dense(2, "softmax"), keras.layers.Dense(1, "sigmoid")

    def rank(user: tf.Tensor, item: tf.Tensor) -> dict[str, tf.Tensor]:
        x = tf.concat([tf.repeat(user, tf.shape(item)[0], axis=0), item], axis=-1)
        mixed = tf.stack([second(first(x)) for first, second in experts], axis=1)
        return {"click": head(tf.reduce_sum(mixed * gate(x)[..., None], axis=1))[:, 0]}

    module: Any = tf.Module()
    signature = [tf.TensorSpec([1, WIDTH], name="user"), tf.TensorSpec([None, WIDTH], name="item")]
    module.rank = tf.function(rank, input_signature=signature)
    module.layers = [*experts[0], *experts[1], gate, head]
    concrete = module.rank.get_concrete_function()
    tf.saved_model.save(module, str(path), signatures=concrete)


def _request(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "user": rng.standard_normal((1, WIDTH), np.float32),
        "item": rng.standard_normal((rows, WIDTH), np.float32),
    }


@pytest.fixture(scope="module")
def experts(once: Once) -> Path:
    """SavedModel of the experts."""
    return once("experts", lambda directory: _save_experts(directory / "saved_model")) / "saved_model"


@pytest.fixture(scope="module")
def tensorflow(experts: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    """TensorFlow's scores."""
    function = tf.saved_model.load(str(experts)).signatures["serving_default"]
    return lambda f: function(**{k: tf.constant(v) for k, v in f.items()})["click"].numpy()


@pytest.fixture(scope="module")
def converted(experts: Path, once: Once) -> Path:
    """The experts as a bundle that is not compiled."""
    return once("experts_bundle", lambda directory: convert(experts, directory / "b")) / "b"


@pytest.fixture(scope="module")
def tuned(converted: Path, once: Once) -> Path:
    """The experts compiled with `--tune`."""

    def build(directory: Path) -> None:
        shutil.copytree(converted, directory / "b")
        compile_bundle(directory / "b", ["cpu"], tune=True)

    return once("experts_tuned", build) / "b"


@pytest.fixture(scope="module")
def manifest(tuned: Path) -> Manifest:
    return files.verify(tuned)


def test_the_faster_of_both_modules_is_kept_and_both_times_recorded(manifest: Manifest) -> None:
    (target,) = manifest.targets
    assert target.data_tiling_ms is not None and min(target.data_tiling_ms) > 0
    without, with_tiling = target.data_tiling_ms
    assert target.data_tiling == (with_tiling < without * 0.97)
    assert target.data_tiling == any("data-tiling=true" in flag for flag in target.flags)
    assert any("ms without" in note for note in target.notes)


def test_costs_of_every_program(manifest: Manifest) -> None:
    (target,) = manifest.targets
    measured = {(c.function, c.rows): c.ms for c in target.costs}
    assert all(ms > 0 for ms in measured.values())
    programs = {(p.function, p.rows) for p in target.programs}
    assert set(measured) == {(CANDIDATE_TOWER, r) for r in DYNAMIC_ROWS} | programs
    for function, rows in programs:
        assert measured[function, rows] < measured[CANDIDATE_TOWER, rows]
    assert any("tiles of 8, 32, 128, 256 rows were tried" in note for note in target.notes)


def test_no_file_is_left_over(tuned: Path, manifest: Manifest) -> None:
    found = {p.relative_to(tuned).as_posix() for p in tuned.rglob("*.vmfb")}
    assert found == set(manifest.targets[0].modules)
    archives = {p.relative_to(tuned) for p in tuned.rglob("*.irpa")} - {Path(files.WEIGHTS)}
    assert {p.with_suffix(".vmfb").as_posix() for p in archives} <= found
    assert "cpu/iree/dense.irpa" in {p.as_posix() for p in archives}


def test_whatever_the_plan_scores_are_the_same(
    tuned: Path, tensorflow: Callable[[dict[str, np.ndarray]], np.ndarray]
) -> None:
    request = _request(333, 1)
    expected = tensorflow(request)
    (target,) = files.read_manifest(tuned).targets
    found = []
    for only in [None, CANDIDATE_TOWER, *(p.function for p in target.programs)]:
        model = Model.load(tuned, only=only)
        found.append(model.predict(request)["click"])
        model.close()
    for scores in found:
        np.testing.assert_allclose(scores, expected, atol=1e-5)
        np.testing.assert_allclose(scores, found[0], atol=1e-6)


@pytest.fixture(scope="module")
def all_tiles(converted: Path, once: Once) -> Path:
    """The experts with every tile, each a thousandth as costly as the program for any number of rows."""
    return once("experts_tiles", lambda directory: _compile_every_tile(converted, directory / "b")) / "b"


def _compile_every_tile(converted: Path, path: Path) -> None:
    shutil.copytree(converted, path)
    gain, tune._GAIN = tune._GAIN, float("inf")
    try:
        manifest = compile_bundle(path, ["cpu"], tune=True)
    finally:
        tune._GAIN = gain
    (target,) = manifest.targets
    costs = (
        Cost(function=c.function, rows=c.rows, ms=c.rows * (1.0 if c.function == CANDIDATE_TOWER else 1e-3))
        for c in target.costs
    )
    targets = (replace(target, costs=tuple(costs)),)
    files.write_manifest(path, replace(manifest, targets=targets))


@pytest.mark.parametrize("rows", [1, 7, 8, 9, 127, 300])
def test_tiles_that_a_machine_would_prefer(
    all_tiles: Path, tensorflow: Callable[[dict[str, np.ndarray]], np.ndarray], rows: int
) -> None:
    """Costs that favour tiles make plans of tiles only, padded where a request does not fill one."""
    (target,) = files.read_manifest(all_tiles).targets
    assert tuple(p.rows for p in target.programs) == TILE_ROWS
    plan = Planner(target.programs, target.costs, streams=2, max_candidates=5000).plan(rows)
    assert {call.function for calls in plan for call in calls} <= {p.function for p in target.programs}
    model = Model.load(all_tiles, streams=2)
    request = _request(rows, rows)
    np.testing.assert_allclose(model.predict(request)["click"], tensorflow(request), atol=1e-5)
    model.close()


@pytest.mark.parametrize(("data_tiling", "target"), [(False, "cpu"), (True, "cpu:x86-64-v3")])
def test_a_decision_of_ones_own_gives_the_same_bytes_each_time(
    converted: Path, tmp_path: Path, data_tiling: bool, target: str
) -> None:
    made = []
    for name in ("a", "b"):
        shutil.copytree(converted, tmp_path / name)
        with compiled.replaced():
            made.append(compile_bundle(tmp_path / name, [target], data_tiling=data_tiling))
    assert made[0].files == made[1].files
    assert all(t.data_tiling == data_tiling for t in made[0].targets)


def test_small_models_are_not_measured(ranker_bundle: Path) -> None:
    """So their modules are the same bytes without asking for it."""
    target = next(t for t in files.read_manifest(ranker_bundle).targets if t.name == "cpu")
    assert not target.data_tiling and target.data_tiling_ms is None
    assert "too few to gain" in target.notes[0]


def test_a_cpu_that_cannot_measure_takes_the_hosts_decision(converted: Path, tmp_path: Path) -> None:
    """A level that needs what no CPU has stands for one that this CPU does not have."""
    from jaxrank.cpu import LEVELS

    shutil.copytree(converted, tmp_path / "b")
    LEVELS["x86-64-v4"], level = LEVELS["x86-64-v4"] | {"avx1024"}, LEVELS["x86-64-v4"]
    try:
        manifest = compile_bundle(tmp_path / "b", ["cpu:x86-64-v4", "cpu"], tune=True)
    finally:
        LEVELS["x86-64-v4"] = level
    compiled = {t.name: t for t in manifest.targets}
    assert compiled["cpu:x86-64-v4"].data_tiling == compiled["cpu"].data_tiling
    assert compiled["cpu:x86-64-v4"].certificate is None and not compiled["cpu:x86-64-v4"].costs
    assert any("as decided for this machine's CPU" in n for n in compiled["cpu:x86-64-v4"].notes)
    assert any("not tuned" in n for n in compiled["cpu:x86-64-v4"].notes)
    # A CPU without AVX-512 lacks more than that.
    assert any(n.startswith("not run here: this CPU has no avx1024") for n in compiled["cpu:x86-64-v4"].notes)


def test_a_failure_changes_nothing(converted: Path, tmp_path: Path) -> None:
    shutil.copytree(converted, tmp_path / "b")
    before = files.read_manifest(tmp_path / "b")
    with pytest.raises(CompileError, match="there is no target 'cpu:x86-64-v9'"):
        compile_bundle(tmp_path / "b", ["cpu", "cpu:x86-64-v9"], tune=True)
    assert files.verify(tmp_path / "b") == before
    assert [p.name for p in tmp_path.iterdir()] == ["b"]
