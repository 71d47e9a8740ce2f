"""Each test here fails on the day an IREE workaround can go: then delete the workaround that it names.

The dynamic ops that IREE refuses, and `passes/legalize/` lowers, are in `passes/test_verify_supported.py`.
"""

import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

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


def _loaded(body: str, flags: list[str] = _CPU) -> Callable[..., Any]:
    """`@f` of a module, on the CPU."""
    instance = rt.VmInstance()
    device = rt.get_driver("local-sync").create_default_device()
    compiled = iree_tools.compile_str(f"module {{ {textwrap.dedent(body)} }}", extra_args=flags)
    program = rt.VmModule.copy_buffer(instance, compiled)
    context = rt.VmContext(instance, modules=[rt.create_hal_module(instance, device), program])
    function = program.lookup_function("f")
    assert function is not None
    return rt.FunctionInvoker(context, device, function)


def test_iree_still_writes_outside_of_a_scatters_operand() -> None:
    """`rewrites/expand_primitives.py` gives such writes a row of their own:
    https://github.com/iree-org/iree/issues/13580. Here one lands in the next row of the operand."""
    run = _loaded("""
        func.func @f(%x: tensor<2x4xf32>, %i: tensor<1x2xi32>, %u: tensor<1xf32>) -> tensor<2x4xf32> {
          %0 = "stablehlo.scatter"(%x, %i, %u) <{scatter_dimension_numbers = #stablehlo.scatter<
              inserted_window_dims = [0, 1], scatter_dims_to_operand_dims = [0, 1], index_vector_dim = 1>}> ({
            ^bb0(%a: tensor<f32>, %b: tensor<f32>): stablehlo.return %b : tensor<f32>
          }) : (tensor<2x4xf32>, tensor<1x2xi32>, tensor<1xf32>) -> tensor<2x4xf32>
          return %0 : tensor<2x4xf32>
        }""")
    found = run(np.zeros((2, 4), np.float32), np.array([[0, 5]], np.int32), np.ones(1, np.float32)).to_host()
    assert found[1, 1] == 1


def test_iree_still_cannot_sort_one_tensor_twice() -> None:
    """`rewrites/stable_sorts.py` sorts an argsort's positions once."""
    body = """
        func.func @f(%x: tensor<?x6xf32>) -> tensor<?x6xi32> {
          %c0 = arith.constant 0 : index
          %n = tensor.dim %x, %c0 : tensor<?x6xf32>
          %e = tensor.empty(%n) : tensor<?x6xi32>
          %p = linalg.generic {indexing_maps = [affine_map<(i, j) -> (i, j)>],
              iterator_types = ["parallel", "parallel"]} outs(%e : tensor<?x6xi32>) {
            ^bb0(%o: i32):
              %i = linalg.index 1 : index
              %v = arith.index_cast %i : index to i32
              linalg.yield %v : i32
          } -> tensor<?x6xi32>
          %0:3 = "stablehlo.sort"(%x, %p, %p) <{dimension = 1 : i64}> ({
            ^bb0(%a: tensor<f32>, %b: tensor<f32>, %c: tensor<i32>, %d: tensor<i32>, %g: tensor<i32>, %h:
              tensor<i32>): %l = stablehlo.compare LT, %a, %b : (tensor<f32>, tensor<f32>) -> tensor<i1>
              %k = stablehlo.compare EQ, %a, %b : (tensor<f32>, tensor<f32>) -> tensor<i1>
              %q = stablehlo.compare LT, %c, %d : (tensor<i32>, tensor<i32>) -> tensor<i1>
              %m = stablehlo.and %k, %q : tensor<i1>
              %s = stablehlo.or %l, %m : tensor<i1>
              stablehlo.return %s : tensor<i1>
          }) : (tensor<?x6xf32>, tensor<?x6xi32>, tensor<?x6xi32>)
            -> (tensor<?x6xf32>, tensor<?x6xi32>, tensor<?x6xi32>)
          return %0#2 : tensor<?x6xi32>
        }"""
    with pytest.raises(iree_tools.CompilerToolError):
        iree_tools.compile_str(f"module {{ {body} }}", extra_args=_CPU)


def test_iree_still_sorts_by_position_too() -> None:
    """`rewrites/stable_sorts.py` makes the position a key: equal keys come out in another order."""
    run = _loaded("""
        func.func @f(%x: tensor<8xi32>, %p: tensor<8xi32>) -> tensor<8xi32> {
          %0:2 = "stablehlo.sort"(%x, %p) <{dimension = 0 : i64, is_stable = true}> ({
            ^bb0(%a: tensor<i32>, %b: tensor<i32>, %c: tensor<i32>, %d: tensor<i32>):
              %s = stablehlo.compare GT, %a, %b : (tensor<i32>, tensor<i32>) -> tensor<i1>
              stablehlo.return %s : tensor<i1>
          }) : (tensor<8xi32>, tensor<8xi32>) -> (tensor<8xi32>, tensor<8xi32>)
          return %0#1 : tensor<8xi32>
        }""")
    keys = np.array([1, 2, 1, 2, 1, 2, 1, 2], np.int32)
    found = run(keys, np.arange(8, dtype=np.int32)).to_host()
    assert not np.array_equal(found, np.argsort(-keys, kind="stable"))


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
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    found = _loaded(module)(x).to_host()
    assert not np.allclose(found, np.outer(x.sum(0), x.sum(0)))


def test_device_arrays_still_have_no_public_buffer() -> None:
    """`bench/gpu/run.py` reads `DeviceArray._buffer_view`."""
    code = "import iree.runtime as rt; print([n for n in dir(rt.DeviceArray) if n == 'buffer_view'])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
