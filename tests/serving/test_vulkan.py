"""The same bundle on a Vulkan device: Mesa's software one where there is no GPU."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import iree.runtime as rt
import numpy as np
import pytest

from serving.model import Model
from tests import models


def _has_device() -> bool:
    try:
        return bool(rt.get_driver("vulkan").query_available_devices())
    except (RuntimeError, ValueError):
        return False


@pytest.fixture(scope="module")
def vulkan_device() -> None:
    """A Vulkan device; Debian's software driver is installed when this runs as root on a machine that has none."""
    if _has_device():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("no Vulkan device; install mesa-vulkan-drivers (this run is not root on Debian, so it cannot)")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=True)
    packages = ["mesa-vulkan-drivers", "libvulkan1"]
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], env=environment, check=True)


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_scores_are_tensorflows(
    vulkan_device: None, ranker_bundle: Path, ranker_saved_model: Path, ranker_requests: Callable, rows: int
) -> None:
    """1e-5: float32 sums in another order, and the device's own exp."""
    model = Model.load(ranker_bundle, target="vulkan")
    features = ranker_requests(rows, rows)
    found = model.predict(features)
    model.close()
    for name, expected in models.tensorflow_outputs(ranker_saved_model, features).items():
        np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)
