"""Bodies of control flow while a block is written: each becomes a nested function."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import onnx

from converters.flax_loops import Statement
from converters.lifting import lift_graph
from converters.lifting.graph import Graph
from converters.names import identifier
from converters.onnx_graph import TensorType
from converters.onnx_ops import Operand

if TYPE_CHECKING:
    from converters.flax_body import BodyWriter


class WritableBody:
    """A sub-graph attribute; see `converters.onnx_ops.Body`."""

    def __init__(self, writer: "BodyWriter", graph: onnx.GraphProto):
        self.writer, self.graph = writer, graph
        self.inputs, self.outputs = len(graph.input), len(graph.output)

    def bind(self, inputs: Sequence[Operand | np.ndarray]) -> "WritableBoundBody":
        """With what is known around the body, and of its inputs."""
        around = self.writer.graph
        constants, types = dict(around.constants), dict(around.types)
        hints = []
        for value, given in zip(self.graph.input, inputs, strict=True):
            if isinstance(given, np.ndarray):
                constants[value.name] = given
                hints.append(value.name)
            else:
                constants.pop(value.name, None)
                types[value.name] = TensorType(given.known_dtype, given.known_shape)
                hints.append(given.text)
        body = around.body(self.graph, constants, types)
        lift_graph(body)
        return WritableBoundBody(self.writer, body, hints)


class WritableBoundBody:
    """See `converters.onnx_ops.BoundBody`."""

    def __init__(self, writer: "BodyWriter", graph: Graph, hints: Sequence[str]):
        self.writer, self.graph, self.hints = writer, graph, hints

    def constant(self, output: int) -> np.ndarray | None:
        return self.graph.constants.get(self.graph.outputs[output])

    def define(self, name: str, inputs: Sequence[int], outputs: Sequence[int]) -> str:
        writer = self.writer
        function = f"_v{writer.new_value(name)}_"
        parameters = {
            self.graph.inputs[i]: f"_v{writer.new_value(identifier(self.hints[i]))}_" for i in inputs
        }
        with self._written():
            outer, writer.statements = writer.statements, []
            around, writer.lines = writer.lines, []
            writer.text.update(parameters)
            writer.bound |= set(parameters)
            writer.write_items()
            results = [str(writer.operand(self.graph.outputs[i])) for i in outputs]
            lines = [line for statement in writer.statements for line in statement_lines(statement)]
            writer.statements, writer.lines = outer, around
        writer.lines += [
            f"def {function}({', '.join(parameters.values())}):",
            *(f"    {line}" for line in lines),
            f"    return {', '.join(results) or '()'}",
        ]
        return function

    @contextmanager
    def _written(self) -> Iterator[None]:
        """The body's graph is the one written; then that around it again."""
        writer = self.writer
        items, graph = writer.items, writer.graph
        text, pending, bound = writer.text, writer.pending, writer.bound
        writer.text, writer.bound = dict(text), bound | set(text) | set(pending)
        writer.enter(self.graph.nodes, self.graph)
        try:
            yield
        finally:
            writer.enter(items, graph)
            writer.text, writer.pending, writer.bound = text, pending, bound


def statement_lines(statement: Statement) -> list[str]:
    """A statement in a nested function, where no loops are looked for."""
    outs = ", ".join(f"_v{out}_" for out in statement.outs)
    return [*statement.lines, f"{outs} = {statement.text}"]
