"""A serving host has no TensorFlow, no JAX and no engine but IREE: nothing of them is loaded by importing or
running the server."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from tests import models

_SCRIPT = """
import pkgutil, sys, importlib, importlib.abc
from pathlib import Path

HEAVY = (
    "tensorflow", "jax", "jaxlib", "flax", "keras", "tf2onnx", "onnx", "onnxruntime", "openvino",
    "iree.compiler", "safetensors", "matplotlib", "converters", "mlir_pipeline",
)

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if any(name == h or name.startswith(h + ".") for h in HEAVY):
            raise ImportError(f"serving imported {name}")

sys.meta_path.insert(0, Refuse())
import numpy as np
import serving
for module in pkgutil.walk_packages(serving.__path__, "serving."):
    importlib.import_module(module.name)
engines = {f"serving.engines.{name}" for name in ("iree", "onnxruntime", "xla")}
assert engines <= set(sys.modules), engines - set(sys.modules)
from serving.client import PredictClient
from serving.grpc_server import Server, ServerOptions

server = Server(ServerOptions(models=Path(sys.argv[1]), host="127.0.0.1", port=0))
with np.load(sys.argv[2]) as stored:
    features = {k: v.astype(object) if v.dtype.kind == "S" else v for k, v in stored.items()}
outputs = PredictClient(server.address).predict("ranker", features)
server.stop()
np.savez(sys.argv[3], **outputs)
loaded = [m for m in sys.modules if any(m == h or m.startswith(h + ".") for h in HEAVY)]
assert not loaded, loaded
import jaxrank.cli
"""


def test_serving_without_tensorflow_and_jax(
    ranker_bundle: Path, ranker_saved_model: Path, tmp_path: Path
) -> None:
    """A process in which importing them is an error gives TensorFlow's scores."""
    (tmp_path / "models" / "ranker").mkdir(parents=True)
    (tmp_path / "models" / "ranker" / "1").symlink_to(ranker_bundle)
    features = models.ranker_request(50, 8)
    np.savez(tmp_path / "in.npz", **models.as_npz(features))
    arguments = [tmp_path / "models", tmp_path / "in.npz", tmp_path / "out.npz"]
    subprocess.run([sys.executable, "-c", _SCRIPT, *map(str, arguments)], check=True, timeout=120)
    expected = models.tensorflow_outputs(ranker_saved_model, features)
    with np.load(tmp_path / "out.npz") as found:
        for name, value in expected.items():
            np.testing.assert_allclose(found[name], value, rtol=0, atol=1e-5)
