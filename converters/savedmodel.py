"""Loads a SavedModel signature as one flat GraphDef at one candidate.

Every leading dimension that a client chooses is fixed to 1 and constants are folded, so the plumbing that a
batch size needs (shape, tile, repeat, reshape to a computed shape) is gone before anything else looks at the
graph. Variables stay placeholders: embedding tables never pass through a protobuf.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from converters.errors import ConversionError
from converters.folding import fold


@dataclass(frozen=True)
class SourceTensor:
    """An input or output of the signature. `shape` is as declared: `None` is a dimension the client
    chooses."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    tensor_name: str


@dataclass(frozen=True)
class SourceModel:
    """A signature, flat.

    `graph` is inlined and folded at one candidate. Its placeholders are the inputs, `variables` (placeholder
    name -> tf.Variable) and `tables` (placeholder name -> resource tensor of a lookup table). `results` are
    its output tensors. `function` is the original signature, the reference of every certificate; `removed`
    names the ops that folding removed.
    """

    path: Path
    signature_name: str
    inputs: tuple[SourceTensor, ...]
    outputs: tuple[SourceTensor, ...]
    graph: Any
    results: tuple[Any, ...]
    variables: dict[str, Any]
    tables: dict[str, Any]
    function: Any
    loaded: Any
    removed: tuple[tuple[str, str], ...]
    source_names: dict[str, str]

    def source_name(self, op: Any) -> str:
        """Name that the op had in the source graph; graphs rename ops when they are built again."""
        if op.name in self.variables:
            return str(self.variables[op.name].name).split(":")[0]
        return str(self.source_names.get(op.name, op.name))

    def predict(self, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """TensorFlow's own outputs."""
        tensors = {t.name: tf.constant(features[t.name], dtype=getattr(tf, t.dtype)) for t in self.inputs}
        return {name: value.numpy() for name, value in self.function(**tensors).items()}


def load(path: Path, signature_name: str = "serving_default") -> SourceModel:
    """Loads, inlines and folds one signature. Raises `ConversionError` for anything that is not a loadable
    SavedModel."""
    if not (path / "saved_model.pb").is_file():
        hint = (
            "it is a file"
            if path.is_file()
            else "it has no saved_model.pb"
            if path.is_dir()
            else "it does not exist"
        )
        raise ConversionError(
            f"{path} is not a TensorFlow SavedModel: {hint}; give the directory that holds saved_model.pb"
        )
    try:
        loaded: Any = tf.saved_model.load(str(path))
    except Exception as error:  # TensorFlow raises whatever its C++ and protobuf layers raise
        raise ConversionError(f"{path} does not load as a SavedModel: {error}") from error
    signatures = loaded.signatures
    if signature_name not in signatures:
        raise ConversionError(
            f"{path} has no signature {signature_name!r}; it has: {', '.join(sorted(signatures)) or 'none'} "
            "(choose one with --signature)"
        )
    function = signatures[signature_name]
    by_node = {tensor.op.name: tensor for tensor in function.inputs}
    _, named_inputs = function.structured_input_signature
    inputs = tuple(
        SourceTensor(
            name, spec.dtype.name, tuple(spec.shape.as_list()), by_node[_placeholder(function, name)].name
        )
        for name, spec in sorted(named_inputs.items())
    )
    outputs = tuple(
        SourceTensor(name, tensor.dtype.name, _shape(tensor), tensor.name)
        for name, tensor in zip(sorted(function.structured_outputs), function.outputs, strict=True)
    )
    # TensorFlow has no public call that inlines without freezing: the public one puts every variable, so
    # every embedding table, into a Const. TensorFlow is pinned in pyproject.toml.
    graph_def: Any = convert_to_constants._run_inline_graph_optimization(function, False, False)
    nodes_before = {node.name: node.op for node in graph_def.node}
    variables, tables = _bind_captures(function, graph_def)
    _fix_to_one_candidate(graph_def, inputs)
    graph, final = fold(graph_def, [t.tensor_name for t in outputs])
    removed = tuple(
        (name, op)
        for name, op in nodes_before.items()
        if op not in ("Const", "Placeholder") and (name not in final or final[name].type == "Const")
    )
    return SourceModel(
        path,
        signature_name,
        inputs,
        outputs,
        graph,
        tuple(final[t.tensor_name.split(":")[0]].outputs[0] for t in outputs),
        variables,
        tables,
        function,
        loaded,
        removed,
        {op.name: name for name, op in reversed(final.items()) if op.type == nodes_before[name]},
    )


def _placeholder(function: Any, name: str) -> str:
    """Name of the graph placeholder that carries a signature argument."""
    for tensor in function.inputs:
        user_name = (
            tensor.op.get_attr("_user_specified_name")
            if "_user_specified_name" in tensor.op.node_def.attr
            else b""
        )
        if user_name.decode() == name or tensor.op.name == name:
            return tensor.op.name
    raise ConversionError(
        f"the signature argument {name!r} has no placeholder in its graph; export the model again"
    )


def _shape(tensor: Any) -> tuple[int | None, ...]:
    if tensor.shape.rank is None:
        raise ConversionError(f"{tensor.name} has an unknown rank; give it a shape in the exported signature")
    return tuple(tensor.shape.as_list())


def _bind_captures(function: Any, graph_def: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gives every captured value its place: small constants become Const nodes, variables typed
    placeholders."""
    nodes = {node.name: node for node in graph_def.node}
    by_handle = {id(v.handle): v for v in function.graph.variables}
    variables: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    for external, internal in function.graph.captures:
        name = internal.op.name
        if name not in nodes:
            continue
        node = nodes[name]
        if external.dtype != tf.resource:
            node.Clear()
            node.name, node.op = name, "Const"
            node.attr["dtype"].type = external.dtype.as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(external.numpy()))
        elif id(external) in by_handle:
            variables[name] = by_handle[id(external)]
        else:
            tables[name] = external
    # A variable is read through Identity chains and ReadVariableOp; both become the variable itself.
    alias = {name: name for name in variables}
    changed = True
    while changed:
        changed = False
        for node in graph_def.node:
            if node.op in ("Identity", "ReadVariableOp") and node.name not in alias and node.input:
                origin = alias.get(node.input[0].split(":")[0].lstrip("^"))
                if origin is not None and (node.op == "ReadVariableOp" or _is_resource(node)):
                    alias[node.name] = origin
                    changed = True
    for node in graph_def.node:
        if node.name in variables:
            variable = variables[node.name]
            node.Clear()
            node.name, node.op = next(n for n in variables if variables[n] is variable), "Placeholder"
            node.attr["dtype"].type = variable.dtype.as_datatype_enum
            node.attr["shape"].shape.CopyFrom(variable.shape.as_proto())
        elif node.op == "ResourceGather" and node.input[0].split(":")[0] in alias:
            _resource_gather_to_gather(node)
    for node in graph_def.node:
        for i, text in enumerate(node.input):
            base = text.split(":")[0].lstrip("^")
            if base in alias and not text.startswith("^"):
                node.input[i] = alias[base]
    kept = [n for n in graph_def.node if n.name not in alias or n.name in variables]
    for node in kept:
        clean = [t for t in node.input if not (t.startswith("^") and t[1:] in alias)]
        del node.input[:]
        node.input.extend(clean)
    del graph_def.node[:]
    graph_def.node.extend(kept)
    return variables, tables


def _is_resource(node: Any) -> bool:
    return node.attr["T"].type == tf.resource.as_datatype_enum


def _resource_gather_to_gather(node: Any) -> None:
    """ResourceGather reads rows of a variable exactly as Gather reads rows of a tensor; later steps know one
    op."""
    if node.attr["batch_dims"].i != 0:
        return
    dtype, indices = node.attr["dtype"].type, node.attr["Tindices"].type
    inputs = list(node.input[:2])
    name = node.name
    node.Clear()
    node.name, node.op = name, "Gather"
    node.input.extend(inputs)
    node.attr["Tparams"].type, node.attr["Tindices"].type = dtype, indices


def _fix_to_one_candidate(graph_def: Any, inputs: tuple[SourceTensor, ...]) -> None:
    nodes = {node.name: node for node in graph_def.node}
    for tensor in inputs:
        if any(d is None for d in tensor.shape[1:]):
            raise ConversionError(
                f"input {tensor.name!r} has shape {list(tensor.shape)}: only the first dimension may be "
                "open; pad the others "
                "to a fixed length in the exported signature"
            )
        if not tensor.shape:
            raise ConversionError(
                f"input {tensor.name!r} is a scalar; give it a leading row dimension in the signature"
            )
        node = nodes[tensor.tensor_name.split(":")[0]]
        one = [1 if d is None else d for d in tensor.shape]
        node.attr["shape"].shape.CopyFrom(tf.TensorShape(one).as_proto())
        node.attr.pop("_output_shapes", None)
