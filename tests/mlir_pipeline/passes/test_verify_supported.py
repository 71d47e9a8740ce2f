# The MLIR objects of IREE ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""What IREE refuses, each held against IREE itself; and one error for all of it."""

import re
import textwrap
from pathlib import Path

import pytest
from iree.compiler import ir

from mlir_pipeline.dump import IrDump
from mlir_pipeline.errors import CompileError
from mlir_pipeline.iree import compile_module, parse_target
from mlir_pipeline.passes.program import Program
from mlir_pipeline.passes.run import FOR_IREE, run_passes
from mlir_pipeline.passes.verify_supported import UNSUPPORTED, verify_supported

CPU, CUDA = "cpu", "cuda:sm_80"
_BODY = (
    "({ ^bb0(%a: tensor<f32>, %b: tensor<f32>): %s = stablehlo.add %a, %b : tensor<f32>\n"
    "stablehlo.return %s : tensor<f32> })"
)
_ZERO = "%z = stablehlo.constant dense<0.0> : tensor<f32>"

REFUSED = {
    "custom call": (
        "(%x: tensor<4xf32>) -> tensor<4xf32>",
        "%r = stablehlo.custom_call @lapack_sgetrf(%x) : (tensor<4xf32>) -> tensor<4xf32>",
        "stablehlo.custom_call @lapack_sgetrf .*: it calls another library's kernel; write the layer with "
        "jax.numpy",
    ),
    "triangular solve": (
        "(%x: tensor<4x4xf32>) -> tensor<4x4xf32>",
        '%r = "stablehlo.triangular_solve"(%x, %x) <{left_side = true, lower = true, unit_diagonal = false, '
        "transpose_a = #stablehlo<transpose NO_TRANSPOSE>}> : (tensor<4x4xf32>, tensor<4x4xf32>) -> "
        "tensor<4x4xf32>",
        "triangular_solve .*; multiply by an inverse",
    ),
    "cholesky": (
        "(%x: tensor<4x4xf32>) -> tensor<4x4xf32>",
        "%r = stablehlo.cholesky %x, lower = true : tensor<4x4xf32>",
        "cholesky .*; store the factor as a weight",
    ),
    "convolution with computed padding": (
        "(%x: tensor<1x8x3xf32>, %w: tensor<2x3x4xf32>, %p: tensor<1x2xi32>) -> tensor<1x?x4xf32>",
        '%r = "stablehlo.dynamic_conv"(%x, %w, %p) <{dimension_numbers = #stablehlo.conv<[b, 0, f]x[0, i, '
        "o]->"
        "[b, 0, f]>, batch_group_count = 1 : i64, feature_group_count = 1 : i64}> : "
        "(tensor<1x8x3xf32>, tensor<2x3x4xf32>, tensor<1x2xi32>) -> tensor<1x?x4xf32>",
        "dynamic_conv .*; give the padding as numbers",
    ),
    "dynamic reshape": (
        "(%x: tensor<?x2xf32>, %n: tensor<1xi32>) -> tensor<?xf32>",
        "%r = stablehlo.dynamic_reshape %x, %n : (tensor<?x2xf32>, tensor<1xi32>) -> tensor<?xf32>",
        "dynamic_reshape .*: IREE has no lowering for it",
    ),
    "dynamic padding": (
        "(%x: tensor<?xf32>, %n: tensor<1xi32>) -> tensor<?xf32>",
        f"{_ZERO}\n%r = stablehlo.dynamic_pad %x, %z, %n, %n, %n : (tensor<?xf32>, tensor<f32>, "
        f"tensor<1xi32>, "
        "tensor<1xi32>, tensor<1xi32>) -> tensor<?xf32>",
        "dynamic_pad .*; give the padding as numbers",
    ),
    "gather of dynamic slices": (
        "(%x: tensor<8x?xf32>, %i: tensor<3x1xi32>, %s: tensor<2xi32>) -> tensor<3x?xf32>",
        '%r = "stablehlo.dynamic_gather"(%x, %i, %s) <{dimension_numbers = #stablehlo.gather<offset_dims = '
        "[1], "
        "collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>}> : "
        "(tensor<8x?xf32>, tensor<3x1xi32>, tensor<2xi32>) -> tensor<3x?xf32>",
        "dynamic_gather .*: the size of its slices is computed",
    ),
    "gather by dynamic indices": (
        "(%x: tensor<8x4xf32>, %i: tensor<?x1xi32>) -> tensor<?x4xf32>",
        '%r = "stablehlo.gather"(%x, %i) <{dimension_numbers = #stablehlo.gather<offset_dims = [1], '
        "collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, slice_sizes = "
        "array<i64: 1, 4>}> : "
        "(tensor<8x4xf32>, tensor<?x1xi32>) -> tensor<?x4xf32>",
        "gather .*: its indices have a dynamic shape",
    ),
    "broadcast of a dynamic operand": (
        "(%x: tensor<?x1xf32>, %n: tensor<2xi32>) -> tensor<?x8xf32>",
        "%r = stablehlo.dynamic_broadcast_in_dim %x, %n, dims = [0, 1] "
        ": (tensor<?x1xf32>, tensor<2xi32>) -> tensor<?x8xf32>",
        "dynamic_broadcast_in_dim .*: it repeats a tensor of dynamic shape",
    ),
    "update of a dynamic tensor": (
        "(%x: tensor<?xf32>, %u: tensor<3xf32>, %n: tensor<i32>) -> tensor<?xf32>",
        "%r = stablehlo.dynamic_update_slice %x, %u, %n : (tensor<?xf32>, tensor<3xf32>, tensor<i32>) -> "
        "tensor<?xf32>",
        "dynamic_update_slice .*: it writes into a tensor of dynamic shape",
    ),
    "scatter into every row": (
        "(%x: tensor<?x6xf32>, %i: tensor<?x1xi32>, %u: tensor<?xf32>) -> tensor<?x6xf32>",
        '%r = "stablehlo.scatter"(%x, %i, %u) <{scatter_dimension_numbers = '
        "#stablehlo.scatter<inserted_window_dims "
        "= [1], input_batching_dims = [0], scatter_indices_batching_dims = [0], "
        "scatter_dims_to_operand_dims = [1], "
        f"index_vector_dim = 1>}}> {_BODY} : (tensor<?x6xf32>, tensor<?x1xi32>, tensor<?xf32>) -> "
        f"tensor<?x6xf32>",
        "scatter .*; add up one-hot vectors",
    ),
    "product of three dimensions": (
        "(%x: tensor<?x4x8xf32>, %w: tensor<8x16xf32>) -> tensor<?x4x16xf32>",
        "%r = stablehlo.dot_general %x, %w, contracting_dims = [2] x [0] "
        ": (tensor<?x4x8xf32>, tensor<8x16xf32>) -> tensor<?x4x16xf32>",
        "dot_general .*: it is no product of two matrices",
    ),
    "dynamic barrier": (
        "(%x: tensor<?x4xf32>) -> tensor<?x4xf32>",
        "%r = stablehlo.optimization_barrier %x : tensor<?x4xf32>",
        "optimization_barrier .*: its operand has a dynamic shape",
    ),
    "dynamic pooling": (
        "(%x: tensor<?x8xf32>) -> tensor<?x6xf32>",
        f'{_ZERO}\n%r = "stablehlo.reduce_window"(%x, %z) <{{window_dimensions = array<i64: 1, 3>}}> {_BODY} '
        ": (tensor<?x8xf32>, tensor<f32>) -> tensor<?x6xf32>",
        "reduce_window .*; work on one row at a time",
    ),
    "sort of candidates with their positions": (
        "(%x: tensor<?xf32>, %p: tensor<?xi32>) -> tensor<?xf32>",
        '%r, %q = "stablehlo.sort"(%x, %p) <{dimension = 0 : i64}> ({ ^bb0(%a: tensor<f32>, %b: tensor<f32>, '
        "%c: tensor<i32>, %d: tensor<i32>): %l = stablehlo.compare LT, %a, %b : (tensor<f32>, tensor<f32>) "
        "-> "
        "tensor<i1>\n %e = stablehlo.compare EQ, %a, %b : (tensor<f32>, tensor<f32>) -> tensor<i1>\n"
        "%f = stablehlo.compare LT, %c, %d : (tensor<i32>, tensor<i32>) -> tensor<i1>\n"
        "%g = stablehlo.and %e, %f : tensor<i1>\n %s = stablehlo.or %l, %g : tensor<i1>\n"
        "stablehlo.return %s : tensor<i1> }) : (tensor<?xf32>, tensor<?xi32>) -> (tensor<?xf32>, "
        "tensor<?xi32>)",
        "sort .*: it sorts several tensors along a dynamic dimension",
    ),
    "8-bit floats": (
        "(%x: tensor<4xf8E4M3FN>) -> tensor<4xf8E4M3FN>",
        "%r = stablehlo.add %x, %x : tensor<4xf8E4M3FN>",
        "add .*: a value of type f8E4M3FN; .* store float16",
    ),
}
ON_CUDA_ONLY = {"8-bit floats"}


def _module(signature: str, body: str) -> str:
    kind = signature.split("-> ")[1]
    return f"func.func @f{signature} {{\n{textwrap.dedent(body)}\nreturn %r : {kind}\n}}"


@pytest.mark.parametrize("name", REFUSED)
def test_what_iree_refuses_is_refused_with_a_suggestion(name: str) -> None:
    signature, body, expected = REFUSED[name]
    module = ir.Module.parse(_module(signature, body), ir.Context())
    (refusal,) = verify_supported(module.operation)
    assert re.search(expected, str(refusal)), str(refusal)


@pytest.mark.parametrize("name", REFUSED)
def test_iree_still_refuses(name: str, tmp_path: Path) -> None:
    """Fails on the day IREE takes it: then take the form out of `UNSUPPORTED`."""
    signature, body, _ = REFUSED[name]
    target = parse_target(CUDA if name in ON_CUDA_ONLY else CPU)
    with pytest.raises(CompileError, match="IREE cannot compile"):
        compile_module(_module(signature, body), target, tmp_path / "dense.vmfb")


def test_every_form_is_held_against_iree() -> None:
    bodies = " ".join(body for _, body, _ in REFUSED.values())
    assert all(op in bodies for op in UNSUPPORTED)


def test_one_error_lists_everything_with_its_flax_module() -> None:
    source = """
        func.func @f(%x: tensor<4x4xf32>, %y: tensor<?x4xf32>) -> tensor<4x4xi64> {
          %0 = stablehlo.custom_call @lapack_sgetrf(%x) : (tensor<4x4xf32>) -> tensor<4x4xf32>
            loc("jit(f)/@experts.0.hidden/lu")
          %1 = stablehlo.cholesky %0, lower = true : tensor<4x4xf32> loc("jit(f)/@experts.0/@tower/cholesky")
          %2 = stablehlo.convert %1 : (tensor<4x4xf32>) -> tensor<4x4xi64>
          return %2 : tensor<4x4xi64>
        }"""
    program = Program(ir.Module.parse(source, ir.Context()))
    with pytest.raises(CompileError) as error:
        run_passes(program, FOR_IREE, IrDump(None))
    assert str(error.value).split("\n") == [
        "3 operations cannot be compiled:",
        "- stablehlo.custom_call @lapack_sgetrf in module experts.0.hidden: it calls 'lapack_sgetrf', code "
        "that is "
        "not part of the module; write the layer with jax.numpy and jax.lax operations that are not linear "
        "algebra "
        "solvers or FFTs, or move it into the host program",
        "- stablehlo.cholesky in module tower: IREE has no lowering for it; store the factor as a weight",
        "- stablehlo.convert in the model's own body: a value of type i64; ids are looked up on the host; "
        "use int32",
    ]


@pytest.mark.parametrize("target", [CPU, "vulkan"])
def test_what_iree_says_names_the_flax_module(target: str, tmp_path: Path) -> None:
    """Of an operation that the verifier was not asked about; vulkan's attributes move every line."""
    source = """
        func.func @f(%x: tensor<4x4xf32>) -> tensor<4x4xf32> {
          %0 = stablehlo.add %x, %x : tensor<4x4xf32> loc("jit(f)/@experts.1/add")
          %1 = stablehlo.cholesky %0, lower = true : tensor<4x4xf32> loc("jit(f)/@experts.0.hidden/cholesky")
          %2 = stablehlo.multiply %1, %1 : tensor<4x4xf32>
          return %2 : tensor<4x4xf32>
        }"""
    program = Program(ir.Module.parse(source, ir.Context()))
    text = program.text_with_modules()
    assert [line.split("//")[1].strip() for line in text.split("\n") if "//" in line] == [
        "in module experts.1", "in module experts.0.hidden",
    ]  # fmt: skip
    assert Program(ir.Module.parse(text, ir.Context())).text() == program.text()
    with pytest.raises(CompileError) as error:
        compile_module(text, parse_target(target), tmp_path / "dense.vmfb")
    message = str(error.value)
    assert re.search(r"<stdin>:\d+:\d+: in module experts\.0\.hidden: error: ", message), message[:500]
    assert "in module experts.1: error" not in message
