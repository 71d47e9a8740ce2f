"""Partial evaluation keeps TensorFlow's values, and leaves what it promises to leave: no calls, no
conditions, no constants to compute."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from converters.convert import convert
from converters.errors import ConversionError, UnsupportedOpsError
from converters.evaluate import FlatGraph, evaluate
from converters.frontier import ancestors
from converters.lowerings import LOWERINGS
from converters.plugins import load_plugins
from converters.source import Weight
from tests.zoo.saving import control_flow_v1, graph_session

v1 = tf.compat.v1
Build = Callable[..., Any]
RNG = np.random.default_rng(5)
W = RNG.standard_normal((4, 4)).astype(np.float32)
X = RNG.standard_normal((6, 4)).astype(np.float32)


@dataclass(frozen=True)
class Graph:
    """A graph from `x` (and `c`, `i`) to `y`, its variables, and TensorFlow's own value of `y`."""

    definition: Any
    weights: Mapping[str, Weight]
    expected: Callable[[Mapping[str, np.ndarray]], np.ndarray]


INPUTS = {"x": (tf.float32, [None, 4]), "c": (tf.bool, []), "i": (tf.int32, [])}


@contextlib.contextmanager
def graph(build: Build, *inputs: str, v1_control_flow: bool = False) -> Iterator[Graph]:
    flow = control_flow_v1() if v1_control_flow else contextlib.nullcontext()
    with graph_session() as session:
        given = {name: v1.placeholder(*INPUTS[name], name=name) for name in ("x", *inputs)}
        with flow:
            y = tf.identity(build(*given.values()), name="y")
        session.run(v1.global_variables_initializer())
        weights = {v.op.name: Weight(v.op.name, (np.asarray(session.run(v)),)) for v in v1.global_variables()}
        yield Graph(
            session.graph.as_graph_def(),
            weights,
            lambda feeds: session.run(y, {given[name]: value for name, value in feeds.items()}),
        )


def flat_of(made: Graph, *inputs: str, rows: int | None = None, **options: Any) -> FlatGraph:
    names = ("x", *inputs)
    shapes = {n: (INPUTS[n][0], [rows, 4] if n == "x" else []) for n in names}
    return evaluate(
        made.definition, ["y:0"], {f"{n}:0": s for n, s in shapes.items()}, made.weights,
        inputs_names={f"{n}:0": n for n in names}, **options,
    )  # fmt: skip


def value_of(flat: FlatGraph, feeds: Mapping[str, np.ndarray]) -> np.ndarray:
    with v1.Session(graph=flat.graph) as session:
        weights = {f"{name}:0": weight.array() for name, weight in flat.weights.items()}
        return session.run(flat.results[0], {**{f"{n}:0": v for n, v in feeds.items()}, **weights})


def kinds(flat: FlatGraph) -> set[str]:
    return {op.type for op in flat.graph.get_operations()}


def assert_same(build: Build, *inputs: str, v1_control_flow: bool = False, without: str = "") -> FlatGraph:
    """The value at open and at fixed rows, for every choice of the other inputs; `without` are ops that are
    gone."""
    feeds = [{"x": X, "c": np.array(c), "i": np.int32(i)} for c, i in ((True, 0), (False, 3), (True, 7))]
    with graph(build, *inputs, v1_control_flow=v1_control_flow) as made:
        flats = [flat_of(made, *inputs, rows=rows) for rows in (None, 6)]
        for flat in flats:
            assert not kinds(flat) & {*without.split(), "PartitionedCall", "StatefulPartitionedCall"}
            for given in feeds:
                chosen = {n: given[n] for n in ("x", *inputs)}
                np.testing.assert_allclose(
                    value_of(flat, chosen), made.expected(chosen), rtol=1e-6, atol=1e-6
                )
    return flats[1]


# --- folding and inlining ---


def test_what_needs_no_input_is_folded() -> None:
    def build(x: Any) -> Any:
        scale = tf.reduce_sum(tf.constant(W) * 2.0, 0) + tf.cast(tf.range(4), tf.float32)
        return x * scale

    flat = assert_same(build)
    assert kinds(flat) <= {"Placeholder", "Const", "Mul"}
    assert {op for _, op, why in flat.removed if why == "a constant"} >= {"Range", "Sum", "Cast"}


def test_calls_in_calls_are_inlined() -> None:
    @tf.function
    def inner(x: Any) -> Any:
        return tf.nn.relu(x @ W)

    @tf.function
    def outer(x: Any) -> Any:
        return inner(x) + inner(x * 2.0)

    flat = assert_same(lambda x: outer(x) + outer(x))
    assert [op.type for op in flat.graph.get_operations()].count("Relu") == 2  # each computed once
    assert sum(why == "the same computation is there once already" for _, _, why in flat.removed)


def test_the_same_op_on_other_inputs_or_attributes_is_another() -> None:
    flat = assert_same(
        lambda x: tf.reduce_sum(x, 1) + tf.reduce_sum(x, 1, keepdims=True)[:, 0] * 0.5 + x[:, 1]
    )
    assert [op.type for op in flat.graph.get_operations()].count("Sum") == 2


def test_ops_that_do_nothing_when_served() -> None:
    def build(x: Any) -> Any:
        a, b = tf.identity_n([x, x * 2.0])
        a = tf.debugging.check_numerics(tf.stop_gradient(a), "not finite")
        with tf.control_dependencies([tf.debugging.assert_greater(tf.shape(x)[0], 0)]):
            return tf.ensure_shape(a + b, [None, 4]) + v1.placeholder_with_default(tf.constant(0.5), [])

    flat = assert_same(build, without="IdentityN Identity StopGradient CheckNumerics EnsureShape Assert")
    assert ("it does nothing when a model is served") in {why for _, _, why in flat.removed}


def test_shapes_are_constants_at_a_number_of_rows() -> None:
    def build(x: Any) -> Any:
        count = tf.shape(x)[0]
        return tf.reshape(x, [count, 2, 2])[:, :, 0] / tf.cast(count, tf.float32)

    flat = assert_same(build)
    assert not kinds(flat) & {"Shape", "Pack"}


def test_what_changes_nothing_is_left_out() -> None:
    flat = assert_same(lambda x: tf.broadcast_to(tf.tile(tf.cast(x, tf.float32), [1, 1]), [6, 4]) + 1.0)
    assert not kinds(flat) & {"Tile", "BroadcastTo", "Cast"}


# --- conditions ---


def branches(c: Any, x: Any) -> Any:
    return tf.cond(c, lambda: tf.exp(x) @ W, lambda: tf.tanh(x) - 1.0)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("old", [False, True], ids=["If", "Switch and Merge"])
def test_a_condition_that_is_known(known: bool, old: bool) -> None:
    flat = assert_same(
        lambda x: branches(v1.placeholder_with_default(known, []), x),
        v1_control_flow=old,
        without="If StatelessIf Switch Merge SelectV2",
    )
    assert ("Exp" in kinds(flat), "Tanh" in kinds(flat)) == (known, not known)


@pytest.mark.parametrize("old", [False, True], ids=["If", "Switch and Merge"])
def test_a_condition_that_is_not_known(old: bool) -> None:
    assert_same(lambda x, c: branches(c, x), "c", v1_control_flow=old, without="If StatelessIf Switch Merge")


@pytest.mark.parametrize("old", [False, True], ids=["If", "Switch and Merge"])
def test_conditions_in_conditions(old: bool) -> None:
    def build(x: Any, c: Any, i: Any) -> Any:
        def inner() -> Any:
            return tf.cond(i > 2, lambda: x * 3.0, lambda: tf.cond(c, lambda: x - 1.0, lambda: x + 7.0))

        return tf.cond(c, inner, lambda: tf.cond(i > 1, lambda: tf.exp(x), lambda: x))

    assert_same(build, "c", "i", v1_control_flow=old, without="If StatelessIf Switch Merge")


def test_a_branch_of_constants() -> None:
    """Its values hang on the condition by a control edge only."""
    assert_same(
        lambda x, c: x + tf.cond(c, lambda: tf.constant(1.5), lambda: tf.constant(-2.0)),
        "c",
        v1_control_flow=True,
        without="Switch Merge",
    )


@pytest.mark.parametrize("known", [None, -1, 0, 1, 2, 9])
def test_a_case(known: int | None) -> None:
    """An index beyond the branches is the last one, as TensorFlow has it."""
    functions = [lambda: X[:1] * 0.5, lambda: X[:1] + 2.0, lambda: X[:1] - 4.0]

    def build(x: Any, i: Any) -> Any:
        index = i if known is None else tf.constant(known)
        return x + tf.switch_case(index, functions)

    assert_same(build, "i", without="Case StatelessCase")


def test_an_output_in_the_branch_that_is_not_taken() -> None:
    with (
        graph(lambda x: tf.raw_ops.Switch(data=x, pred=tf.constant(True))[0]) as made,
        pytest.raises(ConversionError, match="y:0 has no value: it is in a branch that is never taken"),
    ):
        flat_of(made)


# --- loops ---


LOOPS: dict[str, Build] = {
    "a count": lambda x: tf.while_loop(
        lambda i, a: i < 5, lambda i, a: (i + 1, a * 0.9 + x), [tf.constant(0), x]
    )[1],
    "a loop in a loop": lambda x: tf.while_loop(
        lambda i, a: i < 3,
        lambda i, a: (
            i + 1,
            tf.while_loop(lambda j, b: j < i + 1, lambda j, b: (j + 1, tf.tanh(b @ W)), [tf.constant(0), a])[
                1
            ],
        ),
        [tf.constant(0), x],
    )[1],
    "a variable that nobody reads": lambda x: tf.while_loop(
        lambda i, a, b: i < 4,
        lambda i, a, b: (i + 1, a * 1.5, b + a),
        [tf.constant(0), x, tf.zeros_like(x)],
    )[1],
    "a variable that never changes": lambda x: tf.while_loop(
        lambda i, a, w: i < 4, lambda i, a, w: (i + 1, a @ w, w), [tf.constant(0), x, tf.constant(W * 0.5)]
    )[1],
    "variables that change places": lambda x: tf.while_loop(
        lambda i, a, b: i < 3, lambda i, a, b: (i + 1, b, a + b), [tf.constant(0), x, x * 2.0]
    )[1],
    "a condition inside": lambda x: tf.while_loop(
        lambda i, a: i < 5,
        lambda i, a: (i + 1, tf.cond(tf.equal(i % 2, 0), lambda: a + 1.0, lambda: a * 2.0)),
        [tf.constant(0), x],
    )[1],
    "a stop that the data decide": lambda x: tf.while_loop(
        lambda a: tf.reduce_max(tf.abs(a)) > 0.1, lambda a: [a * 0.5], [x]
    )[0],
    "no step at all": lambda x: tf.while_loop(
        lambda i, a: i < 0, lambda i, a: (i + 1, a * 2.0), [tf.constant(0), x]
    )[1],
}


@pytest.mark.parametrize("old", [False, True], ids=["While", "Enter and Exit"])
@pytest.mark.parametrize("build", LOOPS.values(), ids=LOOPS.keys())
def test_loops(build: Build, old: bool) -> None:
    assert_same(build, v1_control_flow=old, without="Enter Exit NextIteration Switch Merge")


def _written(x: Any) -> Any:
    steps = tf.transpose(x)
    found = tf.TensorArray(tf.float32, 4, element_shape=[None]).unstack(steps)
    out = tf.TensorArray(tf.float32, 4, element_shape=[None])

    def step(i: Any, state: Any, out: Any) -> Any:
        state = tf.tanh(state + found.read(i))
        return i + 1, state, out.write(i, state)

    end = tf.while_loop(lambda i, s, o: i < 4, step, [tf.constant(0), tf.zeros_like(x[:, 0]), out])
    return tf.transpose(end[2].stack()) + end[1][:, None]


def _backwards(x: Any) -> Any:
    """Written from the end, read with a gather of some."""
    out = tf.TensorArray(tf.float32, 4, element_shape=[None])

    def step(i: Any, out: Any) -> Any:
        return i - 1, out.write(i, x[:, 0] * tf.cast(i + 1, tf.float32))

    end = tf.while_loop(lambda i, o: i >= 0, step, [tf.constant(3), out])[1]
    return tf.transpose(end.gather([3, 0, 2])) + tf.cast(end.size(), tf.float32)


@pytest.mark.parametrize("old", [False, True], ids=["lists", "TensorArrayV3"])
@pytest.mark.parametrize("build", [_written, _backwards])
def test_tensor_arrays(build: Build, old: bool) -> None:
    flat = assert_same(build, v1_control_flow=old)
    assert not any(kind.startswith("TensorArray") for kind in kinds(flat))


def test_the_same_array_twice_is_two_arrays() -> None:
    def build(x: Any) -> Any:
        one, two = (tf.TensorArray(tf.float32, 2, element_shape=[None]) for _ in range(2))
        one, two = one.write(0, x[:, 0]).write(1, x[:, 1]), two.write(0, x[:, 2]).write(1, x[:, 3])
        return tf.transpose(one.stack() - two.stack())

    for old in (False, True):
        assert_same(build, v1_control_flow=old)


# --- variables ---


def variable(name: str, shape: tuple[int, ...], **options: Any) -> Any:
    return v1.get_variable(name, shape, initializer=v1.random_normal_initializer(seed=3), **options)


@pytest.mark.parametrize("resource", [True, False], ids=["resource", "reference"])
def test_what_is_computed_from_variables_is_folded(resource: bool) -> None:
    def build(x: Any) -> Any:
        kernel, gain = (
            variable(n, s, use_resource=resource) for n, s in (("kernel", (4, 4)), ("gain", (4,)))
        )
        return x @ (tf.nn.l2_normalize(kernel, 0) * tf.exp(gain))

    flat = assert_same(build)
    assert [op.type for op in flat.graph.get_operations() if op.type not in ("Const", "Placeholder")] == [
        "MatMul"
    ]
    assert {"Exp", "Square"} <= {o for _, o, why in flat.removed if why.startswith("computed from variables")}


@pytest.mark.parametrize(
    "partitioner", [v1.fixed_size_partitioner(3), v1.min_max_variable_partitioner(4, min_slice_size=80)]
)
def test_partitions_are_one_weight_without_a_copy(partitioner: Any) -> None:
    def build(x: Any) -> Any:
        with v1.variable_scope("s", partitioner=partitioner):
            table = variable("table", (40, 4))
        return x + tf.gather(tf.convert_to_tensor(table), tf.cast(x[:, 0] * 5.0 + 20.0, tf.int32))

    flat = assert_same(build)
    (weight,) = [flat.weights[op.name] for op in ancestors(flat.results) if op.name in flat.weights]
    assert weight.shape == (40, 4) and len(weight.parts) > 1


@pytest.mark.parametrize("axis", [0, 1])
def test_partitions_of_columns_are_folded(axis: int) -> None:
    def build(x: Any) -> Any:
        with v1.variable_scope("s", partitioner=v1.fixed_size_partitioner(2, axis=axis)):
            return x @ tf.convert_to_tensor(variable("kernel", (4, 6)))

    assert kinds(assert_same(build)) <= {"Placeholder", "Const", "MatMul"}


@pytest.mark.parametrize("batch_dims", [0, 1])
def test_resource_gather(batch_dims: int) -> None:
    def build(x: Any) -> Any:
        table = variable("table", (6, 9, 4))
        ids = tf.cast(tf.abs(x[:, :2]) * 2.0, tf.int64)
        found = tf.raw_ops.ResourceGather(
            resource=table.handle, indices=ids % 6, dtype=tf.float32, batch_dims=batch_dims
        )
        pairs = tf.raw_ops.ResourceGatherNd(resource=table.handle, indices=ids % 6, dtype=tf.float32)
        size = tf.raw_ops.VariableShape(input=table.handle)
        return tf.reshape(found, [6, -1]) + tf.reduce_sum(pairs) + tf.cast(size[1], tf.float32)

    flat = assert_same(build, without="ResourceGather ResourceGatherNd VariableShape VarHandleOp")
    assert "GatherV2" in kinds(flat)


def test_a_variable_without_a_value() -> None:
    with (
        graph(lambda x: x @ variable("kernel", (4, 4))) as made,
        pytest.raises(ConversionError, match="variable kernel has no value in the checkpoint"),
    ):
        flat_of(Graph(made.definition, {}, made.expected))


# --- the number of rows ---


def per_row_of(build: Build, rows: int = 3) -> tuple[FlatGraph, dict[str, list[float]]]:
    with graph(build) as made:
        more = [flat_of(made, rows=rows + extra) for extra in (1, 2)]
        flat = flat_of(made, rows=rows, with_more_rows=more)
        x = X[:rows]
        np.testing.assert_allclose(value_of(flat, {"x": x}), made.expected({"x": x}), rtol=1e-6)
    read = {op.name for op in ancestors(flat.results)}
    return flat, {n: np.asarray(s).ravel().tolist() for n, s in flat.per_row.items() if n in read}


def test_constants_that_grow_with_the_rows() -> None:
    def build(x: Any) -> Any:
        count = tf.shape(x)[0]
        return tf.reshape(tf.transpose(tf.reshape(x, [count * 2, 2])), [2 * count * 2])

    _, steps = per_row_of(build)
    assert sorted(steps.values()) == [[2.0, 0.0], [4.0]]


def test_constants_that_do_not_depend_on_the_rows() -> None:
    _, steps = per_row_of(
        lambda x: x * tf.cast(tf.shape(x)[1], tf.float32) + tf.constant([1.0, 2.0, 3.0, 4.0])
    )
    assert steps == {}


def test_a_constant_that_grows_otherwise() -> None:
    """No value for another number of rows is known: not a number."""
    _, steps = per_row_of(lambda x: x * tf.cast(tf.shape(x)[0] ** 2, tf.float32))
    (step,) = steps.values()
    assert np.isnan(step).all()


def test_a_constant_whose_shape_grows() -> None:
    """It stays an op that computes it."""
    flat, _ = per_row_of(lambda x: x + tf.cast(tf.range(tf.shape(x)[0])[:, None], tf.float32))
    assert flat.growing


def test_a_constant_once_for_every_row_is_not_left_out() -> None:
    """At one row the tile repeats nothing; at more it does."""
    flat, _ = per_row_of(lambda x: tf.tile(tf.constant(W[:1]), [tf.shape(x)[0], 1]) + x, rows=1)
    assert "Tile" in kinds(flat)


# --- what is refused ---


def test_random_ops() -> None:
    with (
        graph(lambda x: x + tf.random.uniform([])) as made,
        pytest.raises(ConversionError, match=r"\(RandomUniform\) draws random numbers"),
    ):
        flat_of(made)


def test_a_placeholder_that_is_not_an_input() -> None:
    with (
        graph(lambda x: x + v1.placeholder(tf.float32, [], "other")) as made,
        pytest.raises(ConversionError, match="placeholder other is not an input .*--inputs"),
    ):
        flat_of(made)


# --- plugins ---


PLUGIN = """
import tensorflow as tf

def doubled(attributes, inputs):
    assert attributes["T"] == tf.float32.as_datatype_enum
    return [inputs[0] * {factor}]

LOWERINGS = {{"Exp": doubled, "Zeta": lambda attributes, inputs: [inputs[0] - inputs[1]]}}
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    for name, factor in (("first_lowerings", 2.0), ("second_lowerings", 3.0)):
        (tmp_path / f"{name}.py").write_text(PLUGIN.format(factor=factor))
    monkeypatch.chdir(tmp_path)
    for name in ("first_lowerings", "second_lowerings"):
        sys.modules.pop(name, None)
    return "first_lowerings"


def test_a_plugin_lowers_an_op(plugin: str) -> None:
    with graph(lambda x: tf.exp(x) + tf.raw_ops.Zeta(x=x, q=x * 0.5)) as made:
        flat = flat_of(made, lowerings=load_plugins([plugin]))
        assert not kinds(flat) & {"Exp", "Zeta"}
        np.testing.assert_allclose(value_of(flat, {"x": X}), X * 2.0 + X * 0.5, rtol=1e-6)
        assert "Exp" in set(flat.sources.values())  # what it built is what became of the source op
        both = flat_of(made, lowerings=load_plugins([plugin, "second_lowerings"]))
        np.testing.assert_allclose(value_of(both, {"x": X}), X * 3.0 + X * 0.5, rtol=1e-6)


def test_a_model_with_an_op_that_only_a_plugin_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Igammac is in neither table; its plugin writes exp(-x), which it is for a = 1."""
    module = tf.Module()
    module.serve = tf.function(
        lambda x: {"y": tf.math.igammac(tf.ones_like(x), tf.abs(x))},
        input_signature=[tf.TensorSpec([None], tf.float32, "x")],
    )
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.serve.get_concrete_function())
    with pytest.raises(UnsupportedOpsError, match="Igammac"):
        convert(tmp_path / "m", tmp_path / "b")
    (tmp_path / "igammac_of_one.py").write_text(
        "import tensorflow as tf\nLOWERINGS = {'Igammac': lambda a, i: [tf.exp(-i[1])]}\n"
    )
    monkeypatch.chdir(tmp_path)
    manifest = convert(tmp_path / "m", tmp_path / "b", op_plugins=["igammac_of_one"])
    assert manifest.certificate.outputs[0].max_abs_error < 1e-5


# --- lowerings ---

FLOATS = np.array([0.0, -0.0, 1.0, -1.0, 2.5, -3.75, 1e-30, 1e30, np.inf, -np.inf, np.nan], np.float32)
INTEGERS = np.array([-9, -7, -1, 1, 2, 7, 8, 100, 2**20, -(2**20)], np.int32)


def pairs(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.meshgrid(values, values)
    return left.ravel(), right.ravel()


DRAWN = RNG.standard_normal((2, 400)).astype(np.float32) * 3.0
CASES = [
    *(
        pytest.param(op, given, id=f"{op} {what}")
        for op in ("DivNoNan", "MulNoNan", "Xdivy", "Xlogy", "Xlog1py")
        for what, given in (("special", pairs(FLOATS)), ("random", (DRAWN[0], DRAWN[1])))
    ),
    *(
        pytest.param(op, given, id=f"{op} {what}")
        for op in ("FloorDiv", "FloorMod", "Mod", "TruncateMod")
        for what, given in (("random", (DRAWN[0], DRAWN[1])), ("integers", pairs(INTEGERS)))
    ),
    pytest.param("Inv", (FLOATS,), id="Inv"),
    pytest.param("L2Loss", (DRAWN[0],), id="L2Loss"),
    *(
        pytest.param("LinSpace", (np.float32(a), np.float32(b), np.int32(n)), id=f"LinSpace {a} {b} {n}")
        for a, b, n in ((0.0, 1.0, 5), (3.0, -2.0, 7), (1.5, 9.0, 1), (0.0, 1e6, 100))
    ),
]


def test_every_lowering_has_a_case() -> None:
    assert {case.values[0] for case in CASES} == set(LOWERINGS)


@pytest.mark.parametrize(("op", "given"), CASES)
def test_lowerings(op: str, given: tuple[np.ndarray, ...]) -> None:
    """The same value as TensorFlow's own op, NaN and infinities in the same places; 1e-5 of the value or of
    1: another order of rounding."""
    with tf.Graph().as_default(), v1.Session() as session:
        inputs = [tf.constant(v) for v in given]
        name = {"LinSpace": ("start", "stop", "num"), "L2Loss": ("t",), "Inv": ("x",)}.get(op, ("x", "y"))
        expected, found = session.run(
            [getattr(tf.raw_ops, op)(**dict(zip(name, inputs, strict=True))), LOWERINGS[op]({}, inputs)[0]]
        )
    assert found.dtype == expected.dtype
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_a_lin_space_of_an_open_number_of_points() -> None:
    with tf.Graph().as_default(), v1.Session() as session:
        count = v1.placeholder(tf.int32, [])
        found = LOWERINGS["LinSpace"]({}, [tf.constant(1.0), tf.constant(4.0), count])[0]
        for n in (1, 2, 13):
            np.testing.assert_allclose(session.run(found, {count: n}), np.linspace(1, 4, n), rtol=1e-5)
