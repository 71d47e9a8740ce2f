# The jaxpr objects of JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""A bundle's files for XLA: one `jax.export` artifact for each tower, for any number of candidates, and the
tiles that the server compiles when it loads them."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax import export
from jax.extend import core

from jaxrank import bundle as files
from jaxrank.manifest import Manifest, Target
from jaxrank.towers import CANDIDATE_TOWER, REQUEST_TOWER
from mlir_pipeline.errors import CompileError
from mlir_pipeline.split import Towers
from serving.engines.weights import WeightSpec
from serving.engines.xla import PROGRAM_SCHEMA, XlaProgram

TILES = (8, 64, 256, 1024)
"""Rows that a program is compiled for. Tiles combine, so padding wastes little; each is a compilation at
load, of seconds."""


def build_xla(
    towers: Towers,
    manifest: Manifest,
    target: str,
    work: Path,
    directory: Path,
    weight_name: Callable[[np.ndarray], str | None],
) -> Target:
    """Writes `<tower>.jax` and `program.json`. Raises `CompileError`: a target that is no platform of JAX, or
    a model that mixes candidates."""
    platform = target.partition(":")[0]
    if platform not in ("cpu", "cuda"):
        raise CompileError(f"XLA has no platform for {target!r}; its targets are cpu and cuda:*")
    if not manifest.row_wise:
        raise CompileError(
            "XLA compiles for a known number of candidates, and a request of a model that mixes candidates "
            "can be neither cut nor padded; use --engine iree or onnxruntime"
        )
    names, weights = {}, {}
    wanted = {REQUEST_TOWER: towers.request} if towers.state else {}
    for tower, closed in {**wanted, CANDIDATE_TOWER: towers.candidate}.items():
        artifact, weights[tower] = _export(closed, platform, weight_name)
        names[tower] = f"{tower}.jax"
        (directory / names[tower]).write_bytes(artifact)
    width = towers.candidate.jaxpr.invars[-1].aval.shape[1]
    program = XlaProgram(
        schema_version=PROGRAM_SCHEMA, tiles=TILES, candidate_width=width, towers=names, weights=weights
    )
    files.write_json(directory / "program.json", program)
    return Target(
        name=target,
        engine="xla",
        driver=platform,
        module=(directory / "program.json").relative_to(work).as_posix(),
        flags=(),
        compiler=f"jax {jax.__version__}",
        certificate=None,
    )


def _export(
    tower: core.ClosedJaxpr, platform: str, weight_name: Callable[[np.ndarray], str | None]
) -> tuple[bytes, tuple[WeightSpec, ...]]:
    """The artifact of a tower whose large weights are arguments, and these weights in order."""
    specs, external, inside = [], [], []
    for var, value in zip(tower.jaxpr.constvars, tower.consts, strict=True):
        array = np.asarray(value)
        name = weight_name(array) if array.dtype.kind in "fV" else None
        if name is None:
            inside.append((var, value))
        else:
            external.append(var)
            specs.append(WeightSpec(name, array.shape, array.dtype.name))
    jaxpr = tower.jaxpr.replace(constvars=[v for v, _ in inside], invars=[*external, *tower.jaxpr.invars])
    closed = core.ClosedJaxpr(jaxpr, [c for _, c in inside])
    avals = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in jaxpr.invars]
    function = jax.jit(core.jaxpr_as_fun(closed), keep_unused=True)
    return bytes(export.export(function, platforms=[platform])(*avals).serialize()), tuple(specs)
