"""Each test here fails on the day an IREE workaround can go: then delete the workaround that it names."""

import subprocess
import sys
import textwrap

import iree.compiler.tools as iree_tools
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


def test_device_arrays_still_have_no_public_buffer() -> None:
    """`serving/transfer.py` reads `DeviceArray._buffer_view`."""
    code = "import iree.runtime as rt; print([n for n in dir(rt.DeviceArray) if n == 'buffer_view'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
