"""Weights as a CPU module's products read them, packed when the module is compiled.

IREE hoists what a program does with its weights alone, packing into tiles above all, into an initializer that
runs whenever the module is loaded: on each stream again, in memory of its own, and under Python's lock. Its
compiler can split that work off as a module of its own (*parameter encoder*), whose results are parameters of
the program. That module runs here, once; all streams and processes map what it made.
"""

from pathlib import Path
from typing import Any

import iree.compiler.tools as iree_tools
import iree.runtime as rt
import numpy as np
from iree.runtime import save_archive_file

from jaxrank.bundle import PACKED_SCOPE, WEIGHTS_SCOPE, packed_weights
from mlir_pipeline.errors import CompileError

_BYTES = 1
"""IREE's number of a parameter that is stored."""


class UnstoredError(Exception):
    """An encoder makes a parameter that is no bytes in an archive."""


def encoder_flags(encoder: Path) -> list[str]:
    """With these, IREE's compiler writes the text of the module's encoder to a file, if there is anything to
    encode, and the module reads the results."""
    return [
        f"--iree-parameter-encoder-output-file={encoder}",
        f"--iree-parameter-encoder-output-scope={PACKED_SCOPE}",
        "--iree-parameter-encoder-mode=overlay",
    ]


def pack(encoder: Path, flags: list[str], weights: Path, module: Path, driver: str) -> None:
    """Runs an encoder and writes the archive of `module`: `packed_weights(module)`.

    Args:
        encoder: text that `encoder_flags` asked for.
        flags: of the module, without those.
        weights: the archive of the weights as they are.
        driver: of the device that both run on.

    Raises `CompileError`, and `UnstoredError`.
    """
    compiled = encoder.with_suffix(".vmfb")
    try:
        iree_tools.compile_str(encoder.read_text(), output_file=str(compiled), extra_args=flags)
        values = _encoded(compiled, weights, driver)
    except (iree_tools.CompilerToolError, RuntimeError, ValueError, IndexError) as error:
        raise CompileError(f"the weights of {module.name} cannot be packed: {error}") from error
    finally:
        compiled.unlink(missing_ok=True)
    save_archive_file(values, packed_weights(module))


def _encoded(compiled: Path, weights: Path, driver: str) -> dict[str, np.ndarray]:
    """Bytes of each parameter that an encoder makes."""
    instance, device = rt.VmInstance(), rt.get_driver(driver).create_default_device()
    given, made = rt.ParameterIndex(), rt.ParameterIndex()
    given.load(str(weights))
    scopes = given.create_provider(scope=WEIGHTS_SCOPE), made.create_provider(scope=PACKED_SCOPE)
    program = rt.VmModule.mmap(instance, str(compiled))
    parameters = rt.create_io_parameters_module(instance, *scopes)
    context = rt.VmContext(instance, modules=[parameters, rt.create_hal_module(instance, device), program])

    def run(name: str, *arguments: Any) -> Any:
        function, given, results = program.lookup_function(name), rt.VmVariantList(3), rt.VmVariantList(1)
        if function is None:
            raise ValueError(f"the encoder has no function @{name}")
        for value in arguments:
            push: Any = given.push_list if isinstance(value, rt.VmVariantList) else given.push_ref
            push(value)
        context.invoke(function, given, results)
        return results

    values: dict[str, np.ndarray] = {}
    for scope in _lists(run("__encode_parameter_indices_all").get_as_list(0)):
        for parameter in _lists(scope.get_as_list(1)):
            kind, size = parameter.get_variant(0), parameter.get_variant(3)
            key = bytes(memoryview(parameter.get_as_object(1, rt.VmBuffer))).decode()
            if kind != _BYTES:
                raise UnstoredError(f"its packed {key} is one value again and again")
            values[key] = np.zeros(size, np.uint8)
            made.add_buffer(key, values[key], readable=True, writable=True)
    steps = run("__encode_parameter_steps_all").get_as_list(0)
    semaphore = device.create_semaphore(0)
    now, end = rt.HalFence.create_at(semaphore, 0), rt.HalFence.create_at(semaphore, 1)
    run("__encode_parameters_all", steps, now, end)
    end.wait()
    return values


def _lists(of: Any) -> list[Any]:
    return [of.get_as_list(i) for i in range(len(of))]
