# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Towers for many requests at once: candidates as tiles, each with the index of the request that owns it.

    request_batch(request_blocks [B, R]) -> state [B, ...]
    candidate_tiles(*state [B, ...], owner [t], tiles [t, T, C]) -> outputs [t, T, ...]

Requests of any length share one call without repeating a request's row for each of its candidates: one of N
candidates is `ceil(N / T)` tiles, the last one padded. `B` and `t` are chosen at run time, `T` is static.

Every request owns a tile, so `B <= t`: the passes know one unknown size of a function, `t`, and an owner is
held below that.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from iree.compiler import ir
from jax import export
from jax.errors import InconclusiveDimensionOperation
from jax.extend import core

from jaxrank.manifest import Manifest
from jaxrank.towers import CANDIDATE_TILES, REQUEST_BATCH
from mlir_pipeline.dump import IrDump
from mlir_pipeline.errors import CompileError
from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.lower import lower
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import PASSES, run_passes
from mlir_pipeline.rewriting import trace
from mlir_pipeline.split import Towers


@dataclass(frozen=True)
class Batch:
    """The module for many requests, as IREE is given it."""

    text: str
    """Empty where there is none."""
    rows: int
    """Of one tile."""
    weights: Mapping[str, np.ndarray]
    """What it reads from the weight archive, by parameter name. Names are made of contents: most are those of
    the other programs."""
    note: str
    """Why there is none, where it was asked for and the model runs its requests one by one."""


def lower_batch(bundle: Path, manifest: Manifest, rows: int) -> Batch:
    """The bundle's towers for many requests and tiles of `rows` candidates, through every pass. A model that
    this cannot be done for gets a note; one without state needs no such program and gets none."""
    if not manifest.row_wise:
        note = "no program for many requests: the model sees all candidates of a request at once"
        return Batch("", rows, {}, note)
    if not manifest.state:
        return Batch("", rows, {}, "")
    try:
        towers = trace(bundle, rows)
        if not towers.state:
            raise CompileError(f"with {rows} rows nothing depends on the request alone")
        program = Program(lower(batched(towers), ir.Context(), (REQUEST_BATCH, CANDIDATE_TILES)))
        run_passes(program, PASSES, IrDump(None))
    except (CompileError, InconclusiveDimensionOperation, NotImplementedError) as error:
        return Batch("", rows, {}, f"no program for many requests: {error}")
    return Batch(program.text_with_modules(), rows, program.weights, "")


def batched(towers: Towers) -> Towers:
    """The towers of one request with exactly T candidates, for `B` requests and `t` tiles.

    JAX's batching rules do it: what depends on weights only stays as it is. Needs towers with state; without
    one, candidates of any requests are rows of one block and need no tiles.
    """
    if not towers.state:
        raise ValueError(
            "a model without a request side needs no tiles: its candidates are rows of one block"
        )
    requests, tiles = export.symbolic_shape("b, n")
    request_block = towers.request.jaxpr.invars[0].aval
    candidate_block = towers.candidate.jaxpr.invars[-1].aval
    request = core.jaxpr_as_fun(towers.request)
    candidate = core.jaxpr_as_fun(towers.candidate)

    def request_batch(blocks: Any) -> list[Any]:
        return jax.vmap(lambda block: request(block[None]))(blocks)

    def candidate_tiles(*arguments: Any) -> list[Any]:
        *state, owner, blocks = arguments
        # The server makes the owners: each is less than B.
        owned = [jnp.take(s, owner, axis=0, mode="clip") for s in state]
        return jax.vmap(lambda *inputs: candidate(*inputs))(*owned, blocks)

    state = [jax.ShapeDtypeStruct((requests, *a.shape), a.dtype) for a in towers.state]
    return Towers(
        request=flat_jaxpr(
            request_batch, jax.ShapeDtypeStruct((requests, *request_block.shape[1:]), request_block.dtype)
        ),
        candidate=flat_jaxpr(
            candidate_tiles,
            *state,
            jax.ShapeDtypeStruct((tiles,), jnp.int32),
            jax.ShapeDtypeStruct((tiles, *candidate_block.shape), candidate_block.dtype),
        ),
        state=towers.state,
        names=towers.names,
    )
