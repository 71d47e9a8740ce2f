"""Whole programs in the native executor: random compositions against the NumPy operators and TensorFlow,
where results go, which refusal is reported, threads, and hostile inputs."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import host_workload
from jaxrank.host_program import HOST_SCHEMA_VERSION, BlockColumn, HostOperator, HostOutput, HostProgram
from jaxrank.manifest import Signature, Table, TensorSpec
from serving.errors import InvalidRequestError
from serving.host import HostProgramRunner
from serving.host.native import NativeProgram, NotNative
from serving.host.operators import OPERATORS, Lookups, operator_name
from serving.tables import TableWriter
from tests.host import hostile
from tests.host.blocks import assert_same_blocks
from tests.host.comparison import random_strings
from tests.host.one_operator import run_natively
from tests.tables import table_of

_TABLE = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float32)
_LOOKUPS = Lookups(tables={"t": table_of(_TABLE)}, vocabularies={})

# (TensorFlow op, dtypes of its inputs, dtype of its result, attributes). All tensors are [N, 3].
_OPS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("AddV2", "ii", "i", {}),
    ("Sub", "ii", "i", {}),
    ("Mul", "ii", "i", {}),
    ("Maximum", "ii", "i", {}),
    ("BitwiseXor", "ii", "i", {}),
    ("Neg", "i", "i", {}),
    ("AddV2", "ff", "f", {}),
    ("Sub", "ff", "f", {}),
    ("Mul", "ff", "f", {}),
    ("Minimum", "ff", "f", {}),
    ("DivNoNan", "ff", "f", {}),
    ("Abs", "f", "f", {}),
    ("Floor", "f", "f", {}),
    ("Sqrt", "f", "f", {}),
    ("Relu", "f", "f", {}),
    ("Less", "ff", "b", {}),
    ("Equal", "ii", "b", {"incompatible_shape_error": True}),
    ("NotEqual", "ss", "b", {"incompatible_shape_error": True}),
    ("LogicalAnd", "bb", "b", {}),
    ("LogicalNot", "b", "b", {}),
    ("SelectV2", "bii", "i", {}),
    ("SelectV2", "bff", "f", {}),
    ("SelectV2", "bss", "s", {}),
    ("Cast", "f", "i", {"DstT": "int64"}),
    ("Cast", "i", "f", {"DstT": "float32"}),
    ("Cast", "b", "f", {"DstT": "float32"}),
    ("Bucketize", "f", "j", {"boundaries": [-1.0, 0.0, 0.5, 2.0]}),
    ("Cast", "j", "i", {"DstT": "int64"}),
    ("StringLower", "s", "s", {"encoding": ""}),
    ("StringUpper", "s", "s", {"encoding": ""}),
    ("StringStrip", "s", "s", {}),
    ("AsString", "i", "s", {}),
    ("StringLength", "s", "j", {"unit": "BYTE"}),
    ("StringToHashBucketFast", "s", "i", {"num_buckets": 1000}),
    ("StringToHashBucketStrong", "s", "i", {"num_buckets": 77, "key": [1, 2]}),
    ("StringToHashBucket", "s", "i", {"num_buckets": 5}),
    ("StaticRegexReplace", "s", "s", {"pattern": "[aeiou]+", "rewrite": "_", "replace_global": True}),
    ("ZerosLike", "f", "f", {}),
]
_DTYPES = {"i": "int64", "f": "float32", "s": "string", "b": "bool", "j": "int32"}


@st.composite
def _programs(draw: st.DrawFn) -> list[tuple[int, tuple[int, ...]]]:
    """`(number of the op, numbers of the tensors it reads)`; the features are tensors 0 to 3."""
    kinds, steps = ["f", "i", "s", "b"], []
    for _ in range(draw(st.integers(1, 12))):
        op = draw(st.integers(0, len(_OPS) - 1))
        choices = [[t for t, k in enumerate(kinds) if k == wanted] for wanted in _OPS[op][1]]
        if not all(choices):
            continue
        steps.append((op, tuple(draw(st.sampled_from(c)) for c in choices)))
        kinds.append(_OPS[op][2])
    return steps


def _features(rows: int, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "t0": (rng.standard_normal((rows, 3)) * 4).astype(np.float32),
        "t1": rng.integers(-(2**62), 2**62, (rows, 3)),
        "t2": random_strings(rng, (rows, 3)),
        "t3": rng.random((rows, 3)) < 0.5,
    }


_FEATURE_DTYPES = {"t0": "float32", "t1": "int64", "t2": "string", "t3": "bool"}


def _program(steps: list[tuple[int, tuple[int, ...]]]) -> HostProgram:
    operators = tuple(
        HostOperator(
            op=operator_name(_OPS[op][0]),
            name=_OPS[op][0],
            inputs=tuple(f"t{i}" for i in inputs),
            outputs=(f"t{4 + n}",),
            scope="candidate",
            attrs=_OPS[op][3],
        )
        for n, (op, inputs) in enumerate(steps)
    )
    outputs = tuple(HostOutput(output=f"t{4 + n}", tensor=f"t{4 + n}") for n in range(len(steps)))
    return HostProgram(schema_version=HOST_SCHEMA_VERSION, operators=operators, columns=(), outputs=outputs)


def _native(program: HostProgram, features: dict[str, str], **options: Any) -> NativeProgram:
    raw = {o: set(features) for operator in program.operators for o in operator.outputs}
    return NativeProgram(program, features, raw, {"t": table_of(_TABLE)}, {}, **options)


@settings(max_examples=60, deadline=None)
@given(_programs(), st.sampled_from([0, 1, 2, 9]), st.integers(0, 2**32 - 1))
def test_random_programs(steps: list[tuple[int, tuple[int, ...]]], rows: int, seed: int) -> None:
    """Native, NumPy and TensorFlow: the same bits, operator by operator."""
    program, features = _program(steps), _features(rows, seed)
    _, _, found = _native(program, _FEATURE_DTYPES).run(features, rows)
    numpy, tensors = dict(features), {n: _tensor(v) for n, v in features.items()}
    for (op, _), operator, ours in zip(steps, program.operators, found, strict=True):
        op_type, _, _, attrs = _OPS[op]
        (name,) = operator.outputs
        inputs = [numpy[i] for i in operator.inputs]
        numpy[name] = np.asarray(OPERATORS[operator.op](_LOOKUPS, *inputs, **attrs))
        theirs = _tensorflow(op_type, [tensors[i] for i in operator.inputs], attrs)
        tensors[name] = theirs
        expected = theirs.numpy()
        for reference in (numpy[name], expected.astype(object) if expected.dtype.kind in "SO" else expected):
            assert ours.shape == reference.shape, op_type
            assert ours.dtype == reference.dtype, op_type
            np.testing.assert_array_equal(ours, reference, err_msg=op_type)


def _tensor(value: np.ndarray) -> tf.Tensor:
    return tf.constant(value, tf.string if value.dtype == object else value.dtype, value.shape)


def _tensorflow(op_type: str, inputs: list[tf.Tensor], attrs: dict[str, Any]) -> tf.Tensor:
    from tensorflow.python.framework import op_def_registry

    definition: Any = op_def_registry.get(op_type)
    renamed = {"ZerosLike": ["x"], "SelectV2": ["condition", "t", "e"]}.get(
        op_type, [arg.name for arg in definition.input_arg]
    )
    return getattr(tf.raw_ops, op_type)(**dict(zip(renamed, inputs, strict=True)), **attrs)


def _lookup_program(*, columns: int, squeeze: bool = False) -> HostProgram:
    """A lookup of each feature `id_<i>`, written to its own columns."""
    operators, places = [], []
    for i in range(columns):
        operators.append(
            HostOperator(
                op="embedding_lookup",
                name="lookup",
                inputs=(f"id_{i}",),
                outputs=(f"rows_{i}",),
                scope="candidate",
                attrs={"table": "t"},
            )
        )
        tensor = f"rows_{i}"
        if squeeze:
            operators.append(
                HostOperator(
                    op="squeeze",
                    name="squeeze",
                    inputs=(tensor,),
                    outputs=(f"row_{i}",),
                    scope="candidate",
                    attrs={"squeeze_dims": [1]},
                )
            )
            tensor = f"row_{i}"
        places.append(
            BlockColumn(
                tensor=tensor, feature=tensor, scope="candidate", offset=4 * i, shape=(4,), dtype="float32"
            )
        )
    return HostProgram(schema_version=HOST_SCHEMA_VERSION, operators=tuple(operators), columns=tuple(places))


@pytest.mark.parametrize("squeeze", [False, True])
def test_rows_are_written_to_their_columns(squeeze: bool) -> None:
    ids = {f"id_{i}": np.random.default_rng(i).integers(0, 50, (7, 1)) for i in range(5)}
    program = _lookup_program(columns=5, squeeze=squeeze)
    request, candidate, _ = _native(program, dict.fromkeys(ids, "int64")).run(ids, 7)
    assert request.shape == (1, 0)
    np.testing.assert_array_equal(candidate, np.hstack([_TABLE[v[:, 0]] for v in ids.values()]))


def test_first_refusal_of_the_program() -> None:
    """Groups run in any order; what is reported is what the NumPy path meets first."""
    program = _lookup_program(columns=6)
    native = _native(program, {f"id_{i}": "int64" for i in range(6)})
    ids = {f"id_{i}": np.full((3, 1), i) for i in range(6)}
    ids["id_2"][1] = 50
    ids["id_4"][2] = -1
    with pytest.raises(
        InvalidRequestError, match=r"feature 'id_0'.*: id 50 is outside of table 't', which has"
    ):
        native.run(ids, 3)
    ids["id_2"][1] = 0
    with pytest.raises(InvalidRequestError, match="id -1 is outside of table 't'"):
        native.run(ids, 3)


def test_integers_beyond_32_bits_are_refused() -> None:
    column = BlockColumn(tensor="x", feature="x", scope="candidate", offset=0, shape=(1,), dtype="int32")
    program = HostProgram(schema_version=HOST_SCHEMA_VERSION, operators=(), columns=(column,))
    native = _native(program, {"x": "int64"})
    _, block, _ = native.run({"x": np.array([[-(2**31)], [2**31 - 1]])}, 2)
    assert block.view(np.int32).ravel().tolist() == [-(2**31), 2**31 - 1]
    with pytest.raises(InvalidRequestError, match="feature 'x' has a value beyond 32 bits"):
        native.run({"x": np.array([[2**31], [0]])}, 2)


@pytest.mark.parametrize(
    ("op", "inputs"),
    [
        ("fill", [np.array([2**40, 2**40]), np.float32(1)]),
        ("fill", [np.array([2**31, 4]), np.float32(1)]),
        ("tile", [np.zeros((2, 2)), np.array([2**62, 2**62])]),
        ("range", [np.int64(0), np.int64(2**62), np.int64(1)]),
        ("pad", [np.zeros(2), np.array([[2**62, 2**62]])]),
        ("unsorted_segment_sum", [np.zeros(2), np.array([0, 1]), np.int64(2**60)]),
        ("broadcast_to", [np.zeros(1), np.array([2**35, 2**35])]),
    ],
)
def test_more_than_memory_is_refused(op: str, inputs: list[np.ndarray]) -> None:
    """A client's shapes decide how much is asked for, and the server stays."""
    with pytest.raises(InvalidRequestError, match="too large|MiB|is not a shape|a tile"):
        run_natively(op, [np.asarray(v) for v in inputs], {})


def test_results_outlive_the_program_and_later_runs() -> None:
    native = _native(_lookup_program(columns=1), {"id_0": "int64"})
    first = native.run({"id_0": np.array([[3], [4]])}, 2)[1]
    for i in range(20):
        native.run({"id_0": np.full((100, 1), i)}, 100)
    del native
    np.testing.assert_array_equal(first, _TABLE[[3, 4]])


def test_arrays_that_are_not_contiguous() -> None:
    native = _native(_lookup_program(columns=1), {"id_0": "int64"})
    ids = np.arange(40).reshape(20, 2)[::2, 1:]
    np.testing.assert_array_equal(native.run({"id_0": ids}, 10)[1], _TABLE[ids[:, 0]])
    found = run_natively("string_upper", [np.array([[b"a", b"b"], [b"c", b"d"]], object).T], {"encoding": ""})
    assert found[0].tolist() == [[b"A", b"C"], [b"B", b"D"]]


def test_wrong_arrays() -> None:
    native = _native(_lookup_program(columns=1), {"id_0": "int64"})
    with pytest.raises(TypeError, match="format"):
        native.run({"id_0": np.zeros((2, 1), np.complex64)}, 2)
    with pytest.raises(TypeError, match="bytes"):
        native.run({"id_0": np.array([["text"]], object)}, 1)
    with pytest.raises(InvalidRequestError, match="float32 where integers are expected"):
        native.run({"id_0": np.zeros((2, 1), np.float32)}, 2)


def test_bools_of_any_bytes() -> None:
    """A client's byte may be anything; in C++ a bool may not."""
    strange = np.array([0, 1, 2, 255], np.uint8).view(bool)
    (found,) = run_natively("cast", [strange], {"DstT": "float32"})
    assert found.tolist() == [0, 1, 1, 1]


def test_what_is_not_native() -> None:
    """The reason names the operator."""
    attrs = {"pattern": "(a+)+", "rewrite": ""}
    with pytest.raises(NotNative, match="static_regex_replace: regular expression"):
        run_natively("static_regex_replace", [random_strings(np.random.default_rng(0), (2,))], attrs)
    pattern = [random_strings(np.random.default_rng(0), (2,)), np.array(b"a", object)]
    with pytest.raises(NotNative, match="regex_full_match: a pattern that is no constant"):
        run_natively("regex_full_match", pattern, {})
    ids = np.array([[1]])
    with pytest.raises(NotNative, match="the table 'u' cannot be read natively"):
        run_natively("embedding_lookup", [ids], {"table": "u"})


def test_numpy_runs_what_is_not_native(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A model of float16 rows, a dtype that the executor lacks. Where they only go to the float32 block it
    needs none; else NumPy runs, and the log says why."""
    program = _lookup_program(columns=1)
    (tmp_path / "host_program.json").write_bytes(msgspec.json.encode(program))
    with TableWriter(tmp_path / "t.table", 4, "f16") as writer:
        writer.append(_TABLE.astype(np.float16))
    table = Table(name="t", rows=50, dim=4, dtype="float16", row_format="f16", bytes=400, file="t.table")
    ids = TensorSpec(name="id_0", dtype="int64", shape=(None, 1), scope="candidate", tensor_name="id_0")
    manifest = msgspec.structs.replace(
        host_workload.manifest(),
        signature=Signature(name="s", method_name="", inputs=(ids,), outputs=()),
        tables=(table,),
        vocabularies=(),
    )
    rows = _TABLE.astype(np.float16)[[3, 4]]
    runner = HostProgramRunner(tmp_path, manifest)
    assert not runner.not_native
    np.testing.assert_array_equal(runner.run({"id_0": np.array([[3], [4]])}).candidate, rows)
    program = msgspec.structs.replace(program, outputs=(HostOutput(output="rows", tensor="rows_0"),))
    (tmp_path / "host_program.json").write_bytes(msgspec.json.encode(program))
    with caplog.at_level(logging.INFO, "jaxrank"):
        runner = HostProgramRunner(tmp_path, manifest)
    assert runner.not_native == ("the table 't' of float16",)
    assert "the host program runs on NumPy" in caplog.text
    np.testing.assert_array_equal(runner.run({"id_0": np.array([[3], [4]])}).outputs["rows"][:, 0], rows)


def test_the_benchmarked_workload(tmp_path: Path) -> None:
    """`python -m bench host` compares three ways to compute one thing."""
    host_workload.write_bundle(tmp_path, largest=500)
    manifest = host_workload.manifest(largest=500)
    native, numpy = (HostProgramRunner(tmp_path, manifest, native=native) for native in (True, False))
    assert not native.not_native
    for rows in (1, 30):
        request = host_workload.request(rows, seed=rows, largest=500)
        assert_same_blocks(native.program, native.run(request), numpy.run(request))


def test_many_threads() -> None:
    """One program, many requests at once, long enough that helpers are woken: every answer is its own."""
    command = [sys.executable, "-m", "tests.host.threads_subject"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "200 requests", done.stderr[-3000:]


def test_hostile_inputs(tmp_path: Path) -> None:
    """Every operator with damaged inputs, in a process of its own: answers and refusals, never a crash."""
    calls = tmp_path / "calls"
    number = hostile.write_calls(calls, seed=1, per_operator=12)
    command = [sys.executable, "-m", "tests.host.hostile_subject", str(calls)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    answered, refused = map(int, done.stdout.split())
    assert answered + refused == number
    assert answered > number / 4 and refused > number / 8
