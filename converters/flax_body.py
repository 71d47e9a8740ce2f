"""The statements of one block: each node as a layer's call or an expression, an activation around the value
that only it reads."""

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from converters.errors import Unsupported, UnsupportedOpsError
from converters.flax_control_flow import WritableBody
from converters.flax_expressions import operator
from converters.flax_layout import Block, Item, operands, results
from converters.flax_loops import SHORT, Statement
from converters.flax_members import layer
from converters.lifting.graph import Graph, captures
from converters.names import identifier, scope_parts
from converters.onnx_graph import TensorType
from converters.onnx_ops import OnnxOp, Operand, Result, dtype_name
from converters.scope_names import Scope, base_name

# Applied to the value before it, in the same line, when nothing else reads that value.
_ACTIVATIONS = {
    "Relu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Softplus", "Elu", "Selu", "LeakyRelu", "Gelu",
    "Swish", "Mish", "HardSwish",
}  # fmt: skip
_VIEWS = {"Squeeze", "Unsqueeze", "Reshape", "Gather", "Slice"}
# Take a short operand into their own line; so do layers that are used like activations.
_ARITHMETIC = {
    "Add", "Sub", "Mul", "Div", "Neg", "Where", "Concat", "Stack", "ReduceSum", "ReduceMean", "ReduceMax",
    "MatMul", "Einsum", "Cast", "Not", "Exp", "Log", "Sqrt", "Greater", "Less", "Equal", "Dice", "PRelu",
    "LayerNormalization", "ScaleShift",
}  # fmt: skip
_OPERATION_SCOPES = {
    "repeat", "einsum", "gelu", "moments", "batchnorm", "strided_slice", "stack", "concat", "concatenate",
    "tensordot", "softmax", "dropout", "flatten", "activation", "l2_normalize", "while", "cond",
}  # fmt: skip
"""Scopes that TensorFlow and Keras open for one operation, not for a layer with a name."""
_HANDFUL = 4
_KINDS_OF_WEIGHT = {
    "kernel", "bias", "weight", "weights", "w", "b", "gamma", "beta", "alpha", "MatMul", "Const",
    "ReadVariableOp", "Reshape",
}  # fmt: skip
_LONG = 60
"""Characters of an operand that may stand inside an activation or a view."""
_RESULT_NAMES = {
    "Add": "total", "Sub": "difference", "Mul": "product", "Div": "ratio", "Concat": "features",
    "Stack": "stacked", "Where": "chosen", "Softmax": "weights", "ReduceSum": "summed", "ReduceMean": "mean",
    "MatMul": "product", "Einsum": "product", "Expand": "repeated", "Unsqueeze": "expanded",
    "Squeeze": "squeezed", "Reshape": "reshaped", "Slice": "part", "Gather": "part",
    "FactorizationMachine": "interactions", "L2Normalize": "unit", "Greater": "mask", "Less": "mask",
    "Not": "mask", "Equal": "mask", "Transpose": "transposed", "Relu": "activated", "Sigmoid": "activated",
    "Tanh": "activated",
}  # fmt: skip
"""What the result of an operation is called that no layer's scope names."""


@dataclass
class Member:
    """A layer, block or weight of a module. `weights` are arrays by path below the member."""

    hint: str
    constructor: str
    weights: dict[str, np.ndarray]


@dataclass
class Body:
    """A block's code before names are given: see `flax_loops` for the placeholders."""

    statements: list[Statement] = field(default_factory=list)
    members: dict[int, Member] = field(default_factory=dict)
    inputs: list[int] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    hints: list[str] = field(default_factory=list)
    """What each value might be called, by number."""


class BodyWriter:
    """Writes one block. `write_child` gives a block inside as a member."""

    def __init__(
        self, block: Block, graph: Graph, where: dict[int, Scope], write_child: Callable[[Block], Member]
    ):
        self.block, self.where, self.write_child = block, where, write_child
        self.body = Body()
        self.text: dict[str, str] = {}
        self.pending: dict[str, str] = {}
        self.bound: set[str] = set()
        self.statements = self.body.statements
        self.lines: list[str] = []
        self.layer_of: dict[Any, int] = {}
        self.layer_scopes = {where[id(n)] for n in graph.nodes if layer(n, graph) is not None}
        self.body.inputs = [self.new_value("x") for _ in block.inputs]
        self.ports = iter(block.ports)
        self.enter(block.items, graph)

    def enter(self, items: list[Item], graph: Graph) -> None:
        """Makes these items, the block's or those of a body of control flow, the ones that are written."""
        self.items, self.graph = items, graph
        self.readers: dict[str, list[Item]] = {}
        for item in items:
            for name in operands(item, graph):
                self.readers.setdefault(name, []).append(item)
        self.made = {name for item in items for name in results(item)}
        self.outputs = set(self.block.outputs if items is self.block.items else graph.outputs)

    def run(self) -> Body:
        self.write_items()
        self.body.outputs = [str(self.operand(name)) for name in self.block.outputs]
        return self.body

    def write_items(self) -> None:
        for item in self.items:
            if isinstance(item, Block):
                self._child(item)
            else:
                self._node(item)

    def new_value(self, hint: str) -> int:
        self.body.hints.append(hint)
        return len(self.body.hints) - 1

    def _child(self, block: Block) -> None:
        arguments = [self.operand(name) for name in block.inputs]
        member = self._member(self.write_child(block))
        text = f"self._m{member}_({', '.join(a.text for a in arguments)})"
        self._assign(block.outputs, text, block.name, plain=False, takes=0)

    def _member(self, member: Member) -> int:
        number = len(self.body.members)
        self.body.members[number] = member
        return number

    def _node(self, node: Any) -> None:
        made = layer(node, self.graph)
        if made is not None:
            key = (node.op_type, made.constructor, *made.weights.values())
            if key not in self.layer_of:
                weights = {
                    role: np.ascontiguousarray(self.graph.constants[name], np.float32)
                    for role, name in made.weights.items()
                }
                self.layer_of[key] = self._member(Member(self._layer_name(node), made.constructor, weights))
            text = f"self._m{self.layer_of[key]}_({self.operand(node.input[0])})"
            takes = SHORT if node.op_type in _ARITHMETIC else 0
            self._assign(list(node.output), text, self._layer_name(node), plain=False, takes=takes)
            return
        entry = operator(node.op_type)
        if entry is None:
            raise UnsupportedOpsError([Unsupported(node.name, node.op_type, "has no Flax form")])
        listed = list(node.output)
        while not listed[-1]:
            listed.pop()
        arguments = self._arguments(node, entry)
        self._bind_captured(node)
        keywords: dict[str, Any] = {a.name: self._attribute(a) for a in node.attribute}
        if "results" in inspect.signature(entry.function).parameters:
            keywords["results"] = tuple(self._result(name) for name in listed)
        before = len(self.lines)
        try:
            text = entry.function(*arguments, **keywords)
        except (TypeError, ValueError, KeyError, IndexError) as error:
            raise UnsupportedOpsError(
                [
                    Unsupported(
                        node.name, node.op_type, f"is not supported with: {_without_placeholders(error)}"
                    )
                ]
            ) from error
        lines, self.lines = self.lines[before:], self.lines[:before]
        name, plain = self._value_name(node)
        takes = SHORT if node.op_type in _ARITHMETIC else 0
        takes = _LONG if node.op_type in _ACTIVATIONS | _VIEWS else takes
        if node.op_type in _ACTIVATIONS and (called := re.match(r"[\w.]+\(self\._m(\d+)_\(", text)):
            takes, plain = 0, False  # a layer and its activation: one line of its own
            name = self.body.members[int(called.group(1))].hint
        count = entry.outputs or len(listed)
        used = [i for i, output in enumerate(listed) if self._is_used(output)]
        if count == 1:
            self._assign(listed[:1], text, name, plain, takes, lines)
        elif len(used) == 1 and entry.outputs:
            self._assign([listed[used[0]]], f"{text}[{used[0]}]", name, plain, takes, lines)
        else:
            self._assign([listed[i] if i in used else "" for i in range(count)], text, name, plain, 0, lines)

    def _arguments(self, node: Any, entry: OnnxOp) -> list[Any]:
        constants = self.graph.constants
        varying = [self._type(name) for name in node.input if name and name not in constants]
        dtypes = {known.dtype for known in varying}
        rank = max((len(known.shape) for known in varying if known.shape is not None), default=0)
        values: list[Any] = []
        for i, name in enumerate(node.input):
            if not name:
                values.append(None)
            elif i in entry.static or (i in entry.constants and name in constants):
                values.append(constants[name])
            else:
                known = self._type(name)
                literal = entry.literals and known.dtype in dtypes and len(known.shape or ()) <= rank
                values.append(self.operand(name, literal=literal))
        return values

    def _bind_captured(self, node: Any) -> None:
        """Values that bodies of control flow read from around the block arrive at its ports, too."""
        for name in sorted(captures(node)):
            if name not in self.graph.constants and name not in self.made and name not in self.bound:
                self.text[name] = f"_v{self.body.inputs[next(self.ports)]}_"

    def _attribute(self, attribute: Any) -> Any:
        """A float32 as the shortest decimal that gives it."""
        if attribute.type == onnx.AttributeProto.GRAPH:
            return WritableBody(self, attribute.g)
        value = onnx.helper.get_attribute_value(attribute)
        return float(str(np.float32(value))) if isinstance(value, float) else value

    def _type(self, name: str) -> TensorType:
        return self.graph.types.get(name, TensorType())

    def _result(self, name: str) -> Result:
        known = self._type(name) if name else TensorType()
        return Result(known.shape, known.dtype, self._is_used(name))

    def _is_used(self, name: str) -> bool:
        return bool(name) and (name in self.readers or name in self.outputs)

    def _layer_name(self, node: Any) -> str:
        path = self.where.get(id(node), self.block.scope)  # a body's nodes have no scope
        if len(path) == len(self.block.scope):
            return _layer_name_of(node.input[1])
        return self._in_block(path[-1])

    def _in_block(self, name: str) -> str:
        """A layer's name without what the block's says: `hidden` for `attention_hidden` of `attention`."""
        own = f"{base_name(self.block.name)}_"
        short = name.removeprefix(own)
        return short if own != "_" and short[:1].isalpha() else name

    def _value_name(self, node: Any) -> tuple[str, bool]:
        """The layer's name for what stands in a layer's scope; else what the operation gives (plain)."""
        path = self.where.get(id(node), self.block.scope)  # a body's nodes have no scope
        for depth in range(len(path), len(self.block.scope), -1):
            if path[:depth] in self.layer_scopes:
                return self._in_block(path[depth - 1]), False
        depth = len(self.block.scope)
        if (
            len(path) > depth
            and base_name(path[depth]) not in _OPERATION_SCOPES
            and self._leaves(node, path[: depth + 1])
        ):
            return self._in_block(path[depth]), False
        if node.op_type == "Where" and any(self._is_masking(name) for name in node.input[1:]):
            return "masked", True
        if node.op_type in ("MatMul", "Einsum") and self._is_softmaxed(node):
            return "scores", True
        if len(path) > len(self.block.scope) and node.op_type not in _RESULT_NAMES:
            return path[len(self.block.scope)], True
        leaf = scope_parts(node.name.split("__")[0])[-1] if "/" in node.name else node.op_type
        return _RESULT_NAMES.get(node.op_type) or identifier(re.sub(r"(_\d+)+$", "", leaf)), True

    def _leaves(self, node: Any, scope: Scope) -> bool:
        """Whether a value is what a scope computes: all that read it are outside."""
        readers = [r for output in node.output for r in self.readers.get(output, [])]
        return all(isinstance(r, Block) or self.where.get(id(r), ())[: len(scope)] != scope for r in readers)

    def _is_softmaxed(self, node: Any) -> bool:
        """Whether a softmax takes a value, perhaps after a scale or a mask."""
        for _ in range(4):
            readers = self.readers.get(node.output[0], [])
            if len(readers) != 1 or isinstance(readers[0], Block):
                return False
            node = readers[0]
            if node.op_type == "Softmax":
                return True
            if node.op_type not in ("Mul", "Div", "Add", "Where", "Squeeze", "Reshape"):
                return False
        return False

    def _is_masking(self, name: str) -> bool:
        value = self.graph.constants.get(name)
        return value is not None and value.dtype.kind == "f" and bool((value < -1e3).all())

    def operand(self, name: str, literal: bool = False) -> Operand:
        known = self._type(name)
        if name in self.graph.constants:
            return Operand(self._constant(name, literal), known.shape, known.dtype)
        if name not in self.made and name not in self.bound:
            text = f"_v{self.body.inputs[next(self.ports)]}_"
        else:
            text = self.text[name] if name in self.text else self.pending.pop(name)
        return Operand(text, known.shape, known.dtype)

    def _constant(self, name: str, literal: bool) -> str:
        value = self.graph.constants[name]
        if not is_weight(value):
            return constant_text(value, literal)
        if name not in self.layer_of:
            like = "" if value.dtype == np.float32 else f", {dtype_name(value.dtype)}"
            constructor = f"nnx.Param(jnp.zeros({tuple(value.shape)}{like}))"
            self.layer_of[name] = self._member(Member(_param_name(name), constructor, {"": value}))
        return f"self._m{self.layer_of[name]}_[...]"

    def _assign(
        self,
        outputs: list[str],
        text: str,
        hint: str,
        plain: bool,
        takes: int,
        lines: Sequence[str] = (),
    ) -> None:
        if len(outputs) == 1 and not lines:
            output = outputs[0]
            if self._is_activated(output):
                self.pending[output] = text
                return
            if re.fullmatch(r"_v\d+_", text):
                self.text[output] = text  # another name for a value that has one
                return
        numbers = [self.new_value(hint if name else "_") for name in outputs]
        self.statements.append(Statement(numbers, text, hint, plain, takes, list(lines)))
        self.text.update((name, f"_v{n}_") for name, n in zip(outputs, numbers, strict=True) if name)

    def _is_activated(self, output: str) -> bool:
        readers = self.readers.get(output, [])
        if output in self.outputs or len(readers) != 1 or isinstance(readers[0], Block):
            return False
        return readers[0].op_type in _ACTIVATIONS


def _without_placeholders(error: Exception) -> str:
    return re.sub(r"_v\d+_", "an operand", str(error))


def is_weight(value: np.ndarray) -> bool:
    """Whether a constant is a parameter: floating numbers, more than a handful, not one number everywhere."""
    if not np.issubdtype(value.dtype, np.floating) or value.size <= _HANDFUL:
        return False
    return value.ndim == 1 or not bool((value == value.flat[0]).all())


def constant_text(value: np.ndarray, literal: bool) -> str:
    """A constant that is no parameter; with `literal`, one number may be a Python number."""
    dtype = dtype_name(value.dtype)
    if literal and value.size == 1 and value.ndim <= 1:
        return _number(value.reshape(-1)[0].item(), value)
    if value.ndim == 0:
        item = _number(value.item(), value)
        return f"jnp.array({item}, {dtype})" if dtype == "int" else f"{dtype}({item.strip('()')})"
    if value.size and value.ndim > 1 and (value == value.flat[0]).all():
        return f"jnp.full({tuple(value.shape)}, {_number(value.flat[0].item(), value)}, {dtype})"
    listed = re.sub(r"\b(nan|inf)\b", r"jnp.\1", str(value.tolist()))
    return f"jnp.array({listed}, {dtype})"


def _number(item: Any, value: np.ndarray) -> str:
    if isinstance(item, float) and not np.isfinite(item):
        return "jnp.nan" if np.isnan(item) else ("jnp.inf" if item > 0 else "-jnp.inf")
    # The shortest decimal that is this float32, in parentheses where an operator binds tighter than a sign.
    text = str(np.float32(item)) if value.dtype == np.float32 else repr(item)
    return f"({text})" if text.startswith("-") else text


def _param_name(name: str) -> str:
    """From the variable's name: `signal`, or `dense_kernel` where the last part says only what it is."""
    parts = scope_parts(name.split(":")[0].split("__")[0])
    return identifier("_".join(parts[-2:]) if parts[-1] in _KINDS_OF_WEIGHT else parts[-1])


def _layer_name_of(weight: str) -> str:
    """The layer that a variable belongs to, by its name."""
    parts = scope_parts(weight.split(":")[0].split("__")[0])
    while len(parts) > 1 and re.sub(r"_\d+$", "", parts[-1]) in _KINDS_OF_WEIGHT:
        parts.pop()
    return "linear" if parts[-1] in _KINDS_OF_WEIGHT else identifier(parts[-1])
