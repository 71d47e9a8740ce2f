"""Partial evaluation of a TensorFlow graph: calls are inlined, what does not depend on an input becomes a
constant, and what is left is built again, op by op, each computation once.

The same evaluator runs three times in a conversion: on the exported graph with the number of rows open (what
the host executes), on one candidate (the dense half), and, for models that mix candidates, on two fixed
numbers of rows. TensorFlow's own grappler refuses to fold the shape of a fed placeholder, and puts every
variable, so every embedding table, into a Const.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import op_def_registry

from converters.branches_and_loops import case, conditional, functional_loop, loop_frame, merge, switch
from converters.control_flow import functionalize
from converters.dataflow import (
    PASS_THROUGH,
    TABLES,
    VARIABLES,
    Body,
    data_flow_order,
    function_body,
    read,
    split_name,
    tags_of,
)
from converters.errors import ConversionError, Unsupported, UnsupportedOpsError
from converters.flat_graph import Dead, FlatGraph, Handle
from converters.plugins import Lowerings
from converters.simplifications import as_gather, shape_value, unchanged_input
from converters.source import TableContents, Weight
from converters.special_ops import SPECIAL
from converters.tf_ops import (
    attribute_key,
    build_op,
    compute_op,
    plain_attribute,
    refuse_random,
    reshaped_back,
    valid_name,
)

_CALLS = {"PartitionedCall", "StatefulPartitionedCall", "LegacyCall"}
_WEIGHT_BYTES = 1 << 16
"""Constants of this size or more are kept as weights, not as nodes of the graph."""
_LIVE_BYTES = 64 << 20
"""Weights of this size or more are read row by row in a live graph."""
_FOLD_BYTES = 1 << 30
"""What is computed from weights ahead of time; larger tables are only ever looked up in."""


def evaluate(
    graph_def: Any,
    results: Sequence[str],
    inputs: Mapping[str, tuple[Any, Sequence[int | None]]],
    weights: Mapping[str, Weight],
    *,
    inputs_names: Mapping[str, str] | None = None,
    tables: Mapping[str, str] | None = None,
    sources: Mapping[str, str] | None = None,
    weights_as_constants: bool = False,
    shapes: Mapping[str, Sequence[int]] | None = None,
    with_more_rows: Sequence[FlatGraph] = (),
    contents: Callable[[str], TableContents] | None = None,
    live: bool = False,
    reshape: Mapping[str, Sequence[int]] | None = None,
    lowerings: Lowerings | None = None,
    given: Mapping[str, np.ndarray] | None = None,
) -> FlatGraph:
    """Builds the part of a graph that `results` need.

    Args:
        results: tensor names.
        inputs: dtype and shape of the tensors, by name, whose values are not known; everything above them is
            left out.
        weights: by the name of the variable (or weight placeholder) that holds them.
        inputs_names: names of the placeholders made for `inputs`; the tensors' own by default.
        tables: source nodes of placeholders of an already flat graph that stand for lookup tables.
        sources: source names of the ops of an already flat graph.
        weights_as_constants: builds weights as constants of the graph.
        shapes: shapes of tensors, by source name, that TensorFlow cannot infer.
        with_more_rows: the same graph evaluated with one and with two rows more: constants that differ there
            depend on the number of rows.

    Raises:
        UnsupportedOpsError: ops that cannot be built again, all of them.
    """
    return Evaluator(
        graph_def,
        inputs,
        weights,
        inputs_names or {},
        tables or {},
        sources or {},
        weights_as_constants,
        shapes or {},
        [flat.constants for flat in with_more_rows],
        contents,
        live,
        reshape or {},
        lowerings or {},
        given or {},
    ).run(results)


class Evaluator:
    def __init__(
        self,
        graph_def: Any,
        inputs: Mapping[str, tuple[Any, Sequence[int | None]]],
        weights: Mapping[str, Weight],
        names: Mapping[str, str],
        tables: Mapping[str, str],
        sources: Mapping[str, str],
        weights_as_constants: bool,
        shapes: Mapping[str, Sequence[int]],
        with_more_rows: Sequence[Mapping[str, np.ndarray]],
        contents: Callable[[str], TableContents] | None,
        live: bool,
        reshape: Mapping[str, Sequence[int]],
        lowerings: Lowerings,
        given: Mapping[str, np.ndarray],
    ):
        self.functions = {f.signature.name: f for f in graph_def.library.function}
        self.main = Body(functionalize({n.name: n for n in graph_def.node}), [], [])
        self.inputs, self.weights, self.names, self.sources = inputs, weights, names, sources
        self.table_of = dict(tables)
        self.weights_as_constants = weights_as_constants
        self.shapes, self.with_more_rows, self.reshape = shapes, with_more_rows, reshape
        self.contents, self.live, self.lowerings, self.given = contents, live, lowerings, given
        self.flat = FlatGraph(tf.Graph())
        self.known: dict[int, np.ndarray] = {}
        self.alive: list[Any] = []  # known values are by id: their tensors must live as long
        self.made: dict[Any, list[Any]] = {}
        self.handles: dict[Handle, Any] = {}
        self.bodies: dict[str, Body] = {}
        self.unsupported: list[Unsupported] = []
        self.kept: set[str] = set()
        self.growing: set[str] = set()
        self.here: list[np.ndarray] | None = None
        self.flat_here: dict[int, np.ndarray] = {}
        self.frozen: set[int] = set()  # constants that variables were needed for

    def run(self, results: Sequence[str]) -> FlatGraph:
        with self.flat.graph.as_default():
            env: dict[str, dict[int, Any]] = {}
            for name, (dtype, shape) in self.inputs.items():
                node, index = split_name(name)
                placeholder = tf.compat.v1.placeholder(
                    dtype, shape, name=self.names.get(name, node).replace(":", "_")
                )
                if name in self.reshape:
                    placeholder = tf.reshape(placeholder, self.reshape[name])
                env.setdefault(node, {})[index] = placeholder
            for name, value in self.given.items():
                node, index = split_name(name)
                env.setdefault(node, {})[index] = self.constant(value, tf.as_dtype(value.dtype), node)
            self.frame(self.main, env, results, "")
            if self.unsupported:
                raise UnsupportedOpsError(self.unsupported)
            self.flat.results = tuple(self.tensor(read(env, name), name) for name in results)
        self.flat.removed = [r for r in dict.fromkeys(self.flat.removed) if r[0] not in self.kept]
        return self.flat

    def tensor(self, value: Any, name: str) -> Any:
        if isinstance(value, Handle):
            value = self.materialize(value)
        if not isinstance(value, tf.Tensor):
            raise ConversionError(f"{name} has no value: it is in a branch that is never taken")
        return value

    def frame(
        self, body: Body, env: dict[str, dict[int, Any]], results: Sequence[str], prefix: str
    ) -> list[Any]:
        """Evaluates what `results` need in one graph or function body; `env` has the values known so far."""
        tags: dict[tuple[str, int], frozenset] = {}
        for node in data_flow_order(body.nodes, results, env):
            inputs = [read(env, text) for text in node.input if not text.startswith("^")]
            above = frozenset().union(*(tags_of(tags, text) for text in node.input))
            if any(isinstance(v, Dead) for v in inputs) and node.op != "Merge":
                env[node.name] = dict.fromkeys(range(16), Dead())
                continue
            if node.op in ("Switch", "RefSwitch"):
                env[node.name] = switch(self, inputs, tags, node.name, above)
                continue
            if node.op in ("Merge", "RefMerge"):
                value, above = merge(self, inputs, [tags_of(tags, t) for t in node.input], node.name)
                env[node.name] = {0: value}
            else:
                outputs = self._node(node, inputs, env, body, prefix)
                env[node.name] = dict(enumerate(outputs))
            for index, value in env[node.name].items():
                self.flat.tensors[f"{prefix}{node.name}:{index}"] = value
            if above:
                tags[node.name, -1] = above
        return [read(env, name) for name in results]

    def _node(
        self, node: Any, inputs: list[Any], env: dict[str, dict[int, Any]], body: Body, prefix: str
    ) -> list[Any]:
        name = prefix + node.name
        if node.op in _CALLS or node.op in self.functions:
            function = node.op if node.op in self.functions else node.attr["f"].func.name
            return self.call(function, inputs, f"{name}/")
        if node.op in ("If", "StatelessIf"):
            return conditional(self, node, inputs, name)
        if node.op in ("Case", "StatelessCase"):
            return case(self, node, inputs, name)
        if node.op in ("While", "StatelessWhile"):
            return functional_loop(self, node, inputs, name)
        if node.op == "_Loop":
            return loop_frame(self, node, inputs, env, body, prefix)
        if node.op in PASS_THROUGH:
            self.gone(name, node.op, "it does nothing when a model is served")
            return inputs
        special = SPECIAL.get(node.op)
        if special is not None:
            return special(self, node, inputs, name)
        handles = [self.materialize(v) if isinstance(v, Handle) else v for v in inputs]
        if node.op in VARIABLES:
            handle = Handle("variable", self.sources.get(node.name, node.name))
            return [handle if node.op == "VarHandleOp" else self.materialize(handle)]
        if node.op == "Placeholder" and node.name in self.weights:
            return [self.materialize(Handle("weight", node.name))]
        if node.op in TABLES or (node.op == "Placeholder" and node.name in self.table_of):
            return [Handle("table", str(self.table_of.get(node.name, node.name)))]
        return self.op(node, handles, name)

    def body(self, function: str) -> Body:
        if function not in self.bodies:
            self.bodies[function] = function_body(self.functions[function], self.functions)
        return self.bodies[function]

    def call(
        self, function: str, inputs: Sequence[Any], prefix: str, wanted: Sequence[int] | None = None
    ) -> list[Any]:
        """A function's results, or only those at `wanted`."""
        body = self.body(function)
        env = {name: {0: value} for name, value in zip(body.arguments, inputs, strict=True)}
        results = body.results if wanted is None else [body.results[i] for i in wanted]
        return self.frame(body, env, results, prefix)

    def materialize(self, handle: Handle) -> Any:
        """The placeholder (or constant) that stands for a variable or table in the new graph."""
        if handle in self.handles:
            return self.handles[handle]
        with self.flat.graph.as_default():
            if handle.kind == "table" and self.live:
                contents = self.table(handle)
                keys, values = tf.constant(contents.keys), tf.constant(contents.values)
                tensor = tf.raw_ops.HashTableV2(key_dtype=keys.dtype, value_dtype=values.dtype)
                fill = tf.raw_ops.LookupTableImportV2(table_handle=tensor, keys=keys, values=values)
                self.flat.initializers.append(fill)
            elif handle.kind == "table":
                tensor = tf.compat.v1.placeholder(tf.resource, [], name=valid_name(handle.node))
                self.flat.tables[tensor.op.name] = handle.node
            else:
                if handle.node not in self.weights:
                    raise ConversionError(
                        f"the variable {handle.node} has no value in the checkpoint; export the model again "
                        "with all its variables"
                    )
                weight = self.weights[handle.node]
                tensor = self._weight(weight, weight.name, handle.node)
        self.handles[handle] = tensor
        return tensor

    def table(self, handle: Handle) -> TableContents:
        if self.contents is None:
            raise ConversionError(f"the lookup table {handle.node} is needed where no tables are")
        return self.contents(handle.node)

    def _weight(self, weight: Weight, name: str, source: str) -> Any:
        with self.flat.graph.as_default():
            if self.weights_as_constants and not (self.live and weight.nbytes > _LIVE_BYTES):
                value = weight.array()
                tensor = tf.constant(value, name=valid_name(name))
                self._know(tensor, value)
            else:
                dtype = tf.as_dtype(weight.dtype)
                tensor = tf.compat.v1.placeholder(dtype, weight.shape, name=valid_name(name))
                self.flat.weights[tensor.op.name] = weight
        self.flat.sources[tensor.op.name] = self.sources.get(source, source)
        return tensor

    def _know(self, tensor: Any, value: np.ndarray) -> None:
        self.known[id(tensor)] = value
        self.alive.append(tensor)

    def static(self, tensor: Any) -> np.ndarray | None:
        return self.known.get(id(tensor))

    def gone(self, name: str, op: str, why: str) -> None:
        self.flat.removed.append((self.sources.get(name, name), op, why))

    def op(self, node: Any, inputs: list[Any], name: str) -> list[Any]:
        """An ordinary op: folded where its inputs are known, found where it was made before, built else."""
        refuse_random(node, name)
        if node.op == "Const":
            value = tf.make_ndarray(node.attr["value"].tensor)
            return [self.constant(value, node.attr["dtype"].type, name)]
        if node.op == "Placeholder":
            raise ConversionError(
                f"the placeholder {name} is not an input of the signature, but the outputs need it; name "
                "it with "
                "--inputs"
            )
        if node.op in self.lowerings:
            attributes = {k: plain_attribute(v) for k, v in node.attr.items() if v.WhichOneof("value")}
            made = self._lowered(node.op, attributes, inputs, name)
            for tensor in made:
                self.flat.sources.setdefault(tensor.op.name, self.sources.get(node.name, name))
            return made
        definition = op_def_registry.get(node.op)
        if definition is None:
            self.unsupported.append(
                Unsupported(name, node.op, "is not an op that TensorFlow can build again; replace it")
            )
            return [tf.zeros([])] * 8
        if self.live and node.op in ("Gather", "GatherV2") and inputs[0].op.name in self.flat.weights:
            weight = self.flat.weights[inputs[0].op.name]
            rows = tf.numpy_function(weight.rows, [inputs[1]], inputs[0].dtype, stateful=False)
            rows.set_shape(inputs[1].shape.concatenate(weight.shape[1:]))
            return [rows]
        if node.op == "StridedSlice" and (indexed := as_gather(self, node, inputs, name)) is not None:
            self.flat.sources.setdefault(indexed.op.name, self.sources.get(node.name, name))
            return [indexed]
        unchanged = unchanged_input(self, node, inputs)
        if unchanged is not None:
            self.gone(name, node.op, "it changes nothing")
            return [unchanged]
        folded = self._folded(node, definition, inputs, name)
        if folded is not None:
            return folded
        key = (id(tf.compat.v1.get_default_graph()), node.op, tuple(map(id, inputs)), attribute_key(node))
        # A list is filled by one loop only.
        stateful = definition.is_stateful and node.op != "LookupTableFindV2"  # our tables do not change
        if key in self.made and not stateful and not node.op.startswith("TensorList"):
            self.gone(name, node.op, "the same computation is there once already")
            return self.made[key]
        made = build_op(node, inputs, valid_name(name))
        for tensor, value in zip(made, self.here or (), strict=False):
            self.flat_here[id(tensor)] = value
            self.flat.here[tensor.name] = value
        if made:
            self.flat.sources.setdefault(made[0].op.name, self.sources.get(node.name, name))
            self.kept.add(self.sources.get(node.name, name))
            if name in self.growing:
                self.flat.growing.add(made[0].op.name)
        if node.op == "LookupTableFindV2":
            # Values of our tables are scalars; TensorFlow knows that only where it holds the table itself.
            made[0].set_shape(inputs[1].shape)
        for i, tensor in enumerate(made):
            if (shape := self.shapes.get(f"{name}:{i}")) is not None:
                tensor.set_shape(shape)
        outputs = [reshaped_back(t) for t in made]
        self.made[key] = outputs
        self.alive.extend(inputs)
        return outputs

    def _lowered(self, kind: str, attributes: dict[str, Any], inputs: list[Any], name: str) -> list[Any]:
        try:
            made = self.lowerings[kind](attributes, inputs)
        except Exception as error:  # a user's function raises what it likes
            raise ConversionError(f"the lowering of {kind} failed on {name}: {error!r}") from error
        if not isinstance(made, (list, tuple)) or not all(isinstance(t, tf.Tensor) for t in made):
            raise ConversionError(
                f"the lowering of {kind} gave {type(made).__name__} on {name}; it must give a list of tensors"
            )
        return list(made)

    def constant(self, value: np.ndarray, dtype: Any, name: str) -> Any:
        graph = tf.compat.v1.get_default_graph()
        self.alive.append(graph)
        if value.nbytes >= _WEIGHT_BYTES and value.dtype != object and not self.weights_as_constants:
            return self._weight(Weight(name, (value,)), name, name)
        content = tuple(value.ravel()) if value.dtype == object else value.tobytes()
        key = (id(graph), "Const", str(value.dtype), value.shape, content)
        if key not in self.made:
            tensor = tf.constant(value, dtype=tf.as_dtype(dtype), name=valid_name(name), shape=value.shape)
            self._know(tensor, value)
            self.made[key] = [tensor]
        return self.made[key][0]

    def _found(self, value: np.ndarray, dtype: Any, name: str, index: int = 0) -> Any:
        """A folded value as a constant, with what it adds for each row if it depends on their number."""
        key = f"{name}:{index}"
        self.flat.constants[key] = value
        more = [constants[key] for constants in self.with_more_rows if key in constants]
        if len(more) < 2 or value.dtype.kind not in "iuf" or any(m.shape != value.shape for m in more):
            return self.constant(value, dtype, name)
        step = more[0] - value
        if not step.any():
            return self.constant(value, dtype, name)
        if (more[1] - more[0] != step).any():
            step = np.full(value.shape, np.nan)  # no value for other numbers of rows is known
        with tf.compat.v1.get_default_graph().as_default():
            tensor = tf.constant(value, dtype=tf.as_dtype(dtype), name=valid_name(name), shape=value.shape)
        self._know(tensor, value)
        self.flat.per_row[tensor.op.name] = step
        return tensor

    def _grows(self, name: str, arrays: Sequence[Any]) -> bool:
        """Whether a folded value has another shape at another number of rows; then it stays an op."""
        for i, value in enumerate(arrays):
            for constants in self.with_more_rows:
                other = constants.get(f"{name}:{i}")
                if other is not None and other.shape != np.shape(value):
                    self.growing.add(name)
                    return True
        return False

    def _folded(self, node: Any, definition: Any, inputs: list[Any], name: str) -> list[Any] | None:
        """The node's outputs as constants, or None where they depend on a model input. Those that are known
        only at this number of rows are left in `here`."""
        self.here = None
        agreed = all(f"{name}:0" in constants for constants in self.with_more_rows)
        value = shape_value(node, inputs)
        if value is not None:
            if not agreed:
                self.here = [value]
                return None
            self.gone(name, node.op, "a shape that is known")
            return [self._found(value, tf.as_dtype(value.dtype), name)]
        if not inputs or definition.is_stateful:
            return None
        values = [self._value(t) for t in inputs]
        weights = [
            self.flat.weights.get(t.op.name) if v is None else None
            for t, v in zip(inputs, values, strict=True)
        ]
        if any(v is None and w is None for v, w in zip(values, weights, strict=True)):
            return None
        size = sum(w.nbytes for w in weights if w is not None)
        whole = self._partitions(node, weights, inputs, name) if any(weights) else None
        if whole is not None or size > _FOLD_BYTES:
            return whole
        operands = [np.asarray(w.array() if w else v) for v, w in zip(values, weights, strict=True)]
        found = compute_op(node, definition, operands)
        if any(t.dtype in (tf.variant, tf.resource) for t in found):
            return None
        arrays = [np.asarray(t.numpy(), object if t.dtype == tf.string else None) for t in found]
        if sum(a.nbytes for a in arrays) > max(4 * size, 1 << 20):
            return None
        only_here = any(id(t) in self.flat_here for t in inputs) or not agreed
        if only_here or self._grows(name, arrays):
            self.here = arrays
            return None
        frozen = any(weights) or any(id(t) in self.frozen for t in inputs)
        self.gone(name, node.op, "computed from variables ahead of time" if frozen else "a constant")
        made = [self._found(a, t.dtype, name, i) for i, (a, t) in enumerate(zip(arrays, found, strict=True))]
        if frozen:
            self.frozen.update(map(id, made))
        return made

    def _value(self, tensor: Any) -> np.ndarray | None:
        found = self.known.get(id(tensor))
        return self.flat_here.get(id(tensor)) if found is None else found

    def _partitions(
        self, node: Any, weights: list[Weight | None], inputs: list[Any], name: str
    ) -> list[Any] | None:
        """Partitions of a variable, put together along their rows, are one weight that is not copied."""
        *parts, axis = weights
        if node.op != "ConcatV2" or axis is not None or not parts or any(p is None for p in parts):
            return None
        if int(self.known[id(inputs[-1])]) != 0 or any(len(p.parts) > 1 for p in parts if p):
            return None
        self.gone(name, node.op, "partitions of one variable")
        whole = Weight(name, tuple(p.parts[0] for p in parts if p))
        return [self._weight(whole, name, name)]
