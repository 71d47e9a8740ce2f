"""Each test here fails on the day an IREE workaround can go: then delete the workaround that it names."""

import subprocess
import sys
import textwrap

import iree.compiler.tools as iree_tools
import iree.runtime as rt
import numpy as np
import pytest

_CPU = [
    "--iree-hal-target-device=local",
    "--iree-hal-local-target-device-backends=llvm-cpu",
    "--iree-llvmcpu-target-cpu=host",
    "--iree-input-type=stablehlo",
]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(
            """
            func.func @f(%x: tensor<?x1xf32>, %n: tensor<2xi32>) -> tensor<?x8xf32> {
              %0 = stablehlo.dynamic_broadcast_in_dim %x, %n, dims = [0, 1]
                : (tensor<?x1xf32>, tensor<2xi32>) -> tensor<?x8xf32>
              return %0 : tensor<?x8xf32>
            }""",
            id="dynamic_broadcast_in_dim of a dynamic operand",
        ),
        pytest.param(
            """
            func.func @f(%x: tensor<?x4x8xf32>, %n: tensor<2xi32>) -> tensor<?x32xf32> {
              %0 = stablehlo.dynamic_reshape %x, %n : (tensor<?x4x8xf32>, tensor<2xi32>) -> tensor<?x32xf32>
              return %0 : tensor<?x32xf32>
            }""",
            id="dynamic_reshape",
        ),
        pytest.param(
            """
            func.func @f(%x: tensor<?x4x8xf32>, %w: tensor<8x16xf32>) -> tensor<?x4x16xf32> {
              %0 = stablehlo.dot_general %x, %w, contracting_dims = [2] x [0]
                : (tensor<?x4x8xf32>, tensor<8x16xf32>) -> tensor<?x4x16xf32>
              return %0 : tensor<?x4x16xf32>
            }""",
            id="dynamic dot_general",
        ),
    ],
)
def test_iree_still_refuses(body: str) -> None:
    """`passes/legalize_dynamism.py` stands in for these."""
    with pytest.raises(iree_tools.CompilerToolError):
        iree_tools.compile_str(f"module {{ {textwrap.dedent(body)} }}", extra_args=_CPU)


def test_iree_still_fuses_a_reduction_wrongly() -> None:
    """`rewrites/separate_reductions.py` stands in for this: `s[:, None] * s[None]` with `s = x.sum(0)`."""
    module = """
        func.func @f(%x: tensor<2x3xf32>) -> tensor<3x3xf32> {
          %zero = stablehlo.constant dense<0.0> : tensor<f32>
          %s = stablehlo.reduce(%x init: %zero) applies stablehlo.add across dimensions = [0]
            : (tensor<2x3xf32>, tensor<f32>) -> tensor<3xf32>
          %a = stablehlo.broadcast_in_dim %s, dims = [0] : (tensor<3xf32>) -> tensor<3x3xf32>
          %b = stablehlo.broadcast_in_dim %s, dims = [1] : (tensor<3xf32>) -> tensor<3x3xf32>
          %r = stablehlo.multiply %a, %b : tensor<3x3xf32>
          return %r : tensor<3x3xf32>
        }"""
    instance = rt.VmInstance()
    device = rt.get_driver("local-sync").create_default_device()
    compiled = iree_tools.compile_str(f"module {{ {module} }}", extra_args=_CPU)
    program = rt.VmModule.copy_buffer(instance, compiled)
    context = rt.VmContext(instance, modules=[rt.create_hal_module(instance, device), program])
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = rt.FunctionInvoker(context, device, program.lookup_function("f"))(x).to_host()
    assert not np.allclose(found, np.outer(x.sum(0), x.sum(0)))


def test_device_arrays_still_have_no_public_buffer() -> None:
    """`serving/transfer.py` reads `DeviceArray._buffer_view`."""
    code = "import iree.runtime as rt; print([n for n in dir(rt.DeviceArray) if n == 'buffer_view'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
