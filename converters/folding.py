"""Partial evaluation of a GraphDef whose input shapes are all known: what does not depend on an input becomes
a constant.

TensorFlow's own grappler refuses to fold the shape of a fed placeholder, and it does not know the shape of a
table lookup; both are what a ranking model's batch plumbing hangs on.
"""

from typing import Any

import tensorflow as tf

from converters.errors import ConversionError

# Ops that do nothing at run time of a served model.
_PASS_THROUGH = {
    "Identity",
    "StopGradient",
    "PreventGradient",
    "Snapshot",
    "EnsureShape",
    "PlaceholderWithDefault",
}
_NEVER_FOLD = {
    "Placeholder",
    "VarHandleOp",
    "NoOp",
    "Assert",
    "HashTableV2",
    "StatelessRandomUniform",
    "RandomUniform",
}
_RESHAPES = {"Reshape", "Squeeze", "ExpandDims"}


def fold(graph_def: Any, outputs: list[str], *, keep_identities: bool = False) -> tuple[Any, dict[str, Any]]:
    """Builds the graph again, op by op, in data-flow order, each computation once, without ops that pass
    their input through (unless `keep_identities`).

    Returns:
        The new `tf.Graph`, in which every shape that can be known is known, and for every source node that
        some output needs, the operation that now makes its value (a Const where the value is known).
    """
    nodes = {node.name: node for node in graph_def.node}
    graph = tf.Graph()
    values: dict[str, list[Any]] = {}
    made: dict[Any, list[Any]] = {}
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        for node in data_flow_order(nodes, [name.split(":")[0] for name in outputs]):
            _refuse_random(node)
            inputs = [_value(values, text) for text in node.input if not text.startswith("^")]
            unchanged = (
                inputs[0] if node.op in _PASS_THROUGH and not keep_identities else _unchanged(node, inputs)
            )
            if unchanged is not None:
                values[node.name] = [unchanged]
                continue
            known = _known_value(node, inputs, session, graph_def.library)
            if known is None:
                key = _identity(node, inputs)
                if key not in made:
                    made[key] = [_reshaped_back(t) for t in import_node(node, inputs, graph_def.library)]
                values[node.name] = made[key]
            else:
                values[node.name] = [made.setdefault(_identity(t.op.node_def, []), [t])[0] for t in known]
    return graph, {name: tensors[0].op for name, tensors in values.items() if tensors}


def _identity(node: Any, inputs: list[Any]) -> Any:
    """Equal for two nodes that compute the same; a node's name for those that stand for themselves."""
    if node.op in _NEVER_FOLD or not inputs and node.op != "Const":
        return node.name
    attributes = {
        k: v.SerializeToString(deterministic=True) for k, v in node.attr.items() if not k.startswith("_")
    }
    return node.op, tuple(t.name for t in inputs), tuple(sorted(attributes.items()))


def _refuse_random(node: Any) -> None:
    if "Random" in node.op or node.op in ("Multinomial", "TruncatedNormal"):
        raise ConversionError(
            f"{node.name} ({node.op}) draws random numbers, so the model has no scores to keep; "
            "export it for inference"
        )


def _value(values: dict[str, list[Any]], text: str) -> Any:
    name, _, index = text.partition(":")
    return values[name][int(index or 0)]


def _known_value(node: Any, inputs: list[Any], session: Any, library: Any) -> list[Any] | None:
    """The node's outputs as constants, or None where they depend on a model input."""
    if node.op in _NEVER_FOLD or node.op == "Const":
        return None
    if node.op in ("Shape", "Size", "Rank") and inputs[0].shape.is_fully_defined():
        shape = inputs[0].shape.as_list()
        dtype = tf.as_dtype(node.attr["out_type"].type) if node.op != "Rank" else tf.int32
        size = 1
        for dim in shape:
            size *= dim
        value = {"Shape": shape, "Size": size, "Rank": len(shape)}[node.op]
        return [tf.constant(value, dtype or tf.int32, name=node.name)]
    if (
        node.op in ("ZerosLike", "OnesLike")
        and inputs[0].shape.is_fully_defined()
        and inputs[0].dtype != tf.string
    ):
        make = tf.zeros if node.op == "ZerosLike" else tf.ones
        return [tf.constant(session.run(make(inputs[0].shape, inputs[0].dtype)), name=node.name)]
    if inputs and all(tensor.op.type == "Const" for tensor in inputs):
        made = import_node(node, inputs, library, prefix="folding")
        found = session.run(made)
        return [tf.constant(value, t.dtype, name=node.name) for value, t in zip(found, made, strict=True)]
    return None


def _unchanged(node: Any, inputs: list[Any]) -> Any | None:
    """The tensor that a Tile by ones, or a chain of reshapes back to an earlier shape, gives back; None for
    real work."""
    if node.op in ("Tile", "BroadcastTo"):
        argument = tf.get_static_value(inputs[1])
        if argument is None or not inputs[0].shape.is_fully_defined():
            return None
        same = all(argument == 1) if node.op == "Tile" else list(argument) == inputs[0].shape.as_list()
        return inputs[0] if same else None
    return None


def _reshaped_back(tensor: Any) -> Any:
    """An earlier tensor with the same elements and shape, seen through ops that only reshape; else the tensor
    itself."""
    found, source = tensor, tensor
    while source.op.type in _RESHAPES:
        source = source.op.inputs[0]
        if (
            tensor.shape.is_fully_defined()
            and source.shape.is_fully_defined()
            and source.shape == tensor.shape
        ):
            found = source
    return found


def import_node(node: Any, inputs: list[Any], library: Any, prefix: str = "") -> list[Any]:
    """Adds one NodeDef to the current graph on the given input tensors, with TensorFlow's shape inference.
    Returns its outputs."""
    single = tf.compat.v1.GraphDef()
    single.library.CopyFrom(library)
    copy = single.node.add()
    copy.CopyFrom(node)
    copy.attr.pop("_output_shapes", None)
    copy.attr.pop("_class", None)
    del copy.input[:]
    copy.input.extend(f"input_{i}:0" for i in range(len(inputs)))
    mapping = {f"input_{i}:0": tensor for i, tensor in enumerate(inputs)}
    (operation,) = tf.graph_util.import_graph_def(
        single, input_map=mapping, return_elements=[node.name], name=prefix
    )
    if node.op == "LookupTableFindV2":
        # Values of our tables are scalars; TensorFlow knows that only where it holds the table itself.
        operation.outputs[0].set_shape(inputs[1].shape)
    return list(operation.outputs)


def data_flow_order(nodes: dict[str, Any], roots: list[str]) -> list[Any]:
    """The nodes that the roots need, each after its inputs."""
    order: list[Any] = []
    state: dict[str, bool] = {}
    stack = [(name, False) for name in roots]
    while stack:
        name, done = stack.pop()
        if done:
            order.append(nodes[name])
            state[name] = True
        elif name not in state:
            state[name] = False
            stack.append((name, True))
            stack.extend((t.split(":")[0], False) for t in nodes[name].input if not t.startswith("^"))
    return order
