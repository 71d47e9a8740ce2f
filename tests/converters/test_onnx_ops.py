"""The operator table and the writer: what is refused and how, and what the written code looks like."""

import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from converters.errors import UnsupportedOpsError
from converters.flax_writer import module_source
from converters.onnx_ops import OPS

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])


def _model(nodes: list, outputs: tuple[str, ...] = ("y",), inputs: tuple = (X,), **constants: np.ndarray):
    graph = helper.make_graph(
        nodes,
        "g",
        list(inputs),
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def _body(text: str) -> list[str]:
    return [line.strip() for line in text.split("def __call__")[1].splitlines()[1:] if line.strip()]


def test_an_attribute_that_the_table_does_not_know_is_refused() -> None:
    node = helper.make_node("Softmax", ["x"], ["y"], name="scope/softmax", temperature=2.0)
    with pytest.raises(UnsupportedOpsError, match="temperature") as caught:
        module_source(_model([node]))
    assert caught.value.found[0].name == "scope/softmax"


def test_all_refusals_come_at_once() -> None:
    nodes = [
        helper.make_node("RandomUniformLike", ["x"], ["a"], name="noise"),
        helper.make_node("Nonsense", ["a"], ["b"], name="custom"),
        helper.make_node("Cast", ["x"], ["i"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["b", "i"], ["y"], name="reshape"),
    ]
    with pytest.raises(UnsupportedOpsError, match="operand 1 must be a constant") as caught:
        module_source(_model(nodes))
    assert [u.name for u in caught.value.found] == ["noise", "custom", "reshape"]


def test_a_shape_that_depends_on_values_is_refused() -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"], name="found"),
        helper.make_node("Cast", ["where"], ["y"], to=TensorProto.FLOAT),
    ]
    with pytest.raises(UnsupportedOpsError, match="depends on values"):
        module_source(_model(nodes))


def test_a_function_of_onnx_is_expanded() -> None:
    """CenterCropPad has no entry in the table; its schema has a function of slices and pads."""
    assert "CenterCropPad" not in OPS
    node = helper.make_node("CenterCropPad", ["x", "shape"], ["y"], axes=[1])
    text = module_source(_model([node], shape=np.array([2]))).text
    assert "x[:, 1:3]" in text


def test_known_branches_leave_no_trace() -> None:
    def branch(op: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 4])
        return helper.make_graph([helper.make_node(op, ["x"], ["r"])], op, [], [output])

    node = helper.make_node("If", ["c"], ["y"], then_branch=branch("Relu"), else_branch=branch("Exp"))
    text = module_source(_model([node], c=np.array(False))).text
    assert "jnp.exp(x)" in text
    assert "relu" not in text


def test_single_numbers_are_literals_only_where_the_dtype_stays() -> None:
    """`x + 1.0` keeps float32; a select between two numbers has no operand beside them that would."""
    nodes = [
        helper.make_node("Add", ["x", "one"], ["a"]),
        helper.make_node("Less", ["a", "zero"], ["c"]),
        helper.make_node("Where", ["c", "one", "zero"], ["y"]),
    ]
    one, zero = np.array(1, np.float32), np.array(0, np.float32)
    text = module_source(_model(nodes, one=one, zero=zero)).text
    assert "x + 1.0" in text
    assert ", jnp.float32(1.0), jnp.float32(0.0))" in text


def test_weights_are_layers_and_parameters() -> None:
    rng = np.random.default_rng(0)
    kernel, scale = (rng.standard_normal(s).astype(np.float32) for s in ((4, 3), (3, 3)))
    nodes = [
        helper.make_node("MatMul", ["x", "kernel"], ["h"], name="tower/hidden/MatMul"),
        helper.make_node("Einsum", ["h", "scale"], ["y"], equation="bi,ij->bj"),
    ]
    source = module_source(_model(nodes, kernel=kernel, scale=scale))
    assert "self.hidden = nnx.Linear(4, 3, use_bias=False, rngs=rngs)" in source.text
    np.testing.assert_array_equal(source.params["hidden.kernel"], kernel)
    np.testing.assert_array_equal(source.params["scale"], scale)


def test_imports_are_those_used_and_the_file_is_clean(tmp_path: Path) -> None:
    loop_body = helper.make_graph(
        [helper.make_node("Mul", ["h", "h"], ["next"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("h", TensorProto.FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, None),
        ],
    )
    models = {
        "plain": _model([helper.make_node("Add", ["x", "x"], ["y"])]),
        "loop": _model([helper.make_node("Loop", ["n", "", "x"], ["y"], body=loop_body)], n=np.array(3)),
    }
    for name, model in models.items():
        text = module_source(model).text
        path = tmp_path / f"{name}.py"
        path.write_text(text)
        subprocess.run([sys.executable, "-m", "ruff", "format", "-q", "--isolated", path], check=True)
        check = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,I", path]
        assert subprocess.run(check, capture_output=True).returncode == 0, text
    assert "jnp" not in module_source(models["plain"]).text
    assert "layers.counted_loop(step, 3, (x,))" in module_source(models["loop"]).text


def test_rows_stay_open() -> None:
    """A leading dimension of one is the row: a reshape written for one row works on many."""
    node = helper.make_node("Reshape", ["x", "shape"], ["y"])
    source = module_source(_model([node], shape=np.array([1, 2, 2])))
    namespace: dict = {}
    exec(source.text, namespace)
    (found,) = namespace["Model"](rngs=None)(jax.numpy.ones((5, 4)))
    assert found.shape == (5, 2, 2)
    assert _body(source.text)[-1].startswith("return (")
