# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""IREE modules from lowered StableHLO: the flags of each target, in one place."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import iree.compiler.tools as iree_tools
from iree.compiler import ir
from iree.compiler import version as iree_version

from jaxrank.bundle import packed_weights
from jaxrank.cpu import LEVELS, instruction_sets
from jaxrank.targets import CPU_TARGETS, HOST_CPU
from mlir_pipeline.errors import CompileError
from mlir_pipeline.packing import UnstoredError, encoder_flags, pack
from mlir_pipeline.passes.program import modules_in_diagnostics

log = logging.getLogger("jaxrank")

CUDA_ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_89")

# What every Vulkan 1.1 device with 32 KiB of shared memory has. IREE's named profiles fix a subgroup size,
# and a reduction over 32 lanes is silently wrong on a device with another one (Mesa's software device has 8),
# so subgroup operations are off.
_PORTABLE_VULKAN = """#hal.device.target<"vulkan", [
  #hal.executable.target<"vulkan-spirv", "vulkan-spirv-fb", {
  iree_codegen.target_info = #iree_gpu.target<arch = "portable", features = "spirv:v1.3,cap:Shader",
    wgp = <compute = fp32|int32|int8, storage = b32|b8, subgroup = none, subgroup_size_choices = [32],
           max_workgroup_sizes = [128, 128, 64], max_thread_count_per_workgroup = 128,
           max_workgroup_memory_bytes = 32768,
           max_workgroup_counts = [65535, 65535, 65535]>>}>]> : !hal.device"""


_DATA_TILING = "--iree-global-opt-data-tiling=true"
"""Matrices are packed into tiles in the global optimization phase. The other way that IREE 3.13 has
(`--iree-opt-data-tiling`, on by default at O3) packs when dispatches are made: it loses three times on a few
rows and on attention, and gains the same on large products (docs/architecture.md, "Measured here")."""

_CPU = (
    "--iree-hal-target-device=local",
    "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-llvmcpu-stack-allocation-limit=1048576",
    "--iree-llvmcpu-loop-vectorization=true",
    "--iree-llvmcpu-loop-interleaving=true",
    "--iree-opt-data-tiling=false",
)


@dataclass(frozen=True)
class IreeTarget:
    """How to compile for one target, and the HAL driver that runs the result."""

    name: str
    driver: str
    flags: tuple[str, ...]
    device: str | None = None
    """A device target attribute in place of the flags that name one of IREE's own."""
    instruction_sets: tuple[str, ...] = ()
    """What a CPU module may use."""

    @property
    def directory(self) -> str:
        """The bundle's directory for this target; target names hold characters that file names should not."""
        return self.name.replace(":", "-")

    @property
    def on_cpu(self) -> bool:
        """Whether it is one of the CPU's."""
        return self.driver.startswith("local")

    @property
    def runs_here(self) -> bool:
        """Whether it is a CPU's, and this one has every instruction set that its modules may use."""
        return self.on_cpu and set(self.instruction_sets) <= instruction_sets()

    def with_data_tiling(self) -> "IreeTarget":
        """The same target, with matrices packed into tiles before they are multiplied."""
        return replace(self, flags=(*self.flags, _DATA_TILING))


def parse_target(name: str) -> IreeTarget:
    """`cpu`, `cpu:x86-64-v3`, `cuda:sm_80` or `vulkan`. Raises `CompileError` with the list of targets."""
    kind, _, architecture = name.partition(":")
    if name == HOST_CPU:
        flags = (*_CPU, "--iree-llvmcpu-target-cpu=host")
        return IreeTarget(name, "local-sync", flags, instruction_sets=tuple(sorted(instruction_sets())))
    if kind == HOST_CPU and architecture in LEVELS:
        flags = (
            *_CPU,
            "--iree-llvmcpu-target-triple=x86_64-unknown-linux-gnu",
            f"--iree-llvmcpu-target-cpu={architecture}",
        )
        return IreeTarget(name, "local-sync", flags, instruction_sets=tuple(sorted(LEVELS[architecture])))
    if kind == "cuda" and architecture in CUDA_ARCHITECTURES:
        return IreeTarget(
            name, "cuda", ("--iree-hal-target-device=cuda", f"--iree-cuda-target={architecture}")
        )
    if name == "vulkan":
        return IreeTarget(name, "vulkan", (), device=_PORTABLE_VULKAN)
    known = [*CPU_TARGETS, *(f"cuda:{a}" for a in CUDA_ARCHITECTURES), "vulkan"]
    raise CompileError(f"there is no target {name!r}; targets are: {', '.join(known)}")


def compile_module(module: str, target: IreeTarget, output: Path, weights: Path | None = None) -> str:
    """Compiles a module's text to the file `output`.

    With an archive of `weights` that exists, those that a CPU's module packs are packed here, where this CPU
    can run it: `output` has an archive beside it then (`packing.py`). Without, whoever loads the module does.

    Returns the compiler's name and version. Raises `CompileError` with IREE's diagnostics, which name the
    Flax modules where the text does (`Program.text_with_modules`).
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    compiled, flags = compiler_input(module, target)
    encoder = output.with_suffix(".encoder.mlir")
    archive = weights if weights is not None and weights.exists() and target.runs_here else None
    remove_module(output)
    try:
        splitting = encoder_flags(encoder) if archive is not None else []
        iree_tools.compile_str(compiled, output_file=str(output), extra_args=[*flags, *splitting])
        if archive is not None and encoder.exists():
            pack(encoder, flags, archive, output, target.driver)
    except iree_tools.CompilerToolError as error:
        remove_module(output)
        found = modules_in_diagnostics(str(error), module, compiled)
        raise CompileError(f"IREE cannot compile the dense program for {target.name}:\n{found}") from error
    except UnstoredError as error:
        log.warning("%s is packed by whoever loads it: %s", output.name, error)
        return compile_module(module, target, output)
    except CompileError:
        remove_module(output)
        raise
    finally:
        encoder.unlink(missing_ok=True)
    return f"iree {iree_version.VERSION}"


def move_module(module: Path, to: Path) -> None:
    """Puts a compiled module, with its archive, in the place of another one."""
    module.replace(to)
    packed_weights(to).unlink(missing_ok=True)
    if packed_weights(module).exists():
        packed_weights(module).replace(packed_weights(to))


def remove_module(module: Path) -> None:
    """Removes a compiled module and its archive, where they are."""
    module.unlink(missing_ok=True)
    packed_weights(module).unlink(missing_ok=True)


def compiler_input(module: str, target: IreeTarget, *, locations: bool = False) -> tuple[str, list[str]]:
    """A module's text and the flags, as IREE's compiler gets them for a target. `locations` keeps those that
    the text has."""
    flags = [
        *target.flags,
        "--iree-opt-level=O3",
        "--iree-input-type=stablehlo",
        # Sums over candidates are in double precision (passes/refuse_wide_types.py) where they are made one
        # after the other. GPUs add in trees; IREE 3.13 does not distribute such a sum in double precision
        # there.
        f"--iree-input-demote-f64-to-f32={'false' if target.on_cpu else 'true'}",
    ]
    if target.device is not None:
        with ir.Context():
            parsed = ir.Module.parse(module)
            parsed.operation.attributes["hal.device.targets"] = ir.ArrayAttr.get(
                [ir.Attribute.parse(target.device)]
            )
            module = parsed.operation.get_asm(enable_debug_info=locations)
    return module, flags
