"""An ONNX graph made ready for writing: functions expanded, types known, constants folded, dead nodes gone.

`prepare` works on one graph, the model's or a body's, with the constants and types that are known around it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from converters.onnx_functions import expand
from converters.onnx_loops import simplify
from converters.onnx_ops import OPS

_LARGE = 1024
"""Constants with more values are only types to shape inference: they hold weights, not shapes, and a protobuf
takes no more than 2 GiB."""

_RANDOM = (
    "Bernoulli",
    "Multinomial",
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
)


@dataclass(frozen=True)
class TensorType:
    """What is known of a value; a shape is known whole or not at all."""

    dtype: np.dtype | None = None
    shape: tuple[int, ...] | None = None


@dataclass(frozen=True)
class PreparedGraph:
    """`nodes` in data-flow order: those whose values depend on an input and that an output needs."""

    nodes: list[Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, np.ndarray]
    types: dict[str, TensorType]

    def uses(self) -> dict[str, int]:
        """How many operands each value is, those of bodies included."""
        counts: dict[str, int] = {}
        for name in (*(n for node in self.nodes for n in operands(node)), *self.outputs):
            counts[name] = counts.get(name, 0) + 1
        return counts


def prepare(
    graph: onnx.GraphProto,
    opsets: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    types: Mapping[str, TensorType],
) -> PreparedGraph:
    """`constants` and `types` are what is known around the graph and of its inputs; those of the result hold
    them too.

    A constant found makes more shapes known, and a shape more constants, so both are done until nothing
    changes.
    """
    known = dict(constants)
    known.update({t.name: numpy_helper.to_array(t) for t in graph.initializer})
    found = {**_declared_types(graph), **types}
    versions = {"ai.onnx" if not o.domain else o.domain: o.version for o in opsets}
    nodes, before = list(graph.node), -1
    found.update(_inferred(nodes, graph, opsets, known, found))
    while before != len(nodes):
        before = len(nodes)
        seen = {id(node) for node in nodes}
        nodes = [made for node in nodes for made in _expanded(node, versions, known, found)]
        changed = any(id(node) not in seen for node in nodes)
        nodes = [node for node in nodes if not _fold(node, known, found, versions["ai.onnx"])]
        if changed or len(nodes) != before:
            found.update(_inferred(nodes, graph, opsets, known, found))
            before = -1
    outputs = tuple(value.name for value in graph.output)
    return PreparedGraph(_needed(nodes, outputs), tuple(v.name for v in graph.input), outputs, known, found)


def operands(node: Any) -> list[str]:
    """The values a node reads, including what its bodies read from around them."""
    names = [name for name in node.input if name]
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            names += _captured(attribute.g)
    return names


def _captured(graph: onnx.GraphProto) -> list[str]:
    inside = {v.name for v in graph.input} | {t.name for t in graph.initializer}
    inside |= {name for node in graph.node for name in node.output}
    used = [name for node in graph.node for name in operands(node)] + [v.name for v in graph.output]
    return [name for name in dict.fromkeys(used) if name not in inside]


def _expanded(
    node: Any,
    versions: Mapping[str, int],
    constants: dict[str, np.ndarray],
    types: Mapping[str, TensorType],
) -> list[Any]:
    """What a node stands for: the branch that a known condition takes; a simpler loop; a cast, once its
    dtype is known; of an operator without an entry in the table that ONNX defines by a function, that
    function's nodes."""
    domain = node.domain or "ai.onnx"
    if node.op_type == "If" and node.input[0] in constants:
        return _branch(node, bool(constants[node.input[0]].reshape(-1)[0]), constants)
    if node.op_type == "Loop" and domain == "ai.onnx":
        shapes = {name: t.shape for name, t in types.items() if t.shape is not None}
        return simplify(node, constants, shapes)
    if node.op_type == "CastLike" and domain == "ai.onnx":
        like = constants.get(node.input[1], types.get(node.input[1], TensorType())).dtype
        if like is not None:
            made = helper.make_node(
                "Cast", node.input[:1], node.output, to=helper.np_dtype_to_tensor_dtype(like)
            )
            made.attribute.extend(node.attribute)
            return [made]
    if (node.op_type in OPS and domain == "ai.onnx") or domain not in versions:
        return [node]
    operand_types = []
    for name in node.input:
        known = types.get(name, TensorType())
        if name in constants:
            known = TensorType(constants[name].dtype, constants[name].shape)
        operand_types.append(_value_info(name, known).type)
    return expand(node, versions[domain], operand_types) or [node]


def _branch(node: Any, condition: bool, constants: dict[str, np.ndarray]) -> list[Any]:
    wanted = "then_branch" if condition else "else_branch"
    graph = next(a.g for a in node.attribute if a.name == wanted)
    constants.update({t.name: numpy_helper.to_array(t) for t in graph.initializer})
    results = [
        helper.make_node("Identity", [inner.name], [outer])
        for inner, outer in zip(graph.output, node.output, strict=True)
        if outer
    ]
    return [*graph.node, *results]


def _needed(nodes: Sequence[Any], outputs: Iterable[str]) -> list[Any]:
    wanted, kept = set(outputs), []
    for node in reversed(nodes):
        if wanted & set(node.output):
            kept.append(node)
            wanted.update(operands(node))
    return kept[::-1]


def _fold(node: Any, constants: dict[str, np.ndarray], types: Mapping[str, TensorType], opset: int) -> bool:
    """Whether a node's value is known now: then it is put among the constants and needs no code."""
    if node.domain not in ("", "ai.onnx") or node.op_type in _RANDOM:
        return False
    if node.op_type in ("Shape", "Size"):
        known = types.get(node.input[0], TensorType()).shape
        if node.input[0] in constants:
            known = constants[node.input[0]].shape
        if known is None:
            return False
        limits = {a.name: a.i for a in node.attribute}
        shape = np.array(known, np.int64)
        value = shape[limits.get("start", 0) : limits.get("end")] if node.op_type == "Shape" else shape.prod()
        constants[node.output[0]] = np.asarray(value, np.int64)
        return True
    if any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
        return False
    if not (node.input or node.op_type == "Constant") or any(n not in constants for n in node.input if n):
        return False
    outputs = [o for o in node.output if o]
    alone = helper.make_graph([node], "constant", [], [_value_info(o, TensorType()) for o in outputs])
    for name in set(node.input) - {""}:
        alone.initializer.append(numpy_helper.from_array(constants[name], name))
    model = helper.make_model(alone, opset_imports=[helper.make_opsetid("", opset)])
    try:
        values = ReferenceEvaluator(model).run(None, {})
    except (NotImplementedError, RuntimeError, TypeError, ValueError, IndexError):
        return False  # the evaluator cannot; the module will
    constants.update(zip(outputs, map(np.asarray, values), strict=True))  # pyright: ignore
    return True


def _inferred(
    nodes: Sequence[Any],
    graph: onnx.GraphProto,
    opsets: Sequence[Any],
    constants: Mapping[str, np.ndarray],
    types: Mapping[str, TensorType],
) -> dict[str, TensorType]:
    made = {name for node in nodes for name in node.output}
    outputs = [value.name for value in graph.output if value.name in made]
    free = [n for n in dict.fromkeys(name for node in nodes for name in operands(node)) if n not in made]
    small = [n for n in free if n in constants and constants[n].size <= _LARGE]
    given = [n for n in free if n not in small]
    known = {n: TensorType(constants[n].dtype, constants[n].shape) for n in given if n in constants}
    alone = helper.make_graph(
        nodes,
        "inputs only",
        [_value_info(n, known.get(n) or types.get(n, TensorType())) for n in given],
        [_value_info(n, types.get(n, TensorType())) for n in outputs],
        [
            numpy_helper.from_array(np.ascontiguousarray(constants[n]).reshape(constants[n].shape), n)
            for n in small
        ],
        value_info=[_value_info(n, types[n]) for n in made - set(outputs) if n in types],
    )
    model = helper.make_model(alone, opset_imports=list(opsets))
    inferred = _declared_types(onnx.shape_inference.infer_shapes(model, data_prop=True).graph)
    for node in nodes:
        if node.op_type in ("Scan", "Loop") and any(
            inferred.get(name, TensorType()).shape is None and types.get(name, TensorType()).shape is None
            for name in node.output
        ):
            of_loop = _loop_types(node, opsets, constants, {**types, **inferred})
            if any(
                t.shape is not None and inferred.get(n, TensorType()).shape is None
                for n, t in of_loop.items()
            ):
                return _inferred(nodes, graph, opsets, constants, {**types, **inferred, **of_loop})
    merged = {}
    for name, found in inferred.items():
        old = types.get(name, TensorType())
        # Types that the model declares stand where inference stops.
        shape = found.shape if found.shape is not None else old.shape
        merged[name] = TensorType(found.dtype or old.dtype, shape)
    return merged


def _loop_types(
    node: Any, opsets: Sequence[Any], constants: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
) -> dict[str, TensorType]:
    """Of the outputs of a Loop or Scan, from its body with the types of what goes in: ONNX's inference gives
    up when a body reads values from around it."""

    def type_of(name: str) -> TensorType:
        if name in constants:
            return TensorType(constants[name].dtype, constants[name].shape)
        return types.get(name, TensorType())

    settings = {a.name: a for a in node.attribute}
    body = settings["body"].g
    if node.op_type == "Loop":
        carried = [type_of(name) for name in node.input[2:]]
        entering = [TensorType(np.dtype(np.int64), ()), TensorType(np.dtype(bool), ()), *carried]
        trips = constants.get(node.input[0]) if node.input else None
        length = None if trips is None else int(trips.reshape(-1)[0])
        leaving = list(body.output)[1:]
        output_axes = [0] * (len(leaving) - len(carried))
    else:
        if "num_scan_inputs" not in settings or "" in node.input:
            return {}
        count = settings["num_scan_inputs"].i
        carried = [type_of(name) for name in node.input[: len(node.input) - count]]
        sequences = [type_of(name) for name in node.input[len(node.input) - count :]]
        axes = list(settings["scan_input_axes"].ints) if "scan_input_axes" in settings else [0] * count
        shapes = [
            None if s.shape is None else tuple(np.delete(s.shape, a).tolist())
            for s, a in zip(sequences, axes, strict=True)
        ]
        entering = [*carried, *(TensorType(s.dtype, d) for s, d in zip(sequences, shapes, strict=True))]
        length = next((s.shape[a] for s, a in zip(sequences, axes, strict=True) if s.shape is not None), None)
        leaving = list(body.output)
        output_axes = [0] * (len(leaving) - len(carried))
        if "scan_output_axes" in settings:
            output_axes = list(settings["scan_output_axes"].ints)
    inside = {**types, **{value.name: t for value, t in zip(body.input, entering, strict=True)}}
    around = {name: value for name, value in constants.items() if name not in {v.name for v in body.input}}
    prepared = prepare(body, opsets, around, inside)
    found: dict[str, TensorType] = {}
    for i, (name, value) in enumerate(zip(node.output, leaving, strict=False)):
        known = prepared.types.get(value.name, TensorType())
        if value.name in prepared.constants:
            known = TensorType(prepared.constants[value.name].dtype, prepared.constants[value.name].shape)
        shape = known.shape
        if i >= len(carried) and shape is not None:
            axis = output_axes[i - len(carried)] % (len(shape) + 1)
            shape = None if length is None else (*shape[:axis], length, *shape[axis:])
        if name:
            found[name] = TensorType(known.dtype, shape)
    return found


def _declared_types(graph: onnx.GraphProto) -> dict[str, TensorType]:
    types = {}
    for value in (*graph.value_info, *graph.input, *graph.output):
        if value.type.WhichOneof("value") != "tensor_type":
            continue
        tensor = value.type.tensor_type
        shape = None
        if tensor.HasField("shape") and all(d.HasField("dim_value") for d in tensor.shape.dim):
            shape = tuple(d.dim_value for d in tensor.shape.dim)
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type) if tensor.elem_type else None
        types[value.name] = TensorType(dtype, shape)
    return types


def _value_info(name: str, known: TensorType) -> onnx.ValueInfoProto:
    if known.dtype is None:
        value = onnx.ValueInfoProto()
        value.name = name
        return value
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(known.dtype), known.shape)
