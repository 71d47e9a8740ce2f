"""What each rewrite saves: the towers' cost before the rewrites, and after each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np
from jax.extend import core

from jaxrank import bundle as files
from jaxrank.flax_module import rows_function
from mlir_pipeline.explain.cost import Cost, cost
from mlir_pipeline.jaxpr import flat_jaxpr
from mlir_pipeline.rewriting import Rewrite, flat_module
from mlir_pipeline.split import Towers, split

SPLIT = "request work once"
"""The first step: no rewrite, only the split of the vmapped module by dataflow."""


@dataclass(frozen=True)
class Step:
    """The two towers after a step."""

    name: str
    """`SPLIT`, or the name of the rewrite's function."""
    towers: Towers
    request: Cost
    candidate: Cost


def source_cost(bundle: Path) -> Callable[[int], Cost]:
    """The cost, as a function of the number of candidates, of the Flax module as a TensorFlow graph runs it.

    Such a graph repeats the request's features and computes everything for every candidate: `n` times the
    work for one. A model that mixes candidates takes them all at once, and costs what its module says.
    """
    manifest, program = files.read_manifest(bundle), files.read_host_program(bundle)
    if not manifest.row_wise:
        return cost(flat_module(bundle)).at
    blocks = [jax.ShapeDtypeStruct((1, program.width(s)), np.float32) for s in ("request", "candidate")]
    return cost(flat_jaxpr(rows_function(bundle), *blocks)).times


def measured(flat: core.ClosedJaxpr, rewrites: Sequence[Rewrite]) -> Iterator[Step]:
    """The module after the split alone, then with one rewrite more each time. The last one is what is
    compiled."""
    yield _step(SPLIT, flat)
    for rewrite in rewrites:
        flat = rewrite(flat)
        yield _step(getattr(rewrite, "__name__", str(rewrite)), flat)


def _step(name: str, flat: core.ClosedJaxpr) -> Step:
    towers = split(flat)
    return Step(name, towers, request=cost(towers.request), candidate=cost(towers.candidate))
