# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""A bundle's Flax module as a jaxpr, through every rewrite, to the two towers."""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from jax import export
from jax.errors import InconclusiveDimensionOperation
from jax.extend import core

from jaxrank import bundle as files
from jaxrank.flax_module import rows_function
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from mlir_pipeline.dump import IrDump
from mlir_pipeline.errors import CompileError
from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.precision.cast import cast_products, modules_of, products
from mlir_pipeline.precision.rules import formats_of
from mlir_pipeline.rewrites.expand_primitives import expand_primitives
from mlir_pipeline.rewrites.fold_affine import fold_affine
from mlir_pipeline.rewrites.hoist_dots import hoist_dots
from mlir_pipeline.rewrites.known_gathers import known_gathers
from mlir_pipeline.rewrites.merge_broadcasts import merge_broadcasts
from mlir_pipeline.rewrites.merge_dots import merge_dots
from mlir_pipeline.rewrites.separate_reductions import separate_reductions
from mlir_pipeline.rewrites.slice_pushdown import slice_pushdown
from mlir_pipeline.rewrites.split_rows import split_rows
from mlir_pipeline.rewrites.stable_sorts import stable_sorts
from mlir_pipeline.rewrites.unbatch_dots import unbatch_dots
from mlir_pipeline.rewrites.unstack_dots import unstack_dots
from mlir_pipeline.split import Towers, split

Rewrite = Callable[[core.ClosedJaxpr], core.ClosedJaxpr]

REWRITES: tuple[Rewrite, ...] = (
    stable_sorts,
    known_gathers,
    expand_primitives,
    unstack_dots,
    slice_pushdown,
    merge_broadcasts,
    split_rows,
    fold_affine,
    hoist_dots,
    unbatch_dots,
    fold_affine,
    separate_reductions,
)
"""Every rewrite of flat jaxprs, in the order in which each finds what it looks for. Affine chains are folded
before products are distributed over a concatenation, which they would hide, and into what comes of it."""


MERGES: tuple[Rewrite, ...] = (merge_dots,)
"""Rewrites that join work of several Flax modules: after each module's products have their precision."""


def steps(bundle: Path) -> tuple[Rewrite, ...]:
    """What a bundle's module goes through, in order: the rewrites, its precision, and the merges."""
    rules = files.read_manifest(bundle).precision

    def lower_precision(flat: core.ClosedJaxpr) -> core.ClosedJaxpr:
        return cast_products(flat, formats_of(rules, modules_of(products(flat))))

    return (*REWRITES, *((lower_precision,) if rules else ()), *MERGES)


def trace(bundle: Path, rows: int | None = None, dump: IrDump | None = None) -> Towers:
    """The bundle's module as two towers, after the rewrites, in the precision that its manifest says: for any
    number of candidates, or for exactly `rows`. Raises `CompileError` as `flat_module`."""
    dump = dump or IrDump(None)
    flat = flat_module(bundle, rows)
    dump.write_jaxpr("traced", flat)
    towers = split(rewritten(flat, dump, steps(bundle)))
    dump.write_jaxpr(REQUEST_TOWER, towers.request)
    dump.write_jaxpr(CANDIDATE_TOWER, towers.candidate)
    return towers


def flat_module(bundle: Path, rows: int | None = None) -> core.ClosedJaxpr:
    """The bundle's module on rows, before the rewrites and in float32: for any number of candidates, or for
    exactly `rows`.

    Raises `CompileError` for a module that decides by the number of candidates.
    """
    program = files.read_host_program(bundle)
    count = rows or export.symbolic_shape("n")[0]
    request = jax.ShapeDtypeStruct((1, program.width("request")), np.float32)
    candidate = jax.ShapeDtypeStruct((count, program.width("candidate")), np.float32)
    try:
        return flat_jaxpr(rows_function(bundle), request, candidate)
    except InconclusiveDimensionOperation as error:
        raise CompileError(
            f"the model decides by the number of candidates, which one module for any number cannot: {error}"
        ) from error


def rewritten(
    flat: core.ClosedJaxpr,
    dump: IrDump | None = None,
    rewrites: Sequence[Rewrite] = REWRITES,
) -> core.ClosedJaxpr:
    """A flat jaxpr after every rewrite."""
    for rewrite in rewrites:
        flat = rewrite(flat)
        if dump is not None:
            dump.write_jaxpr(getattr(rewrite, "__name__", str(rewrite)), flat)
    return flat
