"""Models and bundles that many tests share; each is made once for a test run."""

import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# What XLA compiled in this run and in earlier ones; for the commands that tests start, too.
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.abspath(f"{__file__}/../../.cache/jax")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from examples.movielens import data as movielens
from tests import compiled, jemalloc_library, models
from tests.shared import Once, one_process_at_a_time

CACHE = Path(__file__).parent.parent / ".cache"


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a directory for all processes of this run."""
    return Once(tmp_path_factory)


@pytest.fixture(scope="session", autouse=True)
def modules_compiled_once(once: Once) -> Iterator[None]:
    """`tests/compiled.py`; `compiled.replaced()` is the compiler itself again."""
    with compiled.kept_in(once("modules", lambda directory: None)):
        yield


@pytest.fixture(scope="session")
def movielens_dir() -> Path:
    """Directory with the MovieLens 100k files."""
    with one_process_at_a_time(CACHE, "movielens"):
        return movielens.fetch(CACHE)


@pytest.fixture(scope="session")
def jemalloc() -> Path:
    """The real libjemalloc, downloaded where the machine has none."""
    with one_process_at_a_time(CACHE, "jemalloc"):
        return jemalloc_library.library(CACHE / "jemalloc").absolute()


@pytest.fixture(scope="session")
def client_packages() -> Path:
    """`tensorflow-serving-api` in a directory of its own; it finds TensorFlow and gRPC in the test
    environment."""
    target = CACHE / "tensorflow-serving-api"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    with one_process_at_a_time(CACHE, "tensorflow-serving-api"):
        if not (target / "tensorflow_serving").is_dir():
            subprocess.run([*command, "tensorflow-serving-api==2.20.0"], check=True)
    return target


@pytest.fixture(scope="session")
def triton_packages() -> Path:
    """`tritonclient` for gRPC and HTTP in a directory of its own; it finds gRPC and NumPy in the test
    environment."""
    target = CACHE / "tritonclient"
    http = ["python-rapidjson", "geventhttpclient", "gevent", "greenlet", "zope.event", "zope.interface"]
    packages = ["tritonclient==2.73.0", *http, "brotli", "certifi", "urllib3"]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
    with one_process_at_a_time(CACHE, "tritonclient"):
        if not (target / "tritonclient").is_dir():
            subprocess.run([*command, *packages], check=True)
    return target


@pytest.fixture(scope="session")
def ranker_saved_model(once: Once) -> Path:
    """SavedModel of `models.save_ranker`: strings, ints and floats, one user row and N item rows."""
    return once("ranker", lambda d: models.save_ranker(d / "saved_model")) / "saved_model"


@pytest.fixture(scope="session")
def ranker_requests() -> Callable[[int, int], dict[str, np.ndarray]]:
    """`(candidates, seed) -> raw features` for the ranker."""
    return models.ranker_request


@pytest.fixture(scope="session")
def ranker_bundle(ranker_saved_model: Path, once: Once) -> Path:
    """The ranker converted and compiled for the CPU, CUDA and Vulkan. Read-only: copy it to change it."""
    from converters.convert import convert
    from mlir_pipeline.compile import compile_bundle

    def build(directory: Path) -> None:
        convert(ranker_saved_model, directory / "ranker")
        compile_bundle(directory / "ranker", ["cpu", "cuda:sm_80", "vulkan"])

    return once("ranker_bundle", build) / "ranker"


@pytest.fixture(scope="session")
def example_models(once: Once) -> Path:
    """A directory with the SavedModels `classifier`, `regressor` and `half_plus_three`, and their bundles in
    `models/`."""
    from converters.convert import convert
    from mlir_pipeline.compile import compile_bundle

    def build(path: Path) -> None:
        models.save_classifier(path / "classifier")
        models.save_regressor(path / "regressor")
        models.save_half_plus_three(path / "half_plus_three")
        for name in ("classifier", "regressor", "half_plus_three"):
            convert(path / name, path / "models" / name / "1")
            compile_bundle(path / "models" / name / "1", ["cpu"])

    return once("examples", build)
