"""Models and bundles that many tests share; each is made once for a test run."""

import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from examples.movielens import data as movielens
from tests import models

CACHE = Path(__file__).parent.parent / ".cache"


@pytest.fixture(scope="session")
def movielens_dir() -> Path:
    """Directory with the MovieLens 100k files."""
    return movielens.fetch(CACHE)


@pytest.fixture(scope="session")
def client_packages() -> Path:
    """`tensorflow-serving-api` in a directory of its own; it finds TensorFlow and gRPC in the test
    environment."""
    target = CACHE / "tensorflow-serving-api"
    if not (target / "tensorflow_serving").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        subprocess.run([*command, "tensorflow-serving-api==2.20.0"], check=True)
    return target


@pytest.fixture(scope="session")
def ranker_saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """SavedModel of `models.save_ranker`: strings, ints and floats, one user row and N item rows."""
    path = tmp_path_factory.mktemp("ranker") / "saved_model"
    models.save_ranker(path)
    return path


@pytest.fixture(scope="session")
def ranker_requests() -> Callable[[int, int], dict[str, np.ndarray]]:
    """`(candidates, seed) -> raw features` for the ranker."""
    return models.ranker_request


@pytest.fixture(scope="session")
def ranker_bundle(ranker_saved_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ranker converted and compiled for the CPU, CUDA and Vulkan. Read-only: copy it to change it."""
    from converters.convert import convert
    from mlir_pipeline.compile import compile_bundle

    bundle = tmp_path_factory.mktemp("bundles") / "ranker"
    convert(ranker_saved_model, bundle)
    compile_bundle(bundle, ["cpu", "cuda:sm_80", "vulkan"])
    return bundle
