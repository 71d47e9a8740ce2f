"""An ONNX graph as the passes see it: nodes that can be asked for their producers and users, constants as
arrays, shapes at one row."""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import onnx
from onnx import numpy_helper

from converters.onnx_graph import TensorType, operands, prepare

OWN_DOMAIN = "jaxrank"

T = TypeVar("T")


class Graph:
    """A graph that passes change in place. `nodes` are in data-flow order after `tidy`."""

    def __init__(
        self,
        model: onnx.ModelProto,
        static: Mapping[str, np.ndarray] | None = None,
        types: Mapping[str, TensorType] | None = None,
    ):
        """Folds constants. `static` are values of inputs, `types` what is known of others."""
        self.proto = model
        self.opsets = list(self.proto.opset_import)
        self._prepare(self.proto.graph, static or {}, types or {})

    def body(
        self, graph: onnx.GraphProto, static: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
    ) -> "Graph":
        """A body of control flow in this graph as a graph of its own; `static` and `types` are what is known
        around it and of its inputs."""
        made = copy.copy(self)
        made._prepare(graph, static, types)
        return made

    def _prepare(
        self, graph: onnx.GraphProto, static: Mapping[str, np.ndarray], types: Mapping[str, TensorType]
    ) -> None:
        prepared = prepare(graph, self.opsets, static, types)
        self.nodes: list[Any] = prepared.nodes
        self.constants = prepared.constants
        self.inputs = prepared.inputs
        self.outputs = list(prepared.outputs)
        self.types = prepared.types
        self.types.update((n, TensorType(v.dtype, v.shape)) for n, v in self.constants.items())
        self._fresh = 0
        self._index()

    def producer(self, value: str) -> Any | None:
        """The node that computes a value; None for a feature or a constant."""
        return self._producers.get(value)

    def maker(self, value: str) -> Any:
        """The node that computes a value that a node computes: of a matched operator, say."""
        return self._producers[value]

    def users(self, value: str) -> list[Any]:
        """The nodes that read a value, each once, those with sub-graphs that capture it included."""
        return self._users.get(value, [])

    def is_output(self, value: str) -> bool:
        return value in self.outputs

    def shape(self, value: str) -> tuple[int, ...] | None:
        known = self.types.get(value)
        return None if known is None else known.shape

    def scalar(self, value: str) -> float | None:
        """The number that a constant holds, or None: not a constant, or not one number."""
        constant = self.constants.get(value)
        if constant is None or constant.size != 1 or constant.dtype.kind not in "fiu":
            return None
        return float(constant.reshape(-1)[0])

    def axes(self, node: Any) -> tuple[int, ...] | None:
        """The axes of a reduction, Squeeze or Unsqueeze, counted from 0; None where they are not constant."""
        shape = self.shape(node.input[0])
        if shape is None or len(node.input) < 2 or node.input[1] not in self.constants:
            return None
        rank = len(shape)
        if node.op_type == "Unsqueeze":
            rank += self.constants[node.input[1]].size
        return tuple(sorted(int(a) % max(rank, 1) for a in self.constants[node.input[1]].reshape(-1)))

    def constant(self, array: np.ndarray, name: str) -> str:
        """Adds a constant, or finds an equal one of that name; returns the name it got."""
        if name in self.constants and np.array_equal(self.constants[name], array):
            return name
        while name in self.constants or name in self._producers:
            self._fresh += 1
            name = f"{name}__lifted_{self._fresh}"
        self.constants[name] = array
        self.types[name] = TensorType(array.dtype, array.shape)
        return name

    def node(
        self, op: str, inputs: Sequence[str], output: str, like: Any, *, own: bool = False, **attributes: Any
    ) -> Any:
        """A new node that computes `output`, under the TensorFlow name of the node `like`."""
        domain = OWN_DOMAIN if own else ""
        return onnx.helper.make_node(op, list(inputs), [output], name=like.name, domain=domain, **attributes)

    def value(self, like: str, shape: tuple[int, ...]) -> str:
        """A name for a new intermediate float32 value."""
        self._fresh += 1
        name = f"{like}__lifted_{self._fresh}"
        self.types[name] = TensorType(np.dtype(np.float32), shape)
        return name

    def replace(self, root: Any, new: Iterable[Any]) -> None:
        """Puts `new` nodes where `root` was; one of them must compute root's output. What only `root` needed
        is removed."""
        at = next(i for i, node in enumerate(self.nodes) if node is root)
        self.nodes[at : at + 1] = list(new)
        self.refresh()

    def rename(self, old: str, new: str) -> None:
        """Lets the readers of `old` read `new`."""
        for node in self.nodes:
            for i, name in enumerate(node.input):
                if name == old:
                    node.input[i] = new
        self.refresh()

    def bypass(self, node: Any, value: str) -> bool:
        """Removes a node whose output is `value` again. False where the output has to keep its name."""
        output = node.output[0]
        if not self.is_output(output):
            if _captured(self.nodes, output):
                return False
            self.rename(output, value)
            return True
        source = self.producer(value)
        if source is None or self.is_output(value) or len(source.output) != 1 or _captured(self.nodes, value):
            return False
        self.nodes = [n for n in self.nodes if n is not node]
        for reader in self.nodes:
            for i, name in enumerate(reader.input):
                if name == value:
                    reader.input[i] = output
        source.output[0] = output
        self.refresh()
        return True

    def tidy(self) -> None:
        """Sorts nodes the way a person writes them: each value right before its first use, operands from
        left to right."""

        def needed(node: Any) -> list[str]:
            return [name for name in (*node.input, *sorted(captures(node))) if name]

        self.nodes = reading_order(self.outputs, self.producer, needed)
        self._index()

    def to_model(self) -> onnx.ModelProto:
        source = self.proto.graph
        used = {n for node in self.nodes for n in operands(node)} | set(self.outputs)
        ends = {v.name for v in (*source.input, *source.output)}
        values = [
            onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(t.dtype), t.shape)
            for node in self.nodes
            for name in node.output
            if name not in ends and (t := self.types.get(name)) is not None and t.dtype is not None
        ]
        graph = onnx.helper.make_graph(
            self.nodes,
            source.name,
            list(source.input),
            list(source.output),
            [numpy_helper.from_array(v, k) for k, v in self.constants.items() if k in used],
            value_info=values,
        )
        opsets = [onnx.helper.make_opsetid(o.domain, o.version) for o in self.proto.opset_import]
        if OWN_DOMAIN not in {o.domain for o in opsets}:
            opsets.append(onnx.helper.make_opsetid(OWN_DOMAIN, 1))
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=self.proto.ir_version)

    def _index(self) -> None:
        self._producers = {name: node for node in self.nodes for name in node.output if name}
        self._users: dict[str, list[Any]] = {}
        for node in self.nodes:
            for name in {*node.input, *captures(node)} - {""}:
                self._users.setdefault(name, []).append(node)

    def refresh(self) -> None:
        """After nodes changed in place: what nothing reads goes, and producers and users are right again."""
        self._index()
        while True:
            live = [
                n for n in self.nodes if any(name in self._users or name in self.outputs for name in n.output)
            ]
            if len(live) == len(self.nodes):
                return
            self.nodes = live
            self._index()


def captures(node: Any) -> set[str]:
    """Values of the outer graph that a node's sub-graphs (If, Loop, Scan) read."""
    if not any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute):
        return set()
    return set(operands(node)[len([name for name in node.input if name]) :])


def _captured(nodes: Sequence[Any], value: str) -> bool:
    return any(value in captures(node) for node in nodes)


def reading_order(
    outputs: Iterable[str], producer: Callable[[str], T | None], needed: Callable[[T], Sequence[str]]
) -> list[T]:
    """What the outputs need, each right before the first that needs it, operands from left to right."""
    ordered: list[T] = []
    done: set[int] = set()
    for output in outputs:
        stack = [(output, False)]
        while stack:
            value, ready = stack.pop()
            item = producer(value)
            if item is None or id(item) in done:
                continue
            if ready:
                done.add(id(item))
                ordered.append(item)
                continue
            stack.append((value, True))
            stack.extend((name, False) for name in reversed(needed(item)))
    return ordered
