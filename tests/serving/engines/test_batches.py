"""Many requests in one call give each request's own scores: TensorFlow's, and those that `run` gives."""

import dataclasses
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

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
from tests.shared import Once
from tests.zoo import ZOO, ZooModel
from tests.zoo.converted import convert_once

pytestmark = pytest.mark.filterwarnings("ignore")

WITH_PROGRAM = ("din", "fm")
WITHOUT = ("dlrm", "list_context")
"""One whose candidates are rows of one block, and one whose candidates are mixed."""
MIXED = "list_context"
ONE_MODEL = "fm"

PROGRAMS = [(name, "chosen") for name in WITH_PROGRAM + WITHOUT] + [(name, "tiles") for name in WITH_PROGRAM]
"""Every model as it serves, and where it can be with every request in tiles, which those of many candidates
are not."""
ROW_WISE = [(name, how) for name, how in PROGRAMS if name != MIXED]
ONLY = {"chosen": None, "tiles": CANDIDATE_TILES}


@dataclass(frozen=True)
class Compiled:
    """A zoo model and its bundle, compiled with a program for many requests where it can have one."""

    model: ZooModel
    path: Path
    bundle: Path
    manifest: Manifest


@dataclass(frozen=True)
class Opened:
    """A compiled bundle on the engine."""

    source: Compiled
    engine: IreeEngine


Compile = Callable[[str], Compiled]


@pytest.fixture(scope="module")
def compiled(once: Once) -> Compile:
    """A zoo model by name, compiled when it is first asked for. Read-only."""

    def compiled(name: str) -> Compiled:
        source = convert_once(next(m for m in ZOO if m.name == name), once)

        def build(directory: Path) -> None:
            shutil.copytree(source.bundle, directory / "bundle")
            compile_bundle(directory / "bundle", ["cpu"], data_tiling=False, batch_tile=16)
            jax.clear_caches()

        bundle = once(f"batches-{name}", build) / "bundle"
        return Compiled(source.model, source.path, bundle, files.read_manifest(bundle))

    return compiled


@pytest.fixture(scope="module", params=PROGRAMS, ids="-".join)
def opened(request: pytest.FixtureRequest, compiled: Compile) -> Iterator[Opened]:
    name, how = request.param
    source = compiled(name)
    target = source.manifest.target("cpu")
    assert target is not None
    engine = IreeEngine(source.bundle, source.manifest, target, streams=2, only=ONLY[how])
    yield Opened(source, engine)
    engine.close()


def _blocks(compiled: Compiled, sizes: Sequence[int], seed: int = 0) -> list[FeatureBlocks]:
    host = HostProgramRunner(compiled.bundle, compiled.manifest)
    return [host.run(compiled.model.request(n, seed=seed + i)) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("name", WITH_PROGRAM + WITHOUT)
def test_which_models_have_a_program(compiled: Compile, name: str) -> None:
    source = compiled(name)
    target = source.manifest.target("cpu")
    assert target is not None
    module = source.bundle / "cpu" / "iree" / "batch.vmfb"
    assert (target.batch is not None) == module.exists() == (name in WITH_PROGRAM)
    if target.batch is not None:
        assert (target.batch.function, target.batch.rows) == ("candidate_tiles", 16)
        assert str(module.relative_to(source.bundle)) in target.modules
        assert files.verify(source.bundle).files.keys() >= set(target.modules)
    mixed = any("all candidates of a request at once" in note for note in target.notes)
    assert mixed == (not source.model.row_wise) == (name == MIXED)


@pytest.mark.parametrize(("name", "how"), PROGRAMS)
def test_scores_are_tensorflows(compiled: Compile, name: str, how: str) -> None:
    """The tolerance is the model's: absolute up to 1, relative beyond."""
    source = compiled(name)
    model = Model.load(source.bundle, streams=2, only=ONLY[how])
    for sizes in ((1,), (1, 200), (16, 17, 15, 32, 1), (200, 3, 77, 120, 1, 64, 8)):
        requests = [source.model.request(n, seed=7000 + 10 * n + i) for i, n in enumerate(sizes)]
        for features, found in zip(requests, model.predict_batch(requests), strict=True):
            expected = source.model.reference(source.path, features)
            assert found.keys() == expected.keys()
            for output, value in expected.items():
                assert (found[output].shape, found[output].dtype) == (value.shape, value.dtype), output
                error = np.abs(found[output].astype(np.float64) - value) / np.maximum(np.abs(value), 1.0)
                assert error.max() <= source.model.tolerance, f"{output} of {sizes}"
    model.close()


# Requests of the model that mixes candidates run one by one: a few are enough.
COUNTS = {True: (1, 2, 5, 23, MAX_REQUESTS), False: (1, 2, 5)}


@pytest.mark.parametrize(
    ("opened", "count"),
    [(program, count) for program in PROGRAMS for count in COUNTS[program[0] != MIXED]],
    indirect=["opened"],
)
def test_scores_are_those_of_single_requests(opened: Opened, count: int) -> None:
    """1e-6 of the value: float32 sums in another order."""
    engine = opened.engine
    rng = np.random.default_rng(count)
    sizes = rng.integers(1, rng.choice([33, 201], count)).tolist()
    requests = _blocks(opened.source, sizes, seed=count)
    for blocks, found in zip(requests, engine.run_batch(requests), strict=True):
        for value, expected in zip(found, engine.run(blocks), strict=True):
            assert (value.shape, value.dtype) == (expected.shape, expected.dtype)
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_some_states_are_known(opened: Opened) -> None:
    """What shares a call with others may come with its state or without."""
    engine = opened.engine
    requests = _blocks(opened.source, [5, 30, 1, 17])
    for known in ((0, 2), (0, 1, 2, 3)):
        mixed = [
            dataclasses.replace(blocks, state=engine.prepare(blocks.request)) if i in known else blocks
            for i, blocks in enumerate(requests)
        ]
        for found, expected in zip(engine.run_batch(mixed), engine.run_batch(requests), strict=True):
            for value, wanted in zip(found, expected, strict=True):
                np.testing.assert_allclose(value, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("opened", ROW_WISE, indirect=True)
def test_requests_without_candidates(opened: Opened) -> None:
    """The model that normalizes over candidates has no program for none: `Model` answers for it."""
    engine = opened.engine
    some = _blocks(opened.source, [3, 5, 2])
    none = FeatureBlocks(some[1].request, some[1].candidate[:0], {})
    first, empty, last = engine.run_batch([some[0], none, some[2]])
    assert {len(value) for value in empty} == {0}
    for found, blocks in ((first, some[0]), (last, some[2])):
        for value, expected in zip(found, engine.run(blocks), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)


def test_outputs_are_the_callers_own(opened: Opened) -> None:
    engine = opened.engine
    requests = _blocks(opened.source, [20, 3, 40])
    found = engine.run_batch(requests)
    copies = [[value.copy() for value in each] for each in found]
    engine.run_batch(_blocks(opened.source, [9, 30, 2], seed=50))
    found[0][0].fill(7)
    for value, copy in zip(found[1] + found[2], copies[1] + copies[2], strict=True):
        np.testing.assert_array_equal(value, copy)
        assert value.base is None
    for value, copy in zip(engine.run_batch(requests)[0], copies[0], strict=True):
        np.testing.assert_array_equal(value, copy)


@pytest.mark.parametrize("count", [0, MAX_REQUESTS + 1])
@pytest.mark.parametrize("opened", [p for p in PROGRAMS if p[0] == ONE_MODEL], indirect=True)
def test_batches_that_are_refused(opened: Opened, count: int) -> None:
    with pytest.raises(ValueError, match=f"1 to 64 requests, this one has {count}"):
        opened.engine.run_batch(_blocks(opened.source, [1]) * count)


def test_the_command_line(compiled: Compile) -> None:
    """Without --batch-tile a bundle has no program, and its requests run one by one."""
    source = compiled(ONE_MODEL)
    inspected = CliRunner().invoke(app, ["inspect", str(source.bundle)])
    assert "many requests in tiles of 16" in inspected.output
    copy = source.bundle.with_name("copy")
    for options, rows in (([], None), (["--batch-tile", "8"], 8)):
        with files.staging(copy, start_from=source.bundle):
            pass
        result = CliRunner().invoke(app, ["compile", str(copy), "--data-tiling", "off", *options])
        assert result.exit_code == 0, result.output
        target = files.verify(copy).target("cpu")
        assert target is not None
        assert (target.batch.rows if target.batch else None) == rows
        assert (copy / "cpu" / "iree" / "batch.vmfb").exists() == (rows is not None)
        model = Model.load(copy)
        requests = [source.model.request(n, seed=n) for n in (9, 30)]
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
