"""A bundle's Flax module with its weights, as Python objects: for training, for the compiler, and for
certificates."""

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from jaxrank.host_program import BlockColumn, HostProgram
from jaxrank.manifest import Manifest, Scope


def load_flax(bundle: Path) -> nnx.Module:
    """The bundle's `Ranker` with trained weights. Runs the bundle's `model.py`: only for bundles that you
    trust.

    Raises `BundleError` when `params.safetensors` does not fit the module.
    """
    ranker = load_source(bundle).Ranker(rngs=nnx.Rngs(0))
    weights = load_file(bundle / files.PARAMS)
    state = nnx.state(ranker, nnx.Param)
    expected = {".".join(map(str, path)): param for path, param in nnx.to_flat_state(state)}
    if set(expected) != set(weights):
        odd = sorted(set(expected) ^ set(weights))
        raise BundleError(f"{bundle / files.PARAMS} and {bundle / files.MODEL} disagree on {', '.join(odd)}")
    for name, param in expected.items():
        if param.shape != weights[name].shape:
            raise BundleError(
                f"{bundle / files.PARAMS}: {name} has shape {weights[name].shape}, the module expects "
                f"{param.shape}"
            )
        param[...] = jnp.asarray(weights[name])
    nnx.update(ranker, state)
    return ranker


def load_source(bundle: Path) -> ModuleType:
    """Imports the bundle's `model.py` under a name of its own."""
    path = bundle / files.MODEL
    name = f"jaxrank_bundle_{abs(hash(str(path.resolve())))}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise BundleError(f"{path} does not exist; convert the model again")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    write, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = write
    return module


def rows_function(bundle: Path) -> Callable[[Any, Any], tuple[Any, ...]]:
    """`(request_block [1, R], candidate_block [N, C]) -> outputs [N, ...]`: the outputs that
    `dense_outputs` names.

    The module runs on one candidate row, vmapped over candidates: JAX's batching rules leave alone what
    depends on the request only. A module that mixes candidates takes them all at once.
    """
    manifest, program = files.read_manifest(bundle), files.read_host_program(bundle)
    source = load_source(bundle)
    ranker = load_flax(bundle)
    _name_scopes(ranker)
    names = dense_outputs(manifest, program)

    def rows(request_block: Any, candidate_block: Any) -> tuple[Any, ...]:
        request = source.Request(**unpack(request_block, program.columns, "request"))

        def one(row: Any) -> tuple[Any, ...]:
            candidate = source.Candidate(**unpack(row[None], program.columns, "candidate"))
            scores = ranker(request, candidate)
            return tuple(scores[name][0] for name in names)

        return jax.vmap(one)(candidate_block)

    def all_at_once(request_block: Any, candidate_block: Any) -> tuple[Any, ...]:
        request = source.Request(**unpack(request_block, program.columns, "request"))
        candidate = source.Candidate(**unpack(candidate_block, program.columns, "candidate"))
        scores = ranker(request, candidate)
        return tuple(scores[name] for name in names)

    return rows if manifest.row_wise else all_at_once


def _name_scopes(ranker: nnx.Module) -> None:
    """Makes every submodule trace its call under its path ("@experts.0.hidden"), so that the compiler
    knows which module an equation belongs to. `nnx` names no scopes by itself, and a call is looked up on
    the class: each instance gets a subclass of its own."""
    for path, module in nnx.iter_modules(ranker):
        kind = type(module)
        if path and callable(module):
            scope = "@" + ".".join(map(str, path))

            def call(self: Any, *args: Any, _kind: Any = kind, _scope: str = scope, **kwargs: Any) -> Any:
                with jax.named_scope(_scope):
                    return _kind.__call__(self, *args, **kwargs)

            metaclass: Any = type(kind)
            module.__class__ = metaclass(kind.__name__, (kind,), {"__call__": call})


def dense_outputs(manifest: Manifest, program: HostProgram) -> list[str]:
    """The signature's outputs that the Flax module makes, in order; the host makes the others."""
    by_host = {o.output for o in program.outputs}
    return [t.name for t in manifest.signature.outputs if t.name not in by_host]


def unpack(block: Any, columns: tuple[BlockColumn, ...], scope: Scope) -> dict[str, Any]:
    features = {}
    for column in columns:
        if column.scope == scope:
            width = int(np.prod(column.shape, dtype=np.int64))
            value = jax.lax.slice_in_dim(block, column.offset, column.offset + width, axis=1)
            value = jnp.reshape(value, (block.shape[0], *column.shape))
            if column.dtype == "bool":
                value = value != 0
            elif column.dtype == "int32":
                value = jax.lax.bitcast_convert_type(value, jnp.int32)
            features[column.feature] = value
    return features
