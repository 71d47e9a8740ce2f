"""The same bundle on a Vulkan device: Mesa's software one where there is no GPU."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jaxrank import bundle as files
from tests import models

_HAS_DEVICE = (
    "import iree.runtime as rt, sys; sys.exit(not rt.get_driver('vulkan').query_available_devices())"
)

# Mesa's LLVM and TensorFlow's do not live in one process, so the model runs in one of its own.
_PREDICT = """
import sys
import numpy as np
from pathlib import Path
from serving.model import Model

model = Model.load(Path(sys.argv[1]), target="vulkan")
for request in sorted(Path(sys.argv[2]).glob("*.in.npz")):
    with np.load(request) as stored:
        features = {k: v.astype(object) if v.dtype.kind == "S" else v for k, v in stored.items()}
    np.savez(request.with_name(request.name.replace(".in.", ".out.")), **model.predict(features))
model.close()
"""


def _has_device() -> bool:
    return (
        subprocess.run([sys.executable, "-c", _HAS_DEVICE], capture_output=True, timeout=60).returncode == 0
    )


@pytest.fixture(scope="module")
def vulkan_device() -> None:
    """A Vulkan device; Debian's software driver is installed when this runs as root on a machine that has
    none."""
    if _has_device():
        return
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip(
            "no Vulkan device; install mesa-vulkan-drivers (this run is not root on Debian, so it cannot)"
        )
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(["apt-get", "update", "-qq"], env=environment, check=True)
    packages = ["mesa-vulkan-drivers", "libvulkan1"]
    subprocess.run(
        ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], env=environment, check=True
    )
    assert _has_device(), "mesa-vulkan-drivers is installed, but there is no Vulkan device"


def test_scores_are_tensorflows(
    vulkan_device: None,
    ranker_bundle: Path,
    ranker_saved_model: Path,
    ranker_requests: Callable,
    tmp_path: Path,
) -> None:
    """1e-5: float32 sums in another order. The memory that one request was staged in grows for the next, and
    holds what a larger one left when a smaller one comes."""
    requests = [ranker_requests(rows, seed) for seed, rows in enumerate((7, 300, 1, 299, 5000, 2))]
    for i, features in enumerate(requests):
        np.savez(tmp_path / f"{i}.in.npz", **models.as_npz(features))
    arguments = [ranker_bundle, tmp_path]
    subprocess.run([sys.executable, "-c", _PREDICT, *map(str, arguments)], check=True, timeout=120)
    for i, features in enumerate(requests):
        with np.load(tmp_path / f"{i}.out.npz") as found:
            for name, expected in models.tensorflow_outputs(ranker_saved_model, features).items():
                np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-5)


_WITH_CACHING_ALLOCATOR = """
import sys
from pathlib import Path
import iree.runtime as rt
import numpy as np

instance = rt.VmInstance()
device = rt.get_driver("vulkan").create_default_device(allocators=["caching"])
module = rt.VmModule.mmap(instance, sys.argv[1])
context = rt.VmContext(instance, modules=[rt.create_hal_module(instance, device), module])
function = rt.FunctionInvoker(context, device, module.lookup_function("request_tower"))
function(np.zeros((1, int(sys.argv[2])), np.float32))
"""


def _works(code: str, *arguments: object) -> bool:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_the_caching_allocator_still_fails(vulkan_device: None, ranker_bundle: Path) -> None:
    """When this fails, `serving/engines/streams.py` can use the caching allocator on every device."""
    width = files.read_host_program(ranker_bundle).width("request")
    module = ranker_bundle / "vulkan" / "iree" / "dense.vmfb"
    assert module.is_file()
    assert not _works(_WITH_CACHING_ALLOCATOR, module, width)
