"""Which engines there are, how another distribution adds one, and what is said where a library is missing."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from mlir_pipeline.compile import compile_bundle
from mlir_pipeline.engines import parse_engines
from mlir_pipeline.engines.measure import SLICE_ROWS
from mlir_pipeline.errors import CompileError
from serving.engines import engine_names, load_engine
from serving.engines.xla import cover
from serving.host.program import FeatureBlocks
from serving.model import Model

_OTHER = """
import numpy as np
from msgspec.structs import replace

class Zeros:
    streams = 1
    def __init__(self, bundle, manifest, target, *, streams=None):
        self.outputs = len(manifest.signature.outputs)
    def run(self, blocks):
        return [np.zeros(len(blocks.candidate), np.float32) for _ in range(self.outputs)]
    def close(self):
        pass
"""


@pytest.fixture
def other_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed distribution with the engine `zeros`, and one whose module does not import."""
    (tmp_path / "other_engine.py").write_text(_OTHER)
    metadata = tmp_path / "other_engine-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: other-engine\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(
        "[jaxrank.engines]\nzeros = other_engine:Zeros\nbroken = other_engine_missing:Engine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


def test_another_distributions_engine(other_distribution: None, ranker_bundle: Path) -> None:
    assert {"iree", "onnxruntime", "xla", "zeros"} <= set(engine_names())
    manifest = files.read_manifest(ranker_bundle)
    target = manifest.target("cpu")
    assert target is not None
    engine = load_engine(ranker_bundle, manifest, replace(target, engine="zeros"))
    blocks = FeatureBlocks(np.zeros((1, 3), np.float32), np.zeros((4, 2), np.float32), {})
    assert [o.shape for o in engine.run(blocks)] == [(4,)] * len(manifest.signature.outputs)
    with pytest.raises(BundleError, match="engine 'broken' of other_engine_missing:Engine does not load"):
        load_engine(ranker_bundle, manifest, replace(target, engine="broken"))


def test_an_unknown_engine_lists_those_installed(ranker_bundle: Path) -> None:
    manifest = files.read_manifest(ranker_bundle)
    target = manifest.target("cpu")
    assert target is not None
    with pytest.raises(BundleError, match="engine 'tvm'; installed engines are: iree, onnxruntime, xla"):
        load_engine(ranker_bundle, manifest, replace(target, engine="tvm"))
    with pytest.raises(CompileError, match="no engine 'tvm'; engines are: auto, iree, onnxruntime, xla"):
        parse_engines("iree,tvm")


def test_targets_that_an_engine_does_not_have(ranker_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(ranker_bundle, bundle)
    for engine in ("onnxruntime", "xla"):
        with pytest.raises(CompileError, match="'vulkan'; its targets are cpu and cuda"):
            compile_bundle(bundle, ["vulkan"], engines=[engine])
    manifest = compile_bundle(bundle, ["cuda:sm_80"], engines=["onnxruntime", "xla"])
    assert {t.engine for t in manifest.targets if t.name == "cuda:sm_80"} == {"iree", "onnxruntime", "xla"}
    with pytest.raises(BundleError, match="CUDAExecutionProvider.*install onnxruntime-gpu"):
        Model.load(bundle, target="cuda:sm_80", engine="onnxruntime")
    with pytest.raises(BundleError, match="needs a PJRT device 'cuda'"):
        Model.load(bundle, target="cuda:sm_80", engine="xla")


@pytest.mark.parametrize(("engine", "library"), [("xla", "jax"), ("onnxruntime", "onnxruntime")])
def test_a_missing_library_names_the_extra(
    ranker_bundle: Path, tmp_path: Path, engine: str, library: str
) -> None:
    """In a process in which the library cannot be imported."""
    bundle = tmp_path / "b"
    shutil.copytree(ranker_bundle, bundle)
    compile_bundle(bundle, ["cpu"], engines=[engine])
    script = (
        "import sys; sys.modules[sys.argv[2]] = None\n"
        "from pathlib import Path\nfrom serving.model import Model\n"
        "Model.load(Path(sys.argv[1]), engine=sys.argv[3])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle), library, engine], capture_output=True, text=True
    )
    assert f"pip install 'jaxrank[{engine}]'" in done.stderr


def test_auto_times_every_engine_and_keeps_the_fastest(ranker_bundle: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "b"
    shutil.copytree(ranker_bundle, bundle)
    manifest = compile_bundle(bundle, ["cpu"], engines=parse_engines("auto"), compare=True)
    times = {t.engine: t.milliseconds for t in manifest.engine_times}
    assert set(times) == {"iree", "onnxruntime", "xla"}
    assert all(set(ms) == {"200", "1000"} and min(ms.values()) > 0 for ms in times.values())
    best = min(times, key=lambda engine: times[engine]["200"] * times[engine]["1000"])
    chosen = manifest.target("cpu")
    assert chosen is not None and chosen.engine == best == manifest.chosen_engines["cpu"]
    assert all(t.certificate for t in manifest.targets if t.name == "cpu")
    assert {t.engine: t.slice_rows in SLICE_ROWS for t in manifest.targets if t.name == "cpu"} == {
        "iree": False, "onnxruntime": True, "xla": False,
    }  # fmt: skip


def test_tiles_cover_every_number_of_candidates() -> None:
    """Only the last tile is padded, and never by more than a small request costs."""
    tiles = (8, 64, 256, 1024)
    assert cover(1, tiles) == [8] and cover(64, tiles) == [64] and cover(1032, tiles) == [1024, 8]
    for count in range(1, 5001):
        found = cover(count, tiles)
        assert count <= sum(found) < count + found[-1]
        assert sum(found[:-1]) < count
        assert sum(found) <= max(1.5 * count, count + 56)
