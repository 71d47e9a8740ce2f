"""Runs one op in TensorFlow, in our NumPy operators and in the native executor, and compares everything:
values, dtypes, shapes, and refusals."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import (
    op_def_registry,
)  # the only place where TensorFlow keeps its op definitions

from serving.errors import InvalidRequestError
from serving.host.native import NotNative
from serving.host.operators import OPERATORS, Lookups, operator_name
from tests.host.one_operator import dtype_name, run_natively

EMPTY = Lookups(tables={}, vocabularies={})

FLOATS = ("float32", "float64")
INTS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
NUMBERS = (*FLOATS, *INTS)

# Inputs and attributes that `tf.raw_ops` names otherwise than the op definition.
_RENAMED = {
    "Select": {"t": "x", "e": "y"},
    "ExpandDims": {"dim": "axis"},
    "Squeeze": {"squeeze_dims": "axis"},
    "Split": {"split_dim": "axis"},
    "SplitV": {"split_dim": "axis"},
    "Where": {"input": "condition"},
    **{op: {"reduction_indices": "axis"} for op in ("Sum", "Mean", "Prod", "Max", "Min", "All", "Any")},
}

# Inputs that the native executor takes as constants only.
CONSTANTS = {"RegexReplace": (1, 2), "RegexFullMatch": (1,)}

Inputs = Sequence[Any]


@dataclass(frozen=True)
class Case:
    """One call: `inputs` in TensorFlow's order, a list where the op takes a list; `attrs` under TensorFlow's
    names.

    `rtol` is relative to the largest finite value of the result; 0 asks for the same bits.
    """

    inputs: Inputs
    attrs: Mapping[str, Any] = field(default_factory=dict)
    rtol: float = 0.0


Cases = Iterator[Case]


def strings(*values: bytes, shape: Any = -1) -> np.ndarray:
    out = np.empty(len(values), object)
    out[:] = values
    return out.reshape(shape)


def random_strings(rng: np.random.Generator, shape: Any, alphabet: Sequence[bytes] = ()) -> np.ndarray:
    """Words with empty ones, non-ASCII ones, bytes that are not UTF-8, and repeats."""
    words = alphabet or (
        b"",
        b"a",
        b"Hello World",
        "é北京".encode(),
        b"\xff\x00b",
        b" x\t",
        b"a,b,,c",
        b"0123456789",
    )
    size = int(np.prod(shape))
    return strings(*[words[i] for i in rng.integers(len(words), size=size)], shape=shape)


def values(rng: np.random.Generator, shape: Any, dtype: str) -> np.ndarray:
    """Random values of any dtype, small enough to add and multiply."""
    if dtype == "string":
        return random_strings(rng, shape)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    if dtype.startswith("float"):
        return np.asarray(rng.normal(size=shape), dtype)
    low = 0 if dtype.startswith("u") else -9
    return np.asarray(rng.integers(low, 10, shape), dtype)


def compare(op_type: str, case: Case) -> bool:
    """Asserts that both agree. False where TensorFlow has no CPU kernel for these dtypes."""
    definition = op_def_registry.get(op_type)
    assert definition is not None, f"TensorFlow has no op {op_type}"
    operator = OPERATORS[operator_name(op_type)]
    inputs = [_as_arrays(value) for value in case.inputs]
    assert len(inputs) == len(definition.input_arg), f"{op_type} takes {len(definition.input_arg)} inputs"
    by_name: dict[str, Any] = {
        arg.name: value for arg, value in zip(definition.input_arg, inputs, strict=True)
    }
    renamed, reason = _RENAMED.get(op_type, {}), ""
    try:
        expected = getattr(tf.raw_ops, op_type)(
            **{renamed.get(name, name): _as_tensors(value) for name, value in by_name.items()},
            **{renamed.get(name, name): _as_attribute(name, value) for name, value in case.attrs.items()},
        )
    except (tf.errors.NotFoundError, tf.errors.UnimplementedError):
        return False
    except TypeError as error:
        if "allowed values" not in str(error):
            raise
        return False
    # TruncateDiv and TruncateMod by zero are an InternalError.
    except (
        tf.errors.InvalidArgumentError,
        tf.errors.OutOfRangeError,
        tf.errors.InternalError,
        ValueError,
    ) as error:
        if "not in the list of allowed values" in str(error) or "Could not find device" in str(error):
            return False
        expected, reason = None, str(error)
    attrs, flat = our_attributes(operator, definition, case), flat_inputs(case)
    outputs = number_of_outputs(definition, case)
    constant = CONSTANTS.get(op_type, ())
    paths: dict[str, Callable[[], Any]] = {
        "NumPy": lambda: operator(EMPTY, *flat, **attrs),
        "native": lambda: run_natively(operator_name(op_type), flat, attrs, outputs, constant),
    }
    for path, run in paths.items():
        try:
            found = run()
        except (InvalidRequestError, NotNative) as refusal:
            assert expected is None, f"{path} {op_type} refuses {case}: {refusal}; TensorFlow: {expected}"
            continue
        assert expected is not None, f"{path} {op_type} answers {case}: {found}, TensorFlow refuses: {reason}"
        _assert_same(f"{path} {op_type}", case, found, expected)
    return True


def run_cases(op_type: str, cases: Cases) -> None:
    """Asserts for all cases, and that TensorFlow has a kernel for at least one."""
    assert any([compare(op_type, case) for case in cases]), f"no case of {op_type} ran"


def _as_arrays(value: Any) -> Any:
    return [np.asarray(v) for v in value] if isinstance(value, list) else np.asarray(value)


def _as_tensors(value: Any) -> Any:
    if isinstance(value, list):
        return [_as_tensors(v) for v in value]
    return tf.constant(value, tf.string if value.dtype == object else value.dtype, value.shape)


def _as_attribute(name: str, value: Any) -> Any:
    """TensorFlow's Python takes None for an open dimension, the attribute itself has -1."""
    if name == "dense_shapes":
        return [[None if size == -1 else size for size in shape] for shape in value]
    return value


def flat_inputs(case: Case) -> list[np.ndarray]:
    """All inputs, lists flattened."""
    inputs = [_as_arrays(value) for value in case.inputs]
    return [v for value in inputs for v in (value if isinstance(value, list) else [value])]


def our_attributes(operator: Any, definition: Any, case: Case) -> dict:
    """The attributes that the operator asks for; list lengths and list types come from the inputs."""
    attrs = _all_attributes(definition, case)
    known = inspect.signature(operator).parameters.values()
    wanted = {p.name for p in known if p.kind is inspect.Parameter.KEYWORD_ONLY}
    return {name: value for name, value in attrs.items() if name in wanted}


def _all_attributes(definition: Any, case: Case) -> dict[str, Any]:
    """The case's, and those that lists of inputs show: their lengths and dtypes."""
    from_lists = {}
    for arg, given in zip(definition.input_arg, case.inputs, strict=True):
        value = _as_arrays(given)
        if arg.number_attr:
            from_lists[arg.number_attr] = len(value)
        if arg.type_list_attr:
            from_lists[arg.type_list_attr] = [dtype_name(v) for v in value]
    return {**from_lists, **case.attrs}


def number_of_outputs(definition: Any, case: Case) -> int:
    """Outputs of the op, lists flattened."""
    attrs, total = _all_attributes(definition, case), 0
    for arg in definition.output_arg:
        if arg.number_attr:
            total += attrs[arg.number_attr]
        elif arg.type_list_attr:
            total += len(attrs[arg.type_list_attr])
        else:
            total += 1
    return total


def _assert_same(op_type: str, case: Case, found: Any, expected: Any) -> None:
    flat = tf.nest.flatten(expected)
    found = found if isinstance(found, tuple) else (found,)
    assert len(found) == len(flat), f"{op_type}: {len(found)} outputs, TensorFlow has {len(flat)}"
    for i, (ours, theirs) in enumerate(zip(found, flat, strict=True)):
        where, theirs = f"{op_type} output {i} of {case}", np.asarray(theirs.numpy())
        assert isinstance(ours, np.ndarray), f"{where}: {type(ours)}"
        if theirs.dtype.kind in "SO":  # a scalar string comes back as bytes
            assert ours.dtype == object, f"{where}: {ours.dtype}"
            theirs = theirs.astype(object)
            assert ours.shape == theirs.shape, f"{where}: {ours.shape} != {theirs.shape}"
            assert ours.ravel().tolist() == theirs.ravel().tolist(), f"{where}: {ours} != {theirs}"
            continue
        assert ours.dtype == theirs.dtype, f"{where}: {ours.dtype} != {theirs.dtype}"
        assert ours.shape == theirs.shape, f"{where}: {ours.shape} != {theirs.shape}"
        if case.rtol and theirs.size:
            finite = np.abs(theirs[np.isfinite(theirs)])
            scale = float(finite.max()) if finite.size else 0.0
            np.testing.assert_allclose(ours, theirs, rtol=case.rtol, atol=case.rtol * scale, err_msg=where)
        else:
            np.testing.assert_array_equal(ours, theirs, err_msg=where)
