"""Many requests in one call give each request's own scores: TensorFlow's, and those that `run` gives."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from converters.convert import convert
from jaxrank import bundle as files
from jaxrank.cli import app
from jaxrank.manifest import Manifest
from jaxrank.towers import CANDIDATE_TILES
from mlir_pipeline.compile import compile_bundle
from serving.engines.batches import MAX_REQUESTS, of_tiles, shares, tiled
from serving.engines.iree import IreeEngine
from serving.host import HostProgramRunner
from serving.host.program import FeatureBlocks
from serving.model import Model
from tests.zoo import ZOO, ZooModel

pytestmark = pytest.mark.filterwarnings("ignore")

WITH_PROGRAM = ("din", "mmoe", "fm")
WITHOUT = ("dlrm", "list_context")
"""One whose candidates are rows of one block, and one whose candidates are mixed."""


@dataclass(frozen=True)
class Compiled:
    """A zoo model and its bundle, compiled with a program for many requests where it can have one."""

    model: ZooModel
    path: Path
    bundle: Path
    manifest: Manifest


@pytest.fixture(scope="module", params=WITH_PROGRAM + WITHOUT)
def compiled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compiled]:
    model = next(m for m in ZOO if m.name == request.param)
    directory = tmp_path_factory.mktemp(model.name)
    path, bundle = model.save(directory), directory / "bundle"
    convert(path, bundle, **model.options, tolerance=model.tolerance)
    yield Compiled(model, path, bundle, compile_bundle(bundle, ["cpu"], data_tiling=False, batch_tile=16))
    jax.clear_caches()


@pytest.fixture(scope="module", params=[None, CANDIDATE_TILES], ids=["chosen", "tiles"])
def loaded(compiled: Compiled, request: pytest.FixtureRequest) -> Iterator[Model]:
    if request.param is not None and compiled.model.name in WITHOUT:
        pytest.skip("it has no program for many requests")
    model = Model.load(compiled.bundle, streams=2, only=request.param)
    yield model
    model.close()


@pytest.fixture(scope="module", params=[None, CANDIDATE_TILES], ids=["chosen", "tiles"])
def engine(compiled: Compiled, request: pytest.FixtureRequest) -> Iterator[IreeEngine]:
    """The engine as it serves, and with every request in tiles, which those of many candidates are not."""
    target = compiled.manifest.target("cpu")
    assert target is not None
    if request.param is not None and target.batch is None:
        pytest.skip("it has no program for many requests")
    engine = IreeEngine(compiled.bundle, compiled.manifest, target, streams=2, only=request.param)
    yield engine
    engine.close()


def _blocks(compiled: Compiled, sizes: Sequence[int], seed: int = 0) -> list[FeatureBlocks]:
    host = HostProgramRunner(compiled.bundle, compiled.manifest)
    return [host.run(compiled.model.request(n, seed=seed + i)) for i, n in enumerate(sizes)]


def test_which_models_have_a_program(compiled: Compiled) -> None:
    target = compiled.manifest.target("cpu")
    assert target is not None
    module = compiled.bundle / "cpu" / "iree" / "batch.vmfb"
    assert (target.batch is not None) == module.exists() == (compiled.model.name in WITH_PROGRAM)
    if target.batch is not None:
        assert (target.batch.function, target.batch.rows) == ("candidate_tiles", 16)
        assert str(module.relative_to(compiled.bundle)) in target.modules
        assert files.verify(compiled.bundle).files.keys() >= set(target.modules)
    mixed = any("all candidates of a request at once" in note for note in target.notes)
    assert mixed == (not compiled.model.row_wise)


@pytest.mark.parametrize("sizes", [(1,), (1, 200), (16, 17, 15, 32, 1), (200, 3, 77, 120, 1, 64, 8)], ids=str)
def test_scores_are_tensorflows(compiled: Compiled, loaded: Model, sizes: tuple[int, ...]) -> None:
    """The tolerance is the model's: absolute up to 1, relative beyond."""
    requests = [compiled.model.request(n, seed=7000 + 10 * n + i) for i, n in enumerate(sizes)]
    for features, found in zip(requests, loaded.predict_batch(requests), strict=True):
        expected = compiled.model.reference(compiled.path, features)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
            error = np.abs(found[name].astype(np.float64) - value) / np.maximum(np.abs(value), 1.0)
            assert error.max() <= compiled.model.tolerance, name


@pytest.mark.parametrize("count", [1, 2, 5, 23, MAX_REQUESTS])
def test_scores_are_those_of_single_requests(compiled: Compiled, engine: IreeEngine, count: int) -> None:
    """1e-6 of the value: float32 sums in another order."""
    if not compiled.model.row_wise and count > 5:
        pytest.skip("its requests run one by one")
    rng = np.random.default_rng(count)
    sizes = rng.integers(1, rng.choice([33, 201], count)).tolist()
    requests = _blocks(compiled, sizes, seed=count)
    for blocks, found in zip(requests, engine.run_batch(requests), strict=True):
        for value, expected in zip(found, engine.run(blocks), strict=True):
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_requests_without_candidates(compiled: Compiled, engine: IreeEngine) -> None:
    if not compiled.model.row_wise:
        pytest.skip("it normalizes over candidates")
    some = _blocks(compiled, [3, 5, 2])
    none = FeatureBlocks(some[1].request, some[1].candidate[:0], {})
    first, empty, last = engine.run_batch([some[0], none, some[2]])
    assert {len(value) for value in empty} == {0}
    for found, blocks in ((first, some[0]), (last, some[2])):
        for value, expected in zip(found, engine.run(blocks), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_outputs_are_the_callers_own(compiled: Compiled, engine: IreeEngine) -> None:
    requests = _blocks(compiled, [20, 3, 40])
    found = engine.run_batch(requests)
    copies = [[value.copy() for value in each] for each in found]
    engine.run_batch(_blocks(compiled, [9, 30, 2], seed=50))
    found[0][0].fill(7)
    for value, copy in zip(found[1] + found[2], copies[1] + copies[2], strict=True):
        np.testing.assert_array_equal(value, copy)
        assert value.base is None
    for value, copy in zip(engine.run_batch(requests)[0], copies[0], strict=True):
        np.testing.assert_array_equal(value, copy)


@pytest.mark.parametrize("count", [0, MAX_REQUESTS + 1])
def test_batches_that_are_refused(compiled: Compiled, engine: IreeEngine, count: int) -> None:
    if compiled.model.name != "fm":
        pytest.skip("one model is enough")
    with pytest.raises(ValueError, match=f"1 to 64 requests, this one has {count}"):
        engine.run_batch(_blocks(compiled, [1]) * count)


def test_the_command_line(compiled: Compiled) -> None:
    """Without --batch-tile a bundle has no program, and its requests run one by one."""
    if compiled.model.name != "fm":
        pytest.skip("one model is enough")
    inspected = CliRunner().invoke(app, ["inspect", str(compiled.bundle)], env={"COLUMNS": "400"})
    assert "many requests in tiles of 16" in inspected.output
    copy = compiled.bundle.with_name("copy")
    for options, rows in (([], None), (["--batch-tile", "8"], 8)):
        with files.staging(copy, start_from=compiled.bundle):
            pass
        result = CliRunner().invoke(app, ["compile", str(copy), "--data-tiling", "off", *options])
        assert result.exit_code == 0, result.output
        target = files.verify(copy).target("cpu")
        assert target is not None
        assert (target.batch.rows if target.batch else None) == rows
        assert (copy / "cpu" / "iree" / "batch.vmfb").exists() == (rows is not None)
        model = Model.load(copy)
        requests = [compiled.model.request(n, seed=n) for n in (9, 30)]
        for found, features in zip(model.predict_batch(requests), requests, strict=True):
            for name, value in model.predict(features).items():
                np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)
        model.close()


@given(
    st.lists(st.integers(0, 70), min_size=1, max_size=12).filter(any), st.integers(1, 40), st.integers(1, 5)
)
def test_tiles_hold_every_candidate_once(counts: list[int], rows: int, streams: int) -> None:
    rng = np.random.default_rng(0)
    blocks = [rng.normal(size=(n, 3)).astype(np.float32) for n in counts]
    tiles = tiled(blocks, rows)
    for (back,), block in zip(of_tiles([tiles.blocks], tiles), blocks, strict=True):
        np.testing.assert_array_equal(back, block)
    flat = np.concatenate([tiles.blocks.reshape(-1, 3), np.zeros((1, 3), np.float32)])
    assert np.count_nonzero(flat.any(axis=1)) == sum(counts)
    assert np.bincount(tiles.owner, minlength=len(counts)).tolist() == [-(-n // rows) for n in counts]
    division = shares(tiles, streams)
    assert 1 <= len(division) <= streams
    assert all(division)
    tile_numbers = [t for ranges in division for start, stop in ranges for t in range(start, stop)]
    assert tile_numbers == list(range(len(tiles.owner)))
