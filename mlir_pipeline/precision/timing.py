# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What each product takes in each format, measured on this machine."""

import functools
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import iree.runtime as rt
import jax
import jax.numpy as jnp
import numpy as np
from iree.compiler import ir
from iree.runtime import save_archive_file
from jax.extend import core
from msgspec.structs import replace

from jaxrank import bundle as files
from jaxrank.bundle import WEIGHTS_SCOPE
from jaxrank.certificate import load_examples
from jaxrank.manifest import Manifest, PrecisionFormat
from mlir_pipeline.dump import IrDump
from mlir_pipeline.errors import CompileError
from mlir_pipeline.explain.cost import evaluated
from mlir_pipeline.interleaved import interleaved
from mlir_pipeline.iree import IreeTarget, compile_module
from mlir_pipeline.lower import export_function
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import FOR_IREE, PORTABLE, run_passes
from mlir_pipeline.precision.cast import Product, cast_products, products
from mlir_pipeline.precision.rules import BODY, FORMATS
from serving.engines import load_engine
from serving.host import HostProgramRunner

Seconds = dict[tuple[str, PrecisionFormat], float]
"""Seconds of one request by module and format."""

_PAGE = 200
_ROUNDS = 15
_SECONDS_EACH = 0.2


@dataclass(frozen=True)
class _Timed:
    """One kind of product: those of equal shapes take the same time."""

    name: str
    product: Product
    copies: tuple[str, ...]
    """The module of each product of this kind."""


def time_products(
    closed: core.ClosedJaxpr,
    target: IreeTarget,
    candidates: int,
    directory: Path,
    done: Callable[[int], None] = lambda count: None,
) -> Seconds:
    """Compiles every kind of product in every format and runs them one after the other, over and over.

    A format whose gain three quarters of the rounds do not show has float32's time. Products of one request
    add up: those of the request tower once, those of the candidate tower for `candidates` rows.

    Args:
        closed: the flat jaxpr of `(request_block, candidate_block)` after its rewrites.
        directory: where the program is written.
        done: is told how many kinds were measured since.
    """
    kinds = _kinds(products(closed))
    rows = closed.jaxpr.invars[-1].aval.shape[0]
    with ir.Context() as context, ir.Location.unknown():
        module = ir.Module.create()
        for kind in kinds:
            for chosen in FORMATS:
                cast = cast_products(_alone(kind.product, rows), {BODY: chosen})
                function = export_function(f"{kind.name}_{chosen}", cast, context)
                ir.InsertionPoint(module.body).insert(function)
    program = Program(module)
    run_passes(program, PORTABLE, IrDump(None))
    weights = program.weights
    # An archive needs an entry; a product without weights adds none.
    save_archive_file(weights or {"none": np.zeros(1, np.float32)}, directory / "products.irpa")
    run_passes(program, FOR_IREE, IrDump(None))
    compile_module(program.text(), target, directory / "dense.vmfb")
    functions = _load(directory, target.driver)
    seconds: Seconds = {}
    for kind in kinds:
        arguments = _arguments(kind.product, candidates)
        calls = {f: functools.partial(functions(f"{kind.name}_{f}"), *arguments) for f in FORMATS}
        times = _interleaved(calls)
        for chosen in FORMATS:
            taken = without_noise(times["f32"], times[chosen])
            for module_path in kind.copies:
                key = (module_path, chosen)
                seconds[key] = seconds.get(key, 0.0) + taken
        done(1)
    return seconds


def time_programs(
    bundle: Path, programs: Mapping[str, tuple[Path, Manifest]], target: str
) -> dict[str, list[float]]:
    """Seconds of whole dense programs in the server's engine, in turns, on the recorded request that is
    closest to 200 candidates. `programs` are the directory and the manifest of each."""
    manifest = files.read_manifest(bundle)
    example = min(load_examples(bundle), key=lambda e: abs(e.rows - _PAGE))
    blocks = HostProgramRunner(bundle, manifest).run(example.features)
    engines = {}
    try:
        for name, (directory, made) in programs.items():
            has_weights = (directory / files.WEIGHTS).exists()
            listed = replace(made, files={files.WEIGHTS: ""} if has_weights else {})
            compiled = next(t for t in made.targets if t.name == target)
            engines[name] = load_engine(directory, listed, compiled)
        return _interleaved({name: (lambda e=engine: e.run(blocks)) for name, engine in engines.items()})
    finally:
        for engine in engines.values():
            engine.close()


def kinds_of(closed: core.ClosedJaxpr) -> int:
    """How many different products `time_products` measures."""
    return len(_kinds(products(closed)))


def _interleaved(calls: Mapping[str, Callable[[], object]]) -> dict[str, list[float]]:
    return interleaved(calls, warm=2, fewest=_ROUNDS, most=200, seconds=_SECONDS_EACH)


def without_noise(base: Sequence[float], other: Sequence[float]) -> float:
    """Seconds of `other`: those of `base` less the gain that three quarters of the rounds show; a loss counts
    with its median."""
    gains = sorted(b - o for b, o in zip(base, other, strict=True))
    sure, median = gains[len(gains) // 4], statistics.median(gains)
    gain = sure if sure > 0 else min(median, 0.0)
    return statistics.median(base) - gain


def _kinds(found: Sequence[Product]) -> list[_Timed]:
    groups: dict[Any, list[Product]] = {}
    for product in found:
        eqn = product.equation
        shapes = tuple(str(v.aval.str_short()) for v in eqn.invars)
        stored = tuple(weight is not None for weight in product.weights)
        key = (eqn.primitive.name, shapes, stored, str(eqn.params.get("dimension_numbers")), str(eqn.params))
        groups.setdefault(key, []).append(product)
    return [
        _Timed(f"product_{i}", group[0], tuple(p.module for p in group))
        for i, group in enumerate(groups.values())
    ]


def _alone(product: Product, rows: Any) -> core.ClosedJaxpr:
    """A program of one product, made by the model's own body; its weights are constants with random values.
    Like a tower's, its last input tells the number of candidates."""
    eqn = product.equation
    rng = np.random.default_rng(0)
    stored = [
        None if weight is None else jnp.asarray(rng.normal(size=v.aval.shape), jnp.float32)
        for v, weight in zip(eqn.invars, product.weights, strict=True)
    ]

    def run(*inputs: Any) -> Any:
        given = iter(inputs[:-1])
        operands = [next(given) if weight is None else weight for weight in stored]
        return eqn.primitive.bind(*operands, **eqn.params)

    avals = [v.aval for v, weight in zip(eqn.invars, stored, strict=True) if weight is None]
    block = jax.ShapeDtypeStruct((rows, 1), np.float32)
    return jax.make_jaxpr(run)(*(jax.ShapeDtypeStruct(a.shape, a.dtype) for a in avals), block)


def _arguments(product: Product, candidates: int) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    inputs = [v for v, w in zip(product.equation.invars, product.weights, strict=True) if w is None]
    shapes = [[evaluated(d, candidates) for d in v.aval.shape] for v in inputs]
    return [rng.normal(size=shape).astype(np.float32) for shape in [*shapes, [candidates, 1]]]


def _load(directory: Path, driver: str) -> Callable[[str], Callable[..., Any]]:
    allocators: Any = ["caching"]
    instance, device = rt.VmInstance(), rt.get_driver(driver).create_default_device(allocators=allocators)
    index = rt.ParameterIndex()
    index.load(str(directory / "products.irpa"))
    program = rt.VmModule.mmap(instance, str(directory / "dense.vmfb"))
    provider = rt.create_io_parameters_module(instance, index.create_provider(scope=WEIGHTS_SCOPE))
    context = rt.VmContext(instance, modules=[provider, rt.create_hal_module(instance, device), program])

    def function(name: str) -> Callable[..., Any]:
        found = program.lookup_function(name)
        if found is None:
            raise CompileError(
                f"the program of single products has no function @{name}; please report this model"
            )
        return rt.FunctionInvoker(context, device, found)

    return function
