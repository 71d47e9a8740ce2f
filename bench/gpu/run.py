"""Checks and times a kit of `bench/gpu/pack.py` on the machine that it was carried to.

    python run.py --device cuda --out gpu_dense.json

Needs Python 3.11, NumPy and iree.runtime (with its own ml_dtypes), and nothing of the project. JAX, PyTorch
and ONNX Runtime are timed where they are installed. Every engine takes feature blocks from host memory and
returns scores to host memory; none is timed at a size at which its scores are not TensorFlow's. What was
measured is kept after each model.
"""

import argparse
import datetime
import json
import mmap
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

OURS, JAX, TORCH, TORCH_GRAPHS = "jaxrank", "jax", "torch_compile", "torch_compile_graphs"
ONNX = "onnxruntime"
Call = Callable[[], "list[np.ndarray]"]
Prepare = Callable[[int], Call]
"""`rows -> call`: everything up to the request's arrival, then the call that is timed."""
PACKAGES = (
    "iree-base-runtime",
    "jax",
    "jaxlib",
    "numpy",
    "onnxruntime-gpu",
    "onnxruntime",
    "torch",
    "triton",
)


class Kit:
    """One model's directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.name = self.directory.name
        self.meta = json.loads((self.directory / "meta.json").read_text())
        with np.load(self.directory / "requests.npz") as held:
            self.request, self.candidate = held["request"], held["candidate"]
            self.scores = {
                n: [held[f"scores_{n}/{i}"] for i in range(self.meta["outputs"])] for n in self.meta["sizes"]
            }

    def blocks(self, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Feature blocks of a request; the candidates repeat where it has more than the kit holds."""
        return self.request, np.resize(self.candidate, (rows, self.candidate.shape[1]))

    def weights(self, names: Sequence[dict[str, Any]]) -> list[np.ndarray]:
        """Arrays of the source: those that our archive has too are stored there only."""
        import iree.runtime as rt

        index = rt.ParameterIndex()
        archive = self.directory / "weights.irpa"
        if archive.is_file():
            index.load(str(archive))
        entries = dict(index.items())
        found = []
        with np.load(self.directory / "source_weights.npz") as held:
            for name in names:
                if name["archive"]:
                    raw = np.frombuffer(entries[name["name"]].file_view, np.uint8)
                    dtype = np.dtype(name["dtype"])
                    size = int(np.prod(name["shape"], dtype=np.int64)) * dtype.itemsize
                    found.append(raw[:size].view(dtype).reshape(name["shape"]).copy())
                else:
                    found.append(held[name["name"]])
        return found


# --- engines: `engine(kit, device)` returns `prepare(rows)`, which returns the call that is timed -----------


def jaxrank_engine(kit: Kit, device: str) -> Prepare:
    """The compiled towers. The state stays on the device between them."""
    import iree.runtime as rt

    instance = rt.VmInstance()
    # Reusing buffers saves page faults on the host; IREE 3.13's caching allocator does not suit Vulkan.
    allocators: Any = ["caching"] if device.startswith("local") else None
    hal = rt.get_driver(device).create_default_device(allocators=allocators)
    providers = []
    for archive, scope in kit.meta["scopes"].items():
        if (kit.directory / archive).is_file():
            parameters = rt.ParameterIndex()
            parameters.load(str(kit.directory / archive))
            providers.append(parameters.create_provider(scope=scope))
    modules = [rt.create_io_parameters_module(instance, *providers)] if providers else []
    module = rt.VmModule.mmap(instance, str(kit.directory / "module.vmfb"))
    context = rt.VmContext(instance, modules=[*modules, rt.create_hal_module(instance, hal), module])
    functions = {}
    for role, name in kit.meta["functions"].items():
        function = module.lookup_function(name)
        if function is None:
            raise ValueError(f"module.vmfb has no function @{name}")
        functions[role] = rt.FunctionInvoker(context, hal, function)

    def prepare(rows: int) -> Call:
        request, candidate = kit.blocks(rows)

        def call() -> list[np.ndarray]:
            state = _results(functions["request"](request)) if "request" in functions else []
            if len(state) != kit.meta["state"]:
                raise ValueError(f"the request tower returns {len(state)} values, not {kit.meta['state']}")
            return [_to_host(rt, hal, v) for v in _results(functions["candidate"](*state, candidate))]

        return call

    return prepare


def _results(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _to_host(rt: Any, device: Any, result: Any) -> np.ndarray:
    """A copy of a result in host memory, through pages of our own where the device's memory is not the
    host's: devices take only whole pages."""
    view = result._buffer_view
    source = view.get_buffer()
    visible = source.memory_type() & int(rt.MemoryType.HOST_VISIBLE)
    if visible and source.allowed_usage() & int(rt.BufferUsage.MAPPING_SCOPED):
        return np.array(result.to_host())
    size = source.byte_length()
    pages = np.frombuffer(mmap.mmap(-1, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE), np.uint8)
    target = device.allocator.import_host_allocation(
        pages,
        memory_type=int(rt.MemoryType.HOST_LOCAL | rt.MemoryType.DEVICE_VISIBLE),
        allowed_usage=int(rt.BufferUsage.TRANSFER_TARGET | rt.BufferUsage.MAPPING_PERSISTENT),
    )
    done = device.create_semaphore(0)
    begin, end = rt.HalFence.create_at(done, 0), rt.HalFence.create_at(done, 1)
    device.queue_copy(source, target, wait_semaphores=begin, signal_semaphores=end)
    end.wait()
    shape = tuple(view.shape)
    dtype = rt.HalElementType.map_to_dtype(view.element_type)
    return pages[:size].view(dtype)[: int(np.prod(shape, dtype=np.int64))].reshape(shape)


def jax_engine(kit: Kit, device: str) -> Prepare:
    """XLA on the module as it was before our rewrites, compiled for each size."""
    import jax
    from jax import export

    wanted = {"cuda": "gpu", "local-sync": "cpu"}.get(device)
    if wanted is None:
        raise RuntimeError(f"JAX has no backend for {device}")
    place = jax.devices(wanted)[0]
    held: dict[str, list[Any]] = {}

    def prepare(rows: int) -> Call:
        artifact = (kit.directory / f"source_{rows}.jax").read_bytes()
        function = jax.jit(export.deserialize(bytearray(artifact)).call)
        names = kit.meta["jax"][str(rows)]
        key = json.dumps(names)
        if key not in held:
            held[key] = [jax.device_put(w, place) for w in kit.weights(names)]
        weights, blocks = held[key], kit.blocks(rows)

        def call() -> list[np.ndarray]:
            request, candidate = (jax.device_put(b, place) for b in blocks)
            return [np.asarray(v) for v in function(*weights, request, candidate)]

        return call

    return prepare


def torch_engine(kit: Kit, device: str, graphs: bool = False) -> Prepare:
    """`torch.compile` on the same module as source, compiled for each size; `graphs` replays CUDA graphs."""
    import torch  # pyright: ignore[reportMissingImports]

    if kit.meta["torch_refused"]:
        raise RuntimeError(kit.meta["torch_refused"])
    wanted = {"cuda": "cuda", "local-sync": "cpu"}.get(device)
    if wanted is None:
        raise RuntimeError(f"PyTorch has no backend for {device}")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise RuntimeError("this PyTorch finds no CUDA device")
    if graphs and wanted != "cuda":
        raise RuntimeError("CUDA graphs need CUDA")
    # float32 products in float32, as all engines have them here.
    torch.set_float32_matmul_precision("highest")
    source = (kit.directory / "source_torch.py").read_text()
    weights = [torch.from_numpy(w).to(wanted) for w in kit.weights(kit.meta["torch"])]

    def prepare(rows: int) -> Call:
        scope: dict[
            str, Any
        ] = {}  # a function of its own for each size: PyTorch limits recompilations of one
        exec(compile(source, str(kit.directory / "source_torch.py"), "exec"), scope)

        def scores(request: Any, candidate: Any) -> Any:
            return scope["scores"](torch, lambda x, dtype: x.to(dtype), weights, request, candidate)

        mode = "reduce-overhead" if graphs else "default"
        compiled = torch.compile(scores, mode=mode, dynamic=False, fullgraph=True)
        blocks = [torch.from_numpy(b.copy()) for b in kit.blocks(rows)]

        def call() -> list[np.ndarray]:
            with torch.no_grad():
                found = compiled(*(b.to(wanted) for b in blocks))
                return [v.cpu().numpy() for v in found]

        return call

    return prepare


def onnx_engine(kit: Kit, device: str) -> Prepare:
    """ONNX Runtime on TensorFlow's graph through tf2onnx, one session for any number of candidates; the whole
    graph on the device's provider, where it has the operators."""
    import onnxruntime  # pyright: ignore[reportMissingImports]

    source = kit.meta["onnx"]
    if source["refused"]:
        raise RuntimeError(source["refused"])
    # float32 products in float32, as all engines have them here; ONNX Runtime's default on CUDA is TF32.
    wanted = {
        "cuda": ("CUDAExecutionProvider", {"use_tf32": "0"}),
        "local-sync": ("CPUExecutionProvider", {}),
    }
    if device not in wanted:
        raise RuntimeError(f"ONNX Runtime has no provider for {device}")
    provider, settings = wanted[device]
    if provider not in (there := onnxruntime.get_available_providers()):
        raise RuntimeError(f"this ONNX Runtime has no {provider}; it has {', '.join(there)}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    names, weights = list(source["weights"]), kit.weights(list(source["weights"].values()))
    options.add_external_initializers(names, [onnxruntime.OrtValue.ortvalue_from_numpy(w) for w in weights])
    graph = (kit.directory / "source.onnx").read_bytes()
    session = onnxruntime.InferenceSession(graph, options, providers=[(provider, settings)])
    if session.get_providers()[0] != provider:  # it takes the CPU where a library of CUDA is not there
        raise RuntimeError(f"ONNX Runtime does not start its {provider} here")
    fed = [i.name for i in session.get_inputs()]

    def prepare(rows: int) -> Call:
        request, candidate = kit.blocks(rows)
        values = []
        for column in source["columns"]:
            block = request if column["scope"] == "request" else candidate
            width = int(np.prod(column["shape"], dtype=np.int64))
            value = np.ascontiguousarray(block[:, column["offset"] : column["offset"] + width])
            value = value.view(np.int32) if column["dtype"] == "int32" else value
            value = value.reshape(len(block), *column["shape"])
            values.append(value != 0 if column["dtype"] == "bool" else value)
        inputs = {f"input_{i}:0": v for i, v in enumerate(values)}
        inputs = {name: inputs[name] for name in fed}
        return lambda: [np.asarray(v) for v in session.run(None, inputs)]

    return prepare


ENGINES: dict[str, Callable[[Kit, str], Prepare]] = {
    OURS: jaxrank_engine,
    JAX: jax_engine,
    TORCH: torch_engine,
    TORCH_GRAPHS: lambda kit, device: torch_engine(kit, device, graphs=True),
    ONNX: onnx_engine,
}


# --- checking and timing ------------------------------------------------------------------------------------


def largest_error(outputs: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> float:
    """Largest difference of any score: absolute up to 1, relative to TensorFlow's beyond; infinite where a
    shape is another or a score is not a number."""
    if len(outputs) != len(wanted) or any(o.size != w.size for o, w in zip(outputs, wanted, strict=True)):
        return float("inf")
    worst = 0.0
    for output, want in zip(outputs, wanted, strict=True):
        error = np.abs(output.reshape(want.shape).astype(np.float64) - want) / np.maximum(np.abs(want), 1.0)
        worst = max(worst, float(np.where(np.isnan(error), np.inf, error).max(initial=0.0)))
    return worst


class Results:
    """Figures so far, and the file that has them."""

    def __init__(self, path: Path, command: str, commit: str, device: str) -> None:
        self.path = path
        self.figures: list[dict[str, Any]] = []
        self.missing: list[dict[str, str]] = []
        self.document = {
            "suite": "gpu_dense",
            "command": command,
            "commit": commit,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "machine": {
                "cpu": _cpu(),
                "cores": os.cpu_count(),
                "system": platform.system(),
                "python": platform.python_version(),
                "device": device,
            },
            "versions": {name: v for name in PACKAGES if (v := _version(name))},
        }

    def figure(
        self,
        name: str,
        value: float,
        unit: str,
        lo: float | None = None,
        hi: float | None = None,
        runs: int = 1,
        note: str = "",
    ) -> None:
        """One measured value."""
        held = {"name": name, "value": value, "unit": unit, "lo": lo, "hi": hi, "runs": runs, "note": note}
        self.figures.append(held)
        print(f"{name:<40} {value:12.4g} {unit}", flush=True)

    def not_measured(self, name: str, error: object) -> None:
        """A figure that could not be taken, and why."""
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        why = " ".join(lines)[:300] or type(error).__name__
        self.missing.append({"name": name, "why": why})
        print(f"not measured: {name}: {why}", flush=True)

    def write(self) -> None:
        """Writes the file in one step."""
        document = {**self.document, "figures": self.figures, "not_measured": self.missing}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        work = self.path.with_suffix(".tmp")
        work.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n")
        work.rename(self.path)


def measure(
    kit: Kit, device: str, rounds: int, per_round: int, tolerance: float, ends: float, results: Results
) -> bool:
    """Checks and times one model. Returns whether our scores are TensorFlow's at every size that was begun
    before `ends`, of the monotonic clock."""
    prepared = {}
    for name, engine in ENGINES.items():
        try:
            prepared[name] = engine(kit, device)
        except Exception as error:  # engines raise whatever they like
            results.not_measured(f"{kit.name}/{name}", error)
    right, worst, checked = OURS in prepared, 0.0, 0
    for rows in kit.meta["sizes"]:
        if time.monotonic() > ends:
            results.not_measured(f"{kit.name}/{rows}", "the time of --seconds was over")
            continue
        calls = {}
        for name, prepare in prepared.items():
            figure = f"{kit.name}/{name}/{rows}"
            try:
                call = prepare(rows)
                error = largest_error(call(), kit.scores[rows])
            except Exception as reason:  # engines raise whatever they like
                results.not_measured(figure, reason)
                right = right and name != OURS
                continue
            if error <= tolerance:
                calls[name] = call
            else:
                why = f"its scores differ from TensorFlow's by {error:.1e}, more than {tolerance:.0e}"
                results.not_measured(figure, f"refused: {why}")
                right = right and name != OURS
            if name == OURS:
                worst, checked = max(worst, error), checked + 1
        times = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                time.sleep(0.005)
                call()  # the others have taken its place in the caches
                for _ in range(per_round):
                    start = time.perf_counter()
                    call()
                    times[name].append(1e3 * (time.perf_counter() - start))
        for name, taken in times.items():
            lo, median, hi = (float(v) for v in np.percentile(taken, [5, 50, 95]))
            results.figure(f"{kit.name}/{name}/{rows}", median, "ms", lo, hi, len(taken))
    if checked and np.isfinite(worst):
        results.figure(f"{kit.name}/max_abs_error", worst, "score")
    return right


def main() -> None:
    """Command line. Exits with 1 where a score of ours is not TensorFlow's."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--kit", type=Path, default=Path(__file__).resolve().parent, help="the kit's directory (this one)"
    )
    parser.add_argument("--device", default="cuda", choices=("cuda", "local-sync", "vulkan"))
    parser.add_argument("--models", nargs="+", help="models of the kit (all)")
    parser.add_argument("--out", type=Path, default=Path("gpu_dense.json"), help="figures (%(default)s)")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each engine (%(default)s)")
    parser.add_argument("--per-round", type=int, default=5, help="timed runs of a turn (%(default)s)")
    parser.add_argument(
        "--tolerance", type=float, help="largest difference from TensorFlow (what the kit says)"
    )
    parser.add_argument("--seconds", type=float, help="no size is begun after these (no limit)")
    arguments = parser.parse_args()
    ends = time.monotonic() + (arguments.seconds or float("inf"))
    kit = json.loads((arguments.kit / "kit.json").read_text())
    unknown = sorted(set(arguments.models or ()) - set(kit["models"]))
    if unknown:
        parser.error(f"the kit has no model {', '.join(unknown)}; it has: {', '.join(kit['models'])}")
    driver = {"cpu": "local-sync"}.get(kit["target"].partition(":")[0], kit["target"].partition(":")[0])
    if driver != arguments.device:
        parser.error(f"the kit is compiled for {kit['target']}: --device {driver}")
    # The kit's path belongs to one machine, not to the figures.
    command = f"python run.py --device {arguments.device}"
    command += f" --models {shlex.join(arguments.models)}" if arguments.models else ""
    command += f" --rounds {arguments.rounds} --per-round {arguments.per_round}"
    command += f" --tolerance {arguments.tolerance:g}" if arguments.tolerance else ""
    command += f" --seconds {arguments.seconds:g}" if arguments.seconds else ""
    results = Results(arguments.out, command, kit["commit"], device_name(arguments.device))
    right = True
    for name in arguments.models or kit["models"]:
        try:
            model = Kit(arguments.kit / name)
            tolerance = arguments.tolerance or model.meta["tolerance"]
            how = (arguments.device, arguments.rounds, arguments.per_round, tolerance, ends)
            right = measure(model, *how, results) and right
        except Exception as error:  # one model less is no reason to lose the others
            results.not_measured(name, error)
            right = False
        results.write()
    sys.exit(0 if right else 1)


def device_name(driver: str) -> str:
    """The name that the driver gives its device."""
    try:
        import iree.runtime as rt

        return str(rt.get_driver(driver).query_available_devices()[0]["name"])
    except Exception as error:  # the engine reports why there is none
        return f"none found: {error}"


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


if __name__ == "__main__":
    main()
