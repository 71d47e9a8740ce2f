"""What every engine promises, held by the same tests: TensorFlow's scores, arrays that are the caller's own,
calls from many threads, and errors that name the file."""

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
import pytest
import tensorflow as tf

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest
from mlir_pipeline.compile import compile_bundle
from mlir_pipeline.errors import CompileError
from serving.engines import ScheduledEngine, StatefulEngine, StreamSchedulers, load_engine
from serving.errors import DeadlineError, InvalidRequestError
from serving.host import HostProgramRunner
from serving.model import Model
from serving.scheduling import Urgency
from serving.validation import decode_inputs
from serving.wire.codec import encode_content
from tests.shared import Once
from tests.zoo import ZOO, ZooModel
from tests.zoo.converted import convert_once

pytestmark = pytest.mark.filterwarnings("ignore")

ENGINES = ("iree", "onnxruntime", "xla")

# With state, without, several outputs, integers as bits, gathers, and candidates that are mixed.
MODELS = ("wide_deep", "fm", "mmoe", "dlrm", "list_context")

REFUSED = {("xla", "list_context"): "can be neither cut nor padded"}
"""Engines that do not take a model, and what they say."""

TAKEN = [(e, m) for m in MODELS for e in ENGINES if (e, m) not in REFUSED]

# For what depends on the engine and not on the model.
ONE_MODEL = "fm"


@dataclass(frozen=True)
class Compiled:
    """A zoo model and its bundle, compiled for every engine that takes it."""

    model: ZooModel
    path: Path
    bundle: Path
    manifest: Manifest


@dataclass(frozen=True)
class Loaded:
    """A compiled bundle on one engine."""

    source: Compiled
    model: Model


Compile = Callable[[str], Compiled]


@pytest.fixture(scope="module")
def compiled(once: Once) -> Compile:
    """A zoo model by name, compiled when it is first asked for. Read-only."""

    def compiled(name: str) -> Compiled:
        source = convert_once(next(m for m in ZOO if m.name == name), once)

        def build(directory: Path) -> None:
            shutil.copytree(source.bundle, directory / "bundle")
            takes = [e for e in ENGINES if (e, name) not in REFUSED]
            compile_bundle(directory / "bundle", ["cpu"], engines=takes)
            jax.clear_caches()

        bundle = once(f"engines-{name}", build) / "bundle"
        return Compiled(source.model, source.path, bundle, files.read_manifest(bundle))

    return compiled


@pytest.fixture(scope="module", params=TAKEN, ids="-".join)
def loaded(request: pytest.FixtureRequest, compiled: Compile) -> Iterator[Loaded]:
    """Every model on each engine that takes it, in turn."""
    engine, name = request.param
    source = compiled(name)
    model = Model.load(source.bundle, engine=engine, streams=2)
    yield Loaded(source, model)
    model.close()


def test_scores_are_tensorflows(loaded: Loaded) -> None:
    """The tolerance is the model's: absolute up to 1, relative beyond."""
    zoo = loaded.source.model
    for rows in (1, 7, 50, 400):
        features = zoo.request(rows, seed=4000 + rows)
        found = loaded.model.predict(features)
        for name, expected in zoo.reference(loaded.source.path, features).items():
            assert (found[name].shape, found[name].dtype) == (expected.shape, expected.dtype), name
            if expected.dtype == object:
                assert (found[name] == expected).all()
                continue
            scale = np.maximum(np.abs(expected), 1.0)
            error = np.abs(found[name].astype(np.float64) - expected) / scale
            assert error.max() <= zoo.tolerance, f"{name} at {rows} rows"


def test_no_candidates_give_no_rows(loaded: Loaded) -> None:
    """What TensorFlow answers: outputs of 0 rows. Where a reshape of the model has no size to infer from,
    TensorFlow raises, and so does the host program, which has that reshape."""
    zoo = loaded.source.model
    features = zoo.request(0, seed=1)
    try:
        expected = zoo.reference(loaded.source.path, features)
    except tf.errors.InvalidArgumentError as error:
        assert zoo.name == "wide_deep" and "reshape" in str(error).lower()
        with pytest.raises(InvalidRequestError, match="reshape of"):
            loaded.model.predict(features)
        return
    answers = [loaded.model.predict(features), *loaded.model.predict_batch([features])]
    answers.append(loaded.model.predict_batch([zoo.request(3, seed=2), features, zoo.request(2, seed=3)])[1])
    for found in answers:
        assert {n: (v.shape, v.dtype) for n, v in found.items()} == {
            n: (v.shape, v.dtype) for n, v in expected.items()
        }
    # And the next request is not disturbed.
    after = loaded.model.predict_batch([zoo.request(3, seed=2), features])[0]
    for name, value in loaded.model.predict(zoo.request(3, seed=2)).items():
        np.testing.assert_allclose(after[name], value, rtol=1e-6, atol=1e-6)


def test_outputs_are_the_callers_own(loaded: Loaded) -> None:
    """Neither writing to a result nor another call changes what a call gave; nor does it change the next."""
    first, second = (loaded.source.model.request(300, seed=s) for s in (1, 2))
    kept = loaded.model.predict(first)
    copies = {name: value.copy() for name, value in kept.items()}
    loaded.model.predict(second)
    for name, value in kept.items():
        np.testing.assert_array_equal(value, copies[name])
        if value.dtype != object:
            value.fill(7)
    for name, value in loaded.model.predict(first).items():
        np.testing.assert_array_equal(value, copies[name])


def test_a_state_that_is_known_gives_the_same_bits(loaded: Loaded) -> None:
    """It is what the same program made of the same block; all slices of a request may use it."""
    engine = loaded.model._engine
    assert isinstance(engine, StatefulEngine)
    for rows in (1, 400):
        blocks = loaded.model._host.run(loaded.source.model.request(rows, seed=rows))
        state = engine.prepare(blocks.request)
        assert len(state) == len(loaded.source.manifest.state)
        assert sum(value.nbytes for value in state) > 0 or not state
        for _ in range(2):
            known = engine.run(dataclasses.replace(blocks, state=state))
            for found, expected in zip(known, engine.run(blocks), strict=True):
                np.testing.assert_array_equal(found, expected)


def test_calls_from_many_threads_give_the_same(loaded: Loaded) -> None:
    """Up to the order of float32 sums: requests that wait may share a call, which has other tiles."""
    requests = [loaded.source.model.request(40 + 70 * i, seed=i) for i in range(8)]
    alone = [loaded.model.predict(r) for r in requests]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for found, expected in zip(pool.map(loaded.model.predict, requests), alone, strict=True):
                for name, value in expected.items():
                    if value.dtype == object:
                        assert (found[name] == value).all()
                    else:
                        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("engine", ENGINES)
def test_close_ends(compiled: Compile, engine: str) -> None:
    """It waits for calls that run, which give their scores; a call after it is an error."""
    source = compiled(ONE_MODEL)
    model = Model.load(source.bundle, engine=engine)
    request = source.model.request(400, seed=1)
    expected, started = model.predict(request), threading.Barrier(5)

    def use() -> None:
        started.wait()
        while True:
            for name, value in model.predict(request).items():
                np.testing.assert_array_equal(value, expected[name])

    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(use) for _ in range(4)]
        started.wait()
        model.close()
        for call in calls:
            with pytest.raises(RuntimeError, match="^the engine is closed$"):
                call.result(timeout=20)


@pytest.mark.parametrize(("engine", "name"), REFUSED)
def test_what_an_engine_does_not_take(compiled: Compile, engine: str, name: str) -> None:
    """It is an error with the reason, and the bundle keeps the programs of the others."""
    source = compiled(name)
    with pytest.raises(CompileError, match=REFUSED[engine, name]):
        compile_bundle(source.bundle, ["cpu"], engines=[engine])
    assert files.verify(source.bundle).targets == source.manifest.targets


@pytest.mark.parametrize("name", MODELS)
def test_more_candidates_than_compiled_for(compiled: Compile, name: str) -> None:
    """The server asks before any engine sees the request."""
    source = compiled(name)
    limit = source.manifest.max_candidates
    features = source.model.request(limit + 1, seed=1)
    tensors = {name: encode_content(value) for name, value in features.items()}
    with pytest.raises(InvalidRequestError, match=f"{limit:,}|{limit}"):
        decode_inputs(tensors, source.manifest.signature, limit)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_damaged_program_is_named(compiled: Compile, engine: str, tmp_path: Path) -> None:
    """By `Model.load`, which checks every sha256, and by the engine itself for bytes that do not parse."""
    source = compiled(ONE_MODEL)
    target = source.manifest.target("cpu", engine)
    assert target is not None
    programs = [p for p in source.manifest.files if p.startswith(str(Path(target.module).parent))]
    wanted = {"iree": ".vmfb", "onnxruntime": ".onnx", "xla": ".jax"}[engine]
    damaged = [p for p in programs if p.endswith(wanted)]
    assert damaged
    for program in damaged:
        bundle = tmp_path / program.replace("/", "-")
        shutil.copytree(source.bundle, bundle)
        (bundle / program).write_bytes(b"\x08garbage" * 40)
        with pytest.raises(BundleError, match=Path(program).name):
            Model.load(bundle, engine=engine)
        with pytest.raises(BundleError, match=Path(program).name):
            load_engine(bundle, source.manifest, target)


@pytest.mark.parametrize("engine", ENGINES)
def test_what_a_bundle_is_not_compiled_for(compiled: Compile, engine: str) -> None:
    with pytest.raises(BundleError, match="not compiled for 'vulkan' with .*it has: cpu with"):
        Model.load(compiled(ONE_MODEL).bundle, target="vulkan", engine=engine)


def test_engines_share_the_streams_of_a_cpu(compiled: Compile) -> None:
    """So requests of both wait in one order, and each knows what the other took."""
    source, schedulers = compiled(ONE_MODEL), StreamSchedulers(2)
    blocks = HostProgramRunner(source.bundle, source.manifest).run(source.model.request(50, seed=1))
    loads = []
    for name in ("iree", "onnxruntime"):
        target = source.manifest.target("cpu", name)
        assert target is not None
        engine = load_engine(source.bundle, source.manifest, target, scheduler=schedulers.of(target))
        assert isinstance(engine, ScheduledEngine)
        with pytest.raises(DeadlineError):
            engine.run(blocks, Urgency.within(-1.0))
        engine.run(blocks)
        loads.append(engine.stream_load())
        engine.close()
    assert list(schedulers.loads()) == ["cpu"]
    assert [load.started for load in loads] == [1, 1] and loads[0].own_seconds > 0
    assert loads[1].all_seconds == pytest.approx(loads[0].own_seconds + loads[1].own_seconds)
    schedulers.close()
