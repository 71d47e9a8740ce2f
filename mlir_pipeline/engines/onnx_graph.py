"""An ONNX graph under construction: names, constants, weights, sizes that depend on the number of candidates,
and broadcasts that are made only where somebody needs them."""

import ast
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from jaxrank.bundle import WEIGHTS
from mlir_pipeline.errors import CompileError

OPSET = 26
"""The first with `BitCast`: the integers of a feature block are the bits of its floats."""
IR_VERSION = 10
Dim = Any
"""An int, or JAX's symbolic expression of `n`, the number of candidates."""


@dataclass(frozen=True)
class Tensor:
    """A value of the graph. Where it is a broadcast, `narrow` is the value before it, of the same rank with 1
    in the axes of `repeated`; elementwise operators take that and broadcast by themselves."""

    name: str
    shape: tuple[Dim, ...]
    dtype: np.dtype
    narrow: str | None = None
    repeated: frozenset[int] = frozenset()


class Graph:
    """The nodes of one tower. `n` is the leading dimension of the input `counted`."""

    def __init__(self, counted: str | None, weight_name: Callable[[np.ndarray], str | None]):
        """`weight_name` gives the name that the weight archive has for an array, or None."""
        self._counted = counted
        self._weight_name = weight_name
        self._root: list[onnx.NodeProto] = []
        self._scope = self._root
        self._initializers: dict[tuple[Any, ...], TensorProto] = {}
        self._dims: dict[str, str] = {}
        self._names = 0

    def node(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Adds a node. Returns the name of its output, or a list where `outputs` is not 1."""
        names = [self.fresh(op.lower()) for _ in range(outputs)]
        self._scope.append(helper.make_node(op, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def fresh(self, prefix: str) -> str:
        """A name that nothing has yet."""
        self._names += 1
        return f"{prefix}_{self._names}"

    def rename(self, name: str, output: str) -> None:
        """Makes a value an output under a name that is the caller's choice."""
        self._scope.append(helper.make_node("Identity", [name], [output]))

    def constant(self, value: Any, dtype: Any = None) -> str:
        """The name of an array in the graph; those that the archive has are references to it."""
        array = np.asarray(value, dtype)
        if array.dtype.kind in "fV" and (name := self._weight_name(array)) is not None:
            return self._weight(name, array)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._initializers:
            self._initializers[key] = numpy_helper.from_array(array, f"constant_{len(self._initializers)}")
        return self._initializers[key].name

    def _weight(self, name: str, array: np.ndarray) -> str:
        if (name,) not in self._initializers:
            tensor = TensorProto(
                name=name,
                data_type=onnx_type(array.dtype),
                dims=array.shape,
                data_location=TensorProto.EXTERNAL,
            )
            for key, value in (("location", WEIGHTS), ("length", str(array.nbytes))):
                tensor.external_data.add(key=key, value=value)
            self._initializers[(name,)] = tensor
        return name

    def integers(self, values: Sequence[Dim]) -> str:
        """A vector of int64: a constant, or pieces where some are expressions of `n`."""
        if all(isinstance(v, int) for v in values):
            return self.constant(list(values), np.int64)
        pieces = [self.size(v) for v in values]
        return pieces[0] if len(pieces) == 1 else self.node("Concat", *pieces, axis=0)

    def size(self, dim: Dim) -> str:
        """A dimension as int64 `[1]`."""
        if isinstance(dim, int):
            return self.constant([dim], np.int64)
        text = str(dim)
        if text not in self._dims:
            # A loop's body may be the first to ask; later nodes outside of it ask too.
            with self._nodes_in(self._root):
                self._dims[text] = self._expression(ast.parse(text.replace("^", "**"), mode="eval").body)
        return self._dims[text]

    def _expression(self, node: ast.expr) -> str:
        """JAX's text of a dimension ("2*n + 1", "floordiv(n, 3)") as nodes."""
        match node:
            case ast.Constant(value=int(value)):
                return self.constant([value], np.int64)
            case ast.Name(id="n") if self._counted is not None:
                return self.node("Shape", self._counted, start=0, end=1)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.node("Neg", self._expression(operand))
            case ast.BinOp(left=left, op=ast.Pow(), right=ast.Constant(value=int(power))):
                product = base = self._expression(left)
                for _ in range(power - 1):
                    product = self.node("Mul", product, base)
                return product
            case ast.BinOp(left=left, op=op, right=right) if type(op) in _DIM_OPERATORS:
                return self.node(_DIM_OPERATORS[type(op)], self._expression(left), self._expression(right))
            case ast.Call(func=ast.Name(id=name), args=[left, right]) if name in _DIM_FUNCTIONS:
                return self.node(_DIM_FUNCTIONS[name], self._expression(left), self._expression(right))
        raise CompileError(
            f"the size {ast.unparse(node)!r} cannot be written in ONNX; compile with --engine iree"
        )

    def broadcast(self, narrow: str, repeated: frozenset[int], shape: Sequence[Dim], dtype: Any) -> Tensor:
        """A value repeated along axes in which it has size 1; without such axes it is the value itself."""
        if not repeated:
            return Tensor(narrow, tuple(shape), np.dtype(dtype))
        # A node that nobody reads is dropped by `finish`.
        name = self.node("Expand", narrow, self.integers(shape))
        return Tensor(name, tuple(shape), np.dtype(dtype), narrow, repeated)

    @contextmanager
    def body(self) -> Iterator[list[onnx.NodeProto]]:
        """Nodes made here are a subgraph's."""
        nodes: list[onnx.NodeProto] = []
        with self._nodes_in(nodes):
            yield nodes

    @contextmanager
    def _nodes_in(self, nodes: list[onnx.NodeProto]) -> Iterator[None]:
        outer, self._scope = self._scope, nodes
        try:
            yield
        finally:
            self._scope = outer

    def finish(
        self,
        inputs: Mapping[str, tuple[Sequence[Dim], Any]],
        outputs: Mapping[str, tuple[Sequence[Dim], Any]],
    ) -> onnx.ModelProto:
        """The model, without nodes and constants that no output needs."""
        nodes, needed = live_nodes(self._root, set(outputs))
        graph = helper.make_graph(
            nodes,
            "tower",
            [value_info(name, *kind) for name, kind in inputs.items()],
            [value_info(name, *kind) for name, kind in outputs.items()],
            [t for t in self._initializers.values() if t.name in needed],
        )
        opsets = [helper.make_opsetid("", OPSET)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="jaxrank")


_DIM_OPERATORS = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul"}
# Sizes are not negative, so ONNX's truncating division and its remainder are the floored ones.
_DIM_FUNCTIONS = {"floordiv": "Div", "mod": "Mod", "max": "Max", "min": "Min"}


def live_nodes(nodes: Sequence[onnx.NodeProto], needed: set[str]) -> tuple[list[onnx.NodeProto], set[str]]:
    """The nodes that the names need, and every name that these read; a subgraph reads names of its outer
    graph."""
    kept, needed = [], set(needed)
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(_read_names(node))
    return kept[::-1], needed


def _read_names(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for attribute in node.attribute:
        if attribute.HasField("g"):
            for inner in attribute.g.node:
                yield from _read_names(inner)
            yield from (output.name for output in attribute.g.output)


def value_info(name: str, shape: Sequence[Dim], dtype: Any) -> onnx.ValueInfoProto:
    """A graph's input or output; dimensions that depend on `n` are named by their text."""
    dims = [d if isinstance(d, int) else str(d) for d in shape]
    return helper.make_tensor_value_info(name, onnx_type(dtype), dims)


def onnx_type(dtype: Any) -> int:
    """ONNX's number of a NumPy dtype. Raises `CompileError` for one that JAX models do not have."""
    kind = np.dtype(dtype)
    if kind.kind not in "fiub" and kind.name != "bfloat16":
        raise CompileError(f"ONNX programs hold no {kind.name} values; compile with --engine iree")
    return helper.np_dtype_to_tensor_dtype(kind)
