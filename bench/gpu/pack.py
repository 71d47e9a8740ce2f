# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Writes a kit: the suite's models compiled for a GPU, and what is needed to check and time them there.

python -m bench.gpu.pack --out kit --models din mmoe

OUT/run.py, kit.json
OUT/<model>/module.vmfb, weights.irpa    our towers for any number of candidates
OUT/<model>/requests.npz                 feature blocks, and TensorFlow's scores for each size
OUT/<model>/source_<n>.jax               the module before our rewrites, for JAX and n candidates
OUT/<model>/source_torch.py              the same for PyTorch and any number
OUT/<model>/source.onnx                  TensorFlow's dense half for ONNX Runtime and any number
OUT/<model>/source_weights.npz           their weights, without those that weights.irpa has
OUT/<model>/meta.json                    what run.py asks
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from bench.dense import TOLERANCE, largest_error
from bench.gpu.kits import KitError, parse, writing
from bench.results import commit
from jaxrank.errors import JaxrankError

if TYPE_CHECKING:
    from jax.extend import core

    from bench.dense_build import Built
    from bench.dense_models import DenseModel
    from bench.gpu.run import Kit, Prepare

SIZES = (1, 200, 1000, 5000)
DISTINCT = 1_000
"""Candidates that a kit holds; larger requests repeat them. 5,000 rows of 26 embeddings are 33 MB."""
RUNTIME_SIZE = 15 << 20
"""Bytes of the wheel of iree.runtime, rounded up; 3.13.0 for Python 3.12 has 15,120,024."""
LIMIT = (64 << 20) - RUNTIME_SIZE
"""Bytes that one kit's models may have: 64 MiB are carried at once, the runtime's wheel among them."""
RUNTIME = "pip download --only-binary=:all: --python-version 3.12 --no-deps iree-base-runtime=={version}"
_SEED = 7_300


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    arguments, chosen = parse(argv, "bench.gpu.pack", __doc__, ())
    try:
        sizes = pack(chosen, arguments.out, arguments.target, arguments.work, print)
    except JaxrankError as error:
        raise SystemExit(f"error: {error}") from error
    for name, size in sizes.items():
        print(f"{name:<12} {size / 2**20:6.1f} MiB")
    print(f"{'together':<12} {sum(sizes.values()) / 2**20:6.1f} MiB of {LIMIT / 2**20:.0f}")
    print(
        f"the runtime for Python 3.12, which comes beside it (the limit leaves room):\n  {runtime_command()}"
    )


def runtime_command() -> str:
    """How to get the wheel of iree.runtime that belongs to the compiler, the one installed here."""
    return RUNTIME.format(version=metadata.version("iree-base-runtime"))


def pack(
    models: "Sequence[DenseModel]",
    out: Path,
    target: str,
    work: Path,
    progress: Callable[[str], None] = lambda text: None,
) -> dict[str, int]:
    """Writes the kit. Returns the bytes of each model.

    Raises `KitError`: the directory exists, the kit is larger than `LIMIT`, or a source's scores are not
    TensorFlow's. `CompileError`: what the compiler refuses.
    """
    from bench.dense_build import build

    sizes: dict[str, int] = {}
    with writing(out, target) as part:
        for model in models:
            built = build(model, work, progress, target)
            progress(f"{model.name}: packing")
            directory = part / model.name
            directory.mkdir()
            refused = _pack_model(model, built, target, directory)
            if refused:
                progress(f"{model.name}: {refused}")
            sizes[model.name] = sum(p.stat().st_size for p in directory.iterdir())
        shutil.copy(Path(__file__).with_name("run.py"), part)
        _write_json(part / "kit.json", {"target": target, "models": list(sizes), "commit": commit()})
        refuse_too_large(sizes)
    return sizes


def refuse_too_large(sizes: dict[str, int], limit: int = LIMIT) -> None:
    """Raises `KitError` with models to leave out, the largest first, where the sum is over the limit."""
    total = sum(sizes.values())
    if total <= limit:
        return
    kept, dropped = total, []
    for name in sorted(sizes, key=lambda name: -sizes[name]):
        if kept <= limit:
            break
        kept -= sizes[name]
        dropped.append(f"{name} ({sizes[name] / 2**20:.0f} MiB)")
    rest = [name for name in sizes if not any(d.startswith(f"{name} ") for d in dropped)]
    raise KitError(
        f"the kit would have {total / 2**20:.0f} MiB, more than the {limit / 2**20:.0f} that are carried at "
        f"once; leave out {', '.join(dropped)} and pack them as another kit: "
        f"--models {' '.join(rest) if rest else '(each alone is too large)'}"
    )


def _pack_model(model: "DenseModel", built: "Built", target: str, directory: Path) -> str:
    """Writes one model's directory. Returns what cannot run it and why, or nothing."""
    from bench.gpu import run
    from bench.gpu.onnx_source import write_onnx
    from jaxrank import bundle as files
    from mlir_pipeline.lower import CANDIDATE_TOWER, REQUEST_TOWER

    manifest = built.manifest
    compiled = manifest.target(target, "iree")
    if compiled is None:
        raise KitError(f"{built.bundle} has no IREE module for {target}")
    shutil.copy(built.bundle / compiled.module, directory / "module.vmfb")
    if (packed := files.packed_weights(built.bundle / compiled.module)).exists():  # a CPU's
        shutil.copy(packed, directory / "module.irpa")
    if files.WEIGHTS in manifest.files:
        shutil.copy(built.bundle / files.WEIGHTS, directory / "weights.irpa")
    requests = _requests(model, built)
    with (directory / "requests.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **requests)
    pool = _Pool(directory / "weights.irpa")
    jax_weights = {str(n): _write_jax(built, n, directory, pool) for n in SIZES}
    torch_weights, refused = _write_torch(built, directory, pool, requests)
    onnx = write_onnx(built, directory, pool.reference)
    with (directory / "source_weights.npz").open("wb") as file:
        np.savez(file, allow_pickle=False, **pool.own)
    functions = {"candidate": CANDIDATE_TOWER} | ({"request": REQUEST_TOWER} if manifest.state else {})
    meta = {
        "shape": model.shape,
        "sizes": SIZES,
        "outputs": sum(name.startswith("scores_1/") for name in requests),
        "state": len(manifest.state),
        "functions": functions,
        "scopes": {"weights.irpa": files.WEIGHTS_SCOPE, "module.irpa": files.PACKED_SCOPE},
        "tolerance": TOLERANCE,
        "compiler": compiled.compiler,
        "flags": compiled.flags,
        "jax": jax_weights,
        "torch": torch_weights,
        "torch_refused": refused,
        "onnx": onnx,
    }
    _write_json(directory / "meta.json", meta)
    _check_here("JAX", run.jax_engine, directory, requests)
    if not onnx["refused"]:
        _check_here("ONNX Runtime", run.onnx_engine, directory, requests)
    return " ".join(
        f"without {name}: {why}"
        for name, why in (("PyTorch", refused), ("ONNX Runtime", onnx["refused"]))
        if why
    )


def _requests(model: "DenseModel", built: "Built") -> dict[str, np.ndarray]:
    """`request [1, R]`, `candidate [DISTINCT, C]`, and `scores_<n>/<i> [n, ...]`: TensorFlow's on the first n
    candidates, which begin again after `DISTINCT`."""
    from converters.loaders import load
    from jaxrank import bundle as files
    from jaxrank.flax_module import dense_outputs
    from serving.host import HostProgramRunner

    features = model.request(DISTINCT, _SEED)
    blocks = HostProgramRunner(built.bundle, built.manifest).run(features)
    found = {"request": np.asarray(blocks.request), "candidate": np.asarray(blocks.candidate)}
    outputs = dense_outputs(built.manifest, files.read_host_program(built.bundle))
    source = load(built.saved)
    for rows in SIZES:
        repeated = {
            name: np.resize(value, (rows, *value.shape[1:])) if model.inputs[name][0] is None else value
            for name, value in features.items()
        }
        scores = source.predict(repeated)
        found.update({f"scores_{rows}/{i}": scores[name] for i, name in enumerate(outputs)})
    return found


class _Pool:
    """Weights of the sources, each stored once."""

    def __init__(self, archive: Path):
        import iree.runtime as rt

        self._index = rt.ParameterIndex()
        if archive.is_file():
            self._index.load(str(archive))
        self._archived = {
            hashlib.sha256(np.frombuffer(entry.file_view, np.uint8)[: entry.length].tobytes()).digest(): name
            for name, entry in self._index.items()
        }
        self.own: dict[str, np.ndarray] = {}

    def reference(self, array: np.ndarray) -> dict[str, Any]:
        """Where an array is stored, as meta.json says it."""
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes())
        name = self._archived.get(digest.digest())
        if name is not None:
            shape = list(array.shape)
            return {"name": name, "archive": True, "shape": shape, "dtype": array.dtype.name}
        key = f"{array.dtype.name}_{'x'.join(map(str, array.shape))}_{digest.hexdigest()[:16]}"
        self.own[key] = array
        return {"name": key, "archive": False}


def _traced(built: "Built", rows: int | None) -> "core.ClosedJaxpr":
    """The module before the rewrites. Products are float32 on every device: XLA's default on NVIDIA's is
    TF32."""
    import jax

    from mlir_pipeline.rewriting import flat_module

    with jax.default_matmul_precision("highest"):
        return flat_module(built.bundle, rows)


def _write_jax(built: "Built", rows: int, directory: Path, pool: _Pool) -> list[dict[str, Any]]:
    """Writes `source_<rows>.jax`. Returns the weights that it takes before the two blocks."""
    import jax
    from jax import export
    from jax.extend import core

    closed = _traced(built, rows)
    outside, inside = [], []
    for var, value in zip(closed.jaxpr.constvars, closed.consts, strict=True):
        # Indices and scalars stay in the program, where XLA sees their values.
        (outside if np.asarray(value).dtype.kind == "f" and np.size(value) > 16 else inside).append(
            (var, value)
        )
    jaxpr = closed.jaxpr.replace(
        constvars=[v for v, _ in inside],
        invars=[*(v for v, _ in outside), *closed.jaxpr.invars],
        debug_info=closed.jaxpr.debug_info.with_unknown_names(),
    )
    function = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(jaxpr, [c for _, c in inside])), keep_unused=True)
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
    exported = export.export(function, platforms=["cuda", "cpu"])(*avals)
    (directory / f"source_{rows}.jax").write_bytes(exported.serialize())
    return [pool.reference(np.asarray(c)) for _, c in outside]


def _check_here(
    engine: str,
    make: "Callable[[Kit, str], Prepare]",
    directory: Path,
    requests: dict[str, np.ndarray],
) -> None:
    """Raises `KitError` where the smallest request, as `run.py` runs it, does not give TensorFlow's scores on
    this machine's CPU."""
    from bench.gpu.run import Kit

    _refuse_wrong(engine, make(Kit(directory), "local-sync")(SIZES[0])(), SIZES[0], requests)


def _write_torch(
    built: "Built", directory: Path, pool: _Pool, requests: dict[str, np.ndarray]
) -> tuple[list[dict[str, Any]], str]:
    """Writes `source_torch.py`, after NumPy has executed it and found TensorFlow's scores. Returns the
    weights that it takes, or why there is none."""
    from bench.gpu.torch_source import run_with_numpy, torch_source
    from mlir_pipeline.errors import CompileError
    from mlir_pipeline.rewrites.known_gathers import known_gathers

    try:
        # Indices that are known need no masks; nothing else of our rewrites is in it.
        source, weights = torch_source(known_gathers(_traced(built, None)))
    except CompileError as error:
        return [], str(error)
    for rows in SIZES[:2]:
        found = run_with_numpy(source, weights, requests["request"], requests["candidate"][:rows])
        _refuse_wrong("PyTorch", found, rows, requests)
    (directory / "source_torch.py").write_text(source)
    return [pool.reference(w) for w in weights], ""


def _refuse_wrong(
    engine: str, found: Sequence[np.ndarray], rows: int, requests: dict[str, np.ndarray]
) -> None:
    wanted = [requests[f"scores_{rows}/{i}"] for i in range(len(found))]
    error = largest_error(found, wanted)
    if not error <= TOLERANCE:
        raise KitError(
            f"the source for {engine} gives scores at {rows} candidates that differ from TensorFlow's by "
            f"{error:.1e}, more than {TOLERANCE:.0e}: the kit would time something else"
        )


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1) + "\n")


if __name__ == "__main__":
    main()
