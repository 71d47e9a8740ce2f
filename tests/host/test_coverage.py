"""Every operator that mirrors a TensorFlow op is compared with it, and knows all of its attributes."""

import inspect

import numpy as np
import pytest
from tensorflow.python.framework import op_def_registry

from serving.host.operators import FUSED, OPERATORS, decode_constant, operator_name
from tests.host.hostile import FAMILIES

_OP_TYPES = [op_type for family in FAMILIES for op_type in family.CASES]

# Attributes that an operator does not have, so that a graph that sets them otherwise than by default is
# refused.
_NOT_HONOURED = {
    "Cast": {"Truncate"},  # rounding of narrowed floats; only False
    "RaggedGather": {"OUTPUT_RAGGED_RANK"},  # the ranks of the inputs say it
}


def test_every_operator_is_compared() -> None:
    assert {operator_name(op_type) for op_type in _OP_TYPES} == OPERATORS.keys() - FUSED
    assert len(_OP_TYPES) == len(set(_OP_TYPES))


@pytest.mark.parametrize("op_type", _OP_TYPES)
def test_attributes_are_those_of_tensorflow(op_type: str) -> None:
    """The keyword-only parameters are TensorFlow's attributes less those that the inputs show: their types
    and counts. Where a parameter has a default, it is TensorFlow's."""
    definition = op_def_registry.get(op_type)
    assert definition is not None
    shown = {
        name for arg in definition.input_arg for name in (arg.type_attr, arg.number_attr, arg.type_list_attr)
    }
    parameters = inspect.signature(OPERATORS[operator_name(op_type)]).parameters.values()
    ours = {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}
    theirs = {attr.name: attr for attr in definition.attr}
    assert ours.keys() <= theirs.keys()
    assert theirs.keys() - shown - ours.keys() == _NOT_HONOURED.get(op_type, set())
    for name, parameter in ours.items():
        if parameter.default is not inspect.Parameter.empty:
            assert theirs[name].HasField("default_value"), f"{name} has no default in TensorFlow"
            assert _matches(parameter.default, theirs[name].default_value), f"default of {name}"


def _matches(ours: object, theirs: object) -> bool:
    kind = theirs.WhichOneof("value")  # type: ignore[attr-defined]
    value = getattr(theirs, kind)
    if kind == "s":
        return ours == value.decode()
    if kind == "type":
        return np.dtype(str(ours)) == _NUMPY_TYPES[value]
    if kind == "list":
        return tuple(ours) == ()  # type: ignore[arg-type]
    return ours == pytest.approx(value) if kind == "f" else ours == value


_NUMPY_TYPES = {1: np.float32, 3: np.int32, 9: np.int64}


@pytest.mark.parametrize(
    ("op_type", "name"),
    [
        ("StringSplitV2", "string_split_v2"),
        ("GatherV2", "gather_v2"),
        ("AddV2", "add_v2"),
        ("TopKV2", "top_k_v2"),
        ("Log1p", "log1p"),
        ("SparseSegmentSqrtNWithNumSegments", "sparse_segment_sqrt_n_with_num_segments"),
        ("StringNGrams", "string_n_grams"),
        ("DecodeBase64", "decode_base64"),
        ("ParseExampleV2", "parse_example_v2"),
    ],
)
def test_names(op_type: str, name: str) -> None:
    assert operator_name(op_type) == name


def test_constants() -> None:
    text = decode_constant({"dtype": "string", "shape": [2, 1], "values": ["YQ==", ""]})
    assert text.tolist() == [[b"a"], [b""]]
    assert decode_constant({"dtype": "float32", "shape": [], "values": [1.5]}) == np.float32(1.5)
