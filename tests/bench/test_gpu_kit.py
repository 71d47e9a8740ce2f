"""The kit for a machine with a GPU: written for the CPU and run there, in a process without the project."""

import importlib.metadata
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import msgspec
import numpy as np
import pytest

from bench.gpu import pack_serve, serve
from bench.gpu.kits import KitError
from bench.gpu.pack import pack, refuse_too_large
from bench.gpu.torch_source import run_with_numpy, torch_source
from bench.report.serving import throughput
from bench.results import Figure, NotMeasured, Results, read_results, write_results
from mlir_pipeline.errors import CompileError
from mlir_pipeline.jaxpr import flat_jaxpr
from tests.bench.conftest import TINY

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def kit(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits") / "cpu"
    pack([TINY], out, "cpu", work)
    return out


def _only(packages: Path, *distributions: str) -> Path:
    """A directory with links to what these distributions installed, and nothing else."""
    for name in distributions:
        installed = importlib.metadata.distribution(name)
        for entry in {Path(f).parts[0] for f in installed.files or () if not str(f).startswith("..")}:
            source = Path(str(installed.locate_file(entry)))
            if entry != "iree":
                (packages / entry).symlink_to(source)
                continue
            (packages / entry).mkdir()
            for part in source.iterdir():  # the compiler's packages lie beside the runtime's
                if part.name.startswith(("runtime", "_runtime")):
                    (packages / entry / part.name).symlink_to(part)
    return packages


def _run(kit: Path, out: Path, *arguments: str, only: Path | None = None) -> subprocess.CompletedProcess[str]:
    path = f"sys.path.insert(0, {str(only)!r}); " if only else ""
    code = (
        f"import runpy, sys; {path}sys.argv[0] = 'run.py'; "
        f"runpy.run_path({str(kit / 'run.py')!r}, run_name='__main__')"
    )
    isolated = ["-I", "-S"] if only else ["-I"]
    options = ["--device", "local-sync", "--rounds", "2", "--per-round", "2", "--out", str(out), *arguments]
    command = [sys.executable, *isolated, "-c", code, *options]
    return subprocess.run(command, cwd=out.parent, capture_output=True, text=True, timeout=300)


def _document(path: Path) -> dict[str, Any]:
    """The file, whose entries have exactly the fields of bench/results.py."""
    document = json.loads(path.read_text())
    for key, kind in (("figures", Figure), ("not_measured", NotMeasured)):
        for entry in document[key]:
            msgspec.convert(entry, kind)
            assert set(entry) == set(kind.__struct_fields__)
    return document


def test_runs_with_numpy_and_the_runtime_alone(kit: Path, tmp_path: Path) -> None:
    """ml_dtypes is what iree.runtime itself needs. The peers are missing, and said to be."""
    (tmp_path / "packages").mkdir()
    only = _only(tmp_path / "packages", "numpy", "ml_dtypes", "iree-base-runtime")
    done = _run(kit, tmp_path / "gpu.json", only=only)
    assert done.returncode == 0, done.stdout + done.stderr
    document = _document(tmp_path / "gpu.json")
    figures = {f["name"]: f["value"] for f in document["figures"]}
    assert set(figures) == {f"tiny/jaxrank/{n}" for n in (1, 200, 1000, 5000)} | {"tiny/max_abs_error"}
    assert figures["tiny/max_abs_error"] <= 1e-5
    missing = {m["name"]: m["why"] for m in document["not_measured"]}
    assert missing["tiny/jax"] == "No module named 'jax'"
    assert missing["tiny/torch_compile"] == "No module named 'torch'"
    assert missing["tiny/onnxruntime"] == "No module named 'onnxruntime'"
    write_results(tmp_path / "other.json", "gpu_dense", "", [])
    other = json.loads((tmp_path / "other.json").read_text())
    assert list(document) == list(other) and document["suite"] == other["suite"]


def test_times_jax_and_onnx_runtime_on_the_same_requests(kit: Path, tmp_path: Path) -> None:
    done = _run(kit, tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    names = {f["name"] for f in _document(tmp_path / "gpu.json")["figures"]}
    assert names >= {f"tiny/{e}/{n}" for e in ("jaxrank", "jax", "onnxruntime") for n in (1, 200, 1000, 5000)}


def test_begins_nothing_after_its_time(kit: Path, tmp_path: Path) -> None:
    done = _run(kit, tmp_path / "gpu.json", "--seconds", "1e-9")
    document = _document(tmp_path / "gpu.json")
    assert done.returncode == 0 and not document["figures"]
    missing = {m["name"]: m["why"] for m in document["not_measured"]}
    assert missing["tiny/5000"] == "the time of --seconds was over"


def test_refuses_a_broken_module(kit: Path, tmp_path: Path) -> None:
    """Ours is listed with the reason, the peers are measured, and the exit status says so."""
    broken = shutil.copytree(kit, tmp_path / "kit")
    (broken / "tiny" / "module.vmfb").write_bytes(b"no module at all")
    done = _run(broken, tmp_path / "gpu.json")
    assert done.returncode == 1
    document = _document(tmp_path / "gpu.json")
    assert not any(f["name"].startswith("tiny/jaxrank") for f in document["figures"])
    assert any(m["name"] == "tiny/jaxrank" for m in document["not_measured"])
    assert any(f["name"] == "tiny/jax/200" for f in document["figures"])


def test_does_not_time_wrong_scores(kit: Path, tmp_path: Path) -> None:
    """TensorFlow's scores of one size changed by ten times the tolerance."""
    wrong = shutil.copytree(kit, tmp_path / "kit")
    requests = dict(np.load(wrong / "tiny" / "requests.npz"))
    requests["scores_200/0"] = requests["scores_200/0"] + np.float32(1e-4)
    np.savez(wrong / "tiny" / "requests.npz", **requests)
    assert _run(wrong, tmp_path / "gpu.json").returncode == 1
    document = _document(tmp_path / "gpu.json")
    names = {f["name"] for f in document["figures"]}
    assert "tiny/jaxrank/1000" in names and "tiny/jaxrank/200" not in names and "tiny/jax/200" not in names
    missing = {m["name"]: m["why"] for m in document["not_measured"]}
    assert missing["tiny/jaxrank/200"].startswith("refused: its scores differ from TensorFlow's by 1.0e-04")


def test_packs_for_cuda(work: Path, tmp_path: Path) -> None:
    """Compiled, and not run; the sources for the peers are in it."""
    sizes = pack([TINY], tmp_path / "kit", "cuda:sm_80", work)
    assert list(sizes) == ["tiny"]
    meta = json.loads((tmp_path / "kit" / "tiny" / "meta.json").read_text())
    assert meta["torch_refused"] == "" and meta["torch"] and meta["state"] > 0
    assert "--iree-cuda-target=sm_80" in meta["flags"]
    assert (tmp_path / "kit" / "tiny" / "module.vmfb").stat().st_size > 0
    done = _run(tmp_path / "kit", tmp_path / "gpu.json")
    assert done.returncode == 2 and "--device cuda" in done.stderr


def test_refuses_a_directory_that_exists(kit: Path, work: Path) -> None:
    with pytest.raises(KitError, match="exists; remove it"):
        pack([TINY], kit, "cpu", work)


def test_says_what_to_leave_out() -> None:
    with pytest.raises(KitError, match=r"leave out b \(50 MiB\).*--models a c$"):
        refuse_too_large({"a": 20 << 20, "b": 50 << 20, "c": 10 << 20})
    refuse_too_large({"a": 20 << 20, "c": 10 << 20})


X = jax.ShapeDtypeStruct((1, 6), jnp.float32)
Y = jax.ShapeDtypeStruct((5, 6), jnp.float32)
PLACES = np.array([4, 0, 2], np.int32)
FUNCTIONS = {
    "elementwise": lambda x, y: jnp.tanh(jnp.exp(-y) + jax.nn.sigmoid(x) * jnp.log1p(y * y)) ** 3,
    "choice": lambda x, y: jnp.where((y > 0) & ~(x > 0.5), jnp.maximum(x, y), jnp.clip(y, -1.0, 1.0)),
    "softmax": lambda x, y: jax.nn.softmax(y, axis=-1) * jax.lax.rsqrt(1.0 + jnp.square(x)),
    "batched": lambda x, y: jnp.einsum("nij,nkj->ikn", y.reshape(5, 2, 3), (y + x).reshape(5, 2, 3)),
    "products": lambda x, y: jnp.einsum("ni,nj->ij", y, y) + jnp.outer(x[0], x[0]),
    "shapes": lambda x, y: jnp.pad(y[:, ::2].T, ((1, 0), (0, 2)), constant_values=2.0)[::-1],
    "places": lambda x, y: y[:, PLACES] + jnp.arange(3) * x[:, PLACES],
    "clipped": lambda x, y: jnp.take(y, jnp.argmax(y, axis=1), axis=1, mode="clip"),
    "bits": lambda x, y: jax.lax.bitcast_convert_type(y, jnp.int32).sum(axis=0).astype(jnp.float32),
    "counts": lambda x, y: jnp.any(y > 1.0, axis=1) + jnp.cumsum(y, axis=0)[:, 0],
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_torch_source_against_jax(name: str) -> None:
    """As NumPy executes it; PyTorch itself is not needed here."""
    from mlir_pipeline.rewrites.known_gathers import known_gathers

    function = FUNCTIONS[name]
    source, weights = torch_source(known_gathers(flat_jaxpr(lambda x, y: (function(x, y),), X, Y)))
    rng = np.random.default_rng()
    x, y = (rng.normal(size=s.shape).astype(np.float32) for s in (X, Y))
    (found,) = run_with_numpy(source, weights, x, y)
    wanted = np.asarray(function(x, y))
    assert found.dtype == wanted.dtype
    # Sums of six float32 products in another order.
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-5)


def test_torch_source_says_all_that_it_has_not() -> None:
    def function(x: Any, y: Any) -> Any:
        return jnp.sort(y), jax.lax.erf(x), y

    with pytest.raises(CompileError, match=r"no PyTorch source for sort; erf"):
        torch_source(flat_jaxpr(function, X, Y))


def test_torch_compiles_the_source(kit: Path) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; its source ran with NumPy")
    from bench.gpu import run

    assert torch.__version__
    tiny = run.Kit(kit / "tiny")
    for rows in (1, 200):
        found = run.torch_engine(tiny, "local-sync")(rows)()
        assert run.largest_error(found, tiny.scores[rows]) <= 1e-5


@pytest.fixture(scope="module")
def serve_kit(work: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("kits") / "serve"
    pack_serve.pack([TINY], out, "cpu", work)
    return out


def _serve(kit: Path, out: Path, *arguments: str) -> tuple[int | str | None, Results]:
    # 2 s: the least that a test machine keeps whatever else runs on it.
    options = ["--kit", str(kit), "--out", str(out), "--quick", "--slo-ms", "2000", *arguments]
    with pytest.raises(SystemExit) as ended:
        serve.main(options)
    return ended.value.code, read_results(out)


def test_serves_a_kit_under_load(serve_kit: Path, tmp_path: Path) -> None:
    """The suite's figures, so that what reads those reads these."""
    code, results = _serve(serve_kit, tmp_path / "gpu" / "serve.json")
    figures = {f.name: f for f in results.figures}
    assert code == 0 and results.suite == "serve"
    assert (
        figures["tiny/throughput/jaxrank"].value > 0
        and " on cpu, " in figures["tiny/throughput/jaxrank"].note
    )
    assert figures["tiny/max_abs_error"].value <= 1e-5 and figures["goodput_at_2x"].value > 0
    assert [m.name for m in results.not_measured] == ["tiny/throughput/tensorflow"]
    assert throughput(results)["tiny"]["jaxrank"].value > 0  # as the report reads it


def test_says_what_the_server_had_no_time_for(serve_kit: Path, tmp_path: Path) -> None:
    """And that scores are wrong, and that a server does not start."""
    code, results = _serve(serve_kit, tmp_path / "late.json", "--seconds", "1e-9")
    missing = {m.name: m.why for m in results.not_measured}
    assert code == 0 and missing["tiny/p99/jaxrank"] == "the time of --seconds was over after 0 of 2 rates"
    assert missing["tiny/goodput/plain/2"] == "the time of --seconds was over"
    wrong = shutil.copytree(serve_kit, tmp_path / "kit")
    scores = {n: v + np.float32(1e-4) for n, v in np.load(wrong / "tiny" / "scores.npz").items()}
    np.savez(wrong / "tiny" / "scores.npz", allow_pickle=False, **scores)
    code, results = _serve(wrong, tmp_path / "wrong.json")
    (missing,) = results.not_measured
    assert code == 1 and "refused: scores differ from TensorFlow's by 1.0e-04" in missing.why


def test_the_server_of_a_kit_needs_no_tensorflow() -> None:
    """On the other machine there is only what `jaxrank serve` needs."""
    code = "import sys, bench.gpu.serve; print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"tensorflow", "jax", "flax", "onnx", "matplotlib", "tests"} & set(done.stdout.split())
