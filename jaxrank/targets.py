"""Which of a bundle's compiled targets runs on a machine."""

from collections.abc import Set
from pathlib import Path

from jaxrank.cpu import LEVELS, instruction_sets
from jaxrank.errors import BundleError
from jaxrank.manifest import Manifest, Target

HOST_CPU = "cpu"
"""The target that is compiled for the CPU of the machine that compiles; asked for at load, any CPU target
that fits."""

CPU_TARGETS = (HOST_CPU, *(f"{HOST_CPU}:{level}" for level in LEVELS))


def choose_target(
    bundle: Path,
    manifest: Manifest,
    wanted: str,
    available: Set[str] | None = None,
    *,
    engine: str | None = None,
) -> Target:
    """The compiled target that serves `wanted` here.

    `cpu` is the module that was compiled for the compiling machine's CPU if this CPU has all of its
    instruction sets, else the highest of the levels (`cpu:x86-64-v4`, `-v3`, `-v2`) that it has. Every other
    name is that target.

    Args:
        bundle: for messages.
        available: the CPU's instruction sets; this machine's by default.
        engine: which of the target's engines; the manifest's choice by default.

    Raises:
        BundleError: the bundle has no such target, or no module for a CPU like this; says what the CPU lacks.
    """
    available = instruction_sets() if available is None else available
    names = (HOST_CPU, *reversed(CPU_TARGETS[1:])) if wanted == HOST_CPU else (wanted,)
    found = [target for name in names if (target := manifest.target(name, engine)) is not None]
    if not found:
        has = ", ".join(sorted(f"{t.name} with {t.engine}" for t in manifest.targets)) or "none"
        asked = f"{wanted!r} with {engine!r}" if engine else repr(wanted)
        option = f" --engine {engine}" if engine else ""
        raise BundleError(
            f"{bundle} is not compiled for {asked} (it has: {has}); run jaxrank compile {bundle} "
            f"--target {wanted}{option}"
        )
    for target in found:
        if not missing_instruction_sets(target, available):
            return target
    lacks = "; ".join(
        f"{t.name} was compiled for a CPU with {', '.join(sorted(missing_instruction_sets(t, available)))}"
        for t in found
    )
    raise BundleError(
        f"{bundle} has no module for this CPU: {lacks}, which this one does not have; compile it here: "
        f"jaxrank compile {bundle} --target {wanted}"
    )


def missing_instruction_sets(target: Target, available: Set[str] | None = None) -> frozenset[str]:
    """What a target's modules may use and a CPU (this machine's by default) does not have."""
    return frozenset(target.instruction_sets) - (instruction_sets() if available is None else available)


def on_cpu(name: str) -> bool:
    """Whether a target of that name is one of the CPU's."""
    return name.partition(":")[0] == HOST_CPU


def runs_here(target: Target) -> bool:
    """Whether this machine's CPU can run a target."""
    return on_cpu(target.name) and not missing_instruction_sets(target)
