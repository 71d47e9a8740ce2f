"""A small language for sub-graphs: `Op("Mul", Value("x"), Op("Sigmoid", Value("x")))` is `x * sigmoid(x)`.

The same name stands for the same value everywhere in a pattern. Add, Mul, Max and Min match their operands in
either order. A match is refused when a value inside it is read from outside, so that nothing is computed
twice.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from converters.lifting.graph import Graph

_COMMUTATIVE = {"Add", "Mul", "Max", "Min"}


@dataclass(frozen=True)
class Match:
    """Values by the names of the pattern, and the nodes that the pattern covers."""

    values: dict[str, str] = field(default_factory=dict)
    nodes: tuple[Any, ...] = ()

    def __getitem__(self, name: str) -> str:
        return self.values[name]

    def get(self, name: str) -> str | None:
        return self.values.get(name)

    def node(self, op: str) -> Any:
        """The first covered node of an operator."""
        return next(n for n in self.nodes if n.op_type == op)

    def bind(self, name: str, value: str) -> "Match":
        return Match({**self.values, name: value}, self.nodes)


class Pattern:
    """What a value may be."""

    def matches(self, graph: Graph, value: str, so_far: Match) -> Iterator[Match]:
        raise NotImplementedError


@dataclass(frozen=True)
class Value(Pattern):
    """Any value; with `constant`, one that is known before the model runs."""

    name: str
    constant: bool = False

    def matches(self, graph: Graph, value: str, so_far: Match) -> Iterator[Match]:
        if self.name in so_far.values:
            if so_far[self.name] == value:
                yield so_far
        elif (value in graph.constants) == self.constant:
            yield so_far.bind(self.name, value)


def Constant(name: str) -> Value:
    """A weight or number that is known before the model runs."""
    return Value(name, constant=True)


@dataclass(frozen=True)
class Number(Pattern):
    """One number. `tolerance` is relative: constants went through float32."""

    number: float
    tolerance: float = 1e-6

    def matches(self, graph: Graph, value: str, so_far: Match) -> Iterator[Match]:
        found = graph.scalar(value)
        if found is not None and abs(found - self.number) <= self.tolerance * abs(self.number):
            yield so_far


class Op(Pattern):
    """The result of one operator. `name` lets the value appear again in the pattern."""

    def __init__(self, op: str, *inputs: Pattern, name: str = ""):
        self.op, self.inputs, self.name = op, inputs, name

    def matches(self, graph: Graph, value: str, so_far: Match) -> Iterator[Match]:
        if self.name and self.name in so_far.values:
            if so_far[self.name] == value:
                yield so_far
            return
        node = graph.producer(value)
        if node is None or node.op_type != self.op or len(node.output) != 1:
            return
        operands = [name for name in node.input if name]
        if len(operands) < len(self.inputs):
            return
        covered = Match(so_far.values, (*so_far.nodes, node))
        if self.name:
            covered = covered.bind(self.name, value)
        yield from self._operands(graph, operands, covered, 0)
        if self.op in _COMMUTATIVE and len(operands) == 2 and operands[0] != operands[1]:
            yield from self._operands(graph, operands[::-1], covered, 0)

    def _operands(self, graph: Graph, operands: list[str], so_far: Match, at: int) -> Iterator[Match]:
        if at == len(self.inputs):
            yield so_far
            return
        for match in self.inputs[at].matches(graph, operands[at], so_far):
            yield from self._operands(graph, operands, match, at + 1)


class Either(Pattern):
    """One of several spellings."""

    def __init__(self, *choices: Pattern):
        self.choices = choices

    def matches(self, graph: Graph, value: str, so_far: Match) -> Iterator[Match]:
        for choice in self.choices:
            yield from choice.matches(graph, value, so_far)


def product(a: Pattern, b: Pattern, c: Pattern) -> Pattern:
    """`a * b * c`, multiplied in any order."""
    return Either(Op("Mul", a, Op("Mul", b, c)), Op("Mul", b, Op("Mul", a, c)), Op("Mul", c, Op("Mul", a, b)))


def square(x: Pattern) -> Pattern:
    """x², as a product, a power or a square. `x` has to have a name of its own."""
    return Either(Op("Mul", x, x), Op("Pow", x, Number(2.0)))


def find(graph: Graph, root: Any, pattern: Pattern) -> Iterator[Match]:
    """Matches of a pattern that ends at a node, without those whose inner values others read."""
    for match in pattern.matches(graph, root.output[0], Match()):
        inside = {id(node) for node in match.nodes}
        if all(
            node is root
            or (
                not graph.is_output(node.output[0])
                and all(id(user) in inside for user in graph.users(node.output[0]))
            )
            for node in match.nodes
        ):
            yield match


def rewrite(
    graph: Graph, pattern: Pattern, build: Callable[[Graph, Any, Match], Sequence[Any] | None]
) -> bool:
    """Replaces each match of a pattern by the nodes that `build(graph, root, match)` gives; None leaves the
    match as it is. Returns whether anything was replaced. Later nodes come first, so that of two matches, one
    inside the other, the larger is taken."""
    changed = False
    for node in reversed(list(graph.nodes)):
        if not node.output or graph.producer(node.output[0]) is not node:
            continue  # went with an earlier match
        for match in find(graph, node, pattern):
            new = build(graph, node, match)
            if new is not None:
                graph.replace(node, new)
                changed = True
                break
    return changed
