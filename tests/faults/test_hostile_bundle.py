"""Nothing of a bundle is run as Python, whatever its files are."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from tests import models
from tests.faults.test_bundles import _copy

_SCRIPT = """
import os, sys
from pathlib import Path

bundle = os.path.realpath(sys.argv[1]) + "/"
told = []

def hook(event, arguments):
    if event in ("compile", "exec"):
        name = getattr(arguments[0], "co_filename", None) or str(arguments[1] if len(arguments) > 1 else "")
        if os.path.realpath(name).startswith(bundle):
            told.append((event, name))
    elif event == "import" and "model" in sys.argv[1:] and arguments[0] == "model":
        told.append((event, arguments[0]))
    elif event == "pickle.find_class" or event == "open" and str(arguments[0]).endswith("model.py"):
        told.append((event, *map(str, arguments)))

import numpy as np
from serving.client import PredictClient
from serving.grpc_server import Server, ServerOptions

sys.path.insert(0, bundle)
sys.addaudithook(hook)
server = Server(ServerOptions(models=Path(sys.argv[1]).parents[1], host="127.0.0.1", port=0))
with np.load(sys.argv[2]) as stored:
    features = {k: v.astype(object) if v.dtype.kind == "S" else v for k, v in stored.items()}
served = server.repository.loaded()
if served:
    PredictClient(server.address).predict("ranker", features)
server.stop()
print(served, [t for t in told if t[0] != "open"])
"""


class _Bomb:
    """Says so when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def _serve(bundle: Path, tmp_path: Path) -> str:
    features = {k: v.astype("S") if v.dtype == object else v for k, v in models.ranker_request(6, 3).items()}
    np.savez(tmp_path / "in.npz", **features)
    command = [sys.executable, "-c", _SCRIPT, str(bundle), str(tmp_path / "in.npz")]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.strip()


def test_a_bundle_is_data(ranker_bundle: Path, tmp_path: Path) -> None:
    """Its model.py would leave a mark when it runs, and an array of it is a pickle: both with digests that
    fit. The first bundle is served and its model.py is not run; the second one is refused."""
    mark = tmp_path / "mark"
    bundle = _copy(ranker_bundle, tmp_path / "a" / "ranker" / "1")
    (bundle / files.MODEL).unlink()
    (bundle / files.MODEL).write_text(f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n")
    files.write_manifest(bundle, files.read_manifest(ranker_bundle))
    assert _serve(bundle, tmp_path) == "{'ranker': 1} []"

    bundle = _copy(ranker_bundle, tmp_path / "b" / "ranker" / "1")
    array = next(bundle.rglob("*.values.npy"))
    array.unlink()
    np.save(array, np.array([_Bomb(mark)], object), allow_pickle=True)
    files.write_manifest(bundle, files.read_manifest(ranker_bundle))
    assert _serve(bundle, tmp_path) == "{} []"
    assert not mark.exists()
