"""Which nodes of a graph become a class of their own: a tree of blocks, by TensorFlow scope.

A scope with several layers is a block, and so is one with a layer and arithmetic on more than one value (a
cross layer). Nodes of a block must form one piece that can run at once; a scope for which this is not so is
dissolved into the block around it, as is one whose weights others use.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Union

from converters.lifting.graph import Graph, captures, reading_order
from converters.names import identifier
from converters.scope_names import Scope


@dataclass(eq=False)
class Block:
    """A piece of the graph. `items` are in the order of the data flow; `inputs` are values made outside (one
    for each port: two ports may hold the same value); `ports` says which port each outside operand reads,
    by operand in the order of a walk over the items."""

    scope: Scope
    items: list[Union[Any, "Block"]]
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    ports: list[int] = field(default_factory=list)
    port_names: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.scope[-1] if self.scope else ""


Item = Any | Block


def layout(
    graph: Graph,
    where: dict[int, Scope],
    is_layer: Callable[[Any], bool],
    weights: Callable[[Any], Sequence[str]],
) -> Block:
    """The whole graph as one block with blocks inside. `where` is each node's scope by `id`; `weights` names
    the constants of a node that become parameters."""
    wanted = _wanted(graph, where, is_layer)
    while True:
        root = _block((), graph.nodes, where, wanted, graph)
        refused = _sharers(root, weights) & wanted
        if not refused:
            break
        wanted -= refused
    _connect(root, graph)
    _name_ports(root, graph)
    return root


def blocks(root: Block) -> list[Block]:
    """All blocks inside a block, outer ones first."""
    inner = [item for item in root.items if isinstance(item, Block)]
    return [*inner, *(b for block in inner for b in blocks(block))]


def operands(item: Item, graph: Graph) -> list[str]:
    """Values that an item reads that are not constants, in order, with repetitions."""
    if isinstance(item, Block):
        return item.inputs
    names = [*item.input, *sorted(captures(item))]
    return [name for name in names if name and name not in graph.constants]


def results(item: Item) -> list[str]:
    return item.outputs if isinstance(item, Block) else [name for name in item.output if name]


def _wanted(graph: Graph, where: dict[int, Scope], is_layer: Callable[[Any], bool]) -> set[Scope]:
    layers: dict[Scope, int] = defaultdict(int)
    mixes: dict[Scope, int] = defaultdict(int)
    names: dict[Scope, set[Scope]] = defaultdict(set)
    for node in graph.nodes:
        path = where[id(node)]
        several = len([n for n in node.input if n and n not in graph.constants]) > 1
        for depth in range(1, len(path) + 1):
            mixes[path[:depth]] += several
            if is_layer(node):
                layers[path[:depth]] += 1
                names[path[:depth]].add(path)
    return {s for s, n in layers.items() if n > 1 and names[s] != {s} or (n == 1 and mixes[s])}


def _block(
    scope: Scope, nodes: Sequence[Any], where: dict[int, Scope], wanted: set[Scope], graph: Graph
) -> Block:
    inner = set(wanted)
    while True:
        groups: dict[Scope, list[Any]] = {}
        items: list[Any] = []
        for node in nodes:
            path = where[id(node)]
            depth = next((d for d in range(len(scope) + 1, len(path) + 1) if path[:d] in inner), None)
            if depth is None:
                items.append(node)
                continue
            if path[:depth] not in groups:
                groups[path[:depth]] = []
                items.append(path[:depth])
            groups[path[:depth]].append(node)
        alone = {s for s, members in groups.items() if len(members) == len(nodes)}
        refused = alone or _in_cycles(items, groups, graph)
        if not refused:
            break
        inner -= refused
    made = {s: _block(s, members, where, inner, graph) for s, members in groups.items()}
    return Block(scope, [made[i] if isinstance(i, tuple) else i for i in items])


def _in_cycles(items: list[Any], groups: dict[Scope, list[Any]], graph: Graph) -> set[Scope]:
    """Scopes that cannot run as one piece: a value leaves them and comes back."""
    owner: dict[str, int] = {}
    members = [groups[i] if isinstance(i, tuple) else [i] for i in items]
    for at, nodes in enumerate(members):
        owner.update((name, at) for node in nodes for name in node.output)
    needs = [
        {owner[v] for node in nodes for v in operands(node, graph) if v in owner} - {at}
        for at, nodes in enumerate(members)
    ]
    done: set[int] = set()
    while True:
        ready = [at for at in range(len(items)) if at not in done and needs[at] <= done]
        if not ready:
            break
        done.update(ready)
    stuck = {items[at] for at in range(len(items)) if at not in done and isinstance(items[at], tuple)}
    # One at a time, the innermost first: the others may be whole without it.
    return {max(stuck, key=lambda s: (len(s), s))} if stuck else set()


def _sharers(root: Block, weights: Callable[[Any], Sequence[str]]) -> set[Scope]:
    """Scopes of blocks with a weight that is also used in another block."""
    users: dict[str, set[Scope]] = defaultdict(set)

    def visit(block: Block) -> None:
        for item in block.items:
            if isinstance(item, Block):
                visit(item)
            else:
                for weight in weights(item):
                    users[weight].add(block.scope)

    visit(root)
    refused: set[Scope] = set()
    for found in users.values():
        if len(found) > 1:
            refused.update(s[:d] for s in found for d in range(1, len(s) + 1))
    return refused


def _connect(block: Block, graph: Graph, readers: dict[str, int] | None = None) -> None:
    """Orders a block's items, and finds its inputs and outputs."""
    if readers is None:
        readers = defaultdict(int)
        for node in graph.nodes:
            for name in set(operands(node, graph)):
                readers[name] += 1
        block.outputs = list(graph.outputs)
    for item in block.items:
        if isinstance(item, Block):
            item.outputs = _leaving(item, graph, readers)
            _connect(item, graph, readers)
    _sort(block, graph)
    _find_inputs(block, graph)


def _find_inputs(block: Block, graph: Graph) -> None:
    made = {name for item in block.items for name in results(item)}
    sites = [name for item in block.items for name in operands(item, graph) if name not in made]
    block.inputs = list(dict.fromkeys(sites))
    block.ports = [block.inputs.index(name) for name in sites]


def _nodes(block: Block) -> list[Any]:
    return [n for item in block.items for n in (_nodes(item) if isinstance(item, Block) else [item])]


def _leaving(block: Block, graph: Graph, readers: dict[str, int]) -> list[str]:
    inside = _nodes(block)
    own: dict[str, int] = defaultdict(int)
    for node in inside:
        for name in set(operands(node, graph)):
            own[name] += 1
    return [
        name
        for node in inside
        for name in node.output
        if name and (graph.is_output(name) or readers[name] > own[name])
    ]


def _sort(block: Block, graph: Graph) -> None:
    """Each item right before the first that needs it, operands from left to right."""
    producer = {name: item for item in block.items for name in results(item)}

    def needed(item: Item) -> Sequence[str]:
        return item.inputs if isinstance(item, Block) else operands(item, graph)

    block.items = reading_order(block.outputs, producer.get, needed)


def _name_ports(root: Block, graph: Graph) -> None:
    """Blocks of one structure get the same ports, named alike: `x`, or the feature that all of them read.
    Inner blocks first: their ports are operands of the blocks around them."""
    levels: list[list[Block]] = [[root]]
    while inner := [i for block in levels[-1] for i in block.items if isinstance(i, Block)]:
        levels.append(inner)
    for level in reversed(levels):
        families: dict[Any, list[Block]] = defaultdict(list)
        for block in level:
            _find_inputs(block, graph)
            families[_structure(block, graph)].append(block)
        for blocks in families.values():
            _share_ports(blocks, graph)


def _share_ports(blocks: list[Block], graph: Graph) -> None:
    """Two operands are one port where they are one value in each of the blocks."""
    sites = list(zip(*([b.inputs[p] for p in b.ports] for b in blocks), strict=True))
    ports = list(dict.fromkeys(sites))
    names: list[str] = []
    for site in ports:
        feature = len(set(site)) == 1 and graph.producer(site[0]) is None and len(ports) > 1
        names.append(identifier(site[0].split(":")[0]) if feature else "x")
    for i, block in enumerate(blocks):
        block.inputs = [site[i] for site in ports]
        block.ports = [ports.index(site) for site in sites]
        block.port_names = names


def _structure(block: Block, graph: Graph) -> Any:
    """What two blocks have in common that differ in their weights and inputs only."""
    made: dict[str, tuple[int, int]] = {}
    found: list[Any] = []
    for at, item in enumerate(block.items):
        refs = tuple(made.get(name, "outside") for name in operands(item, graph))
        if isinstance(item, Block):
            found.append((_structure(item, graph), refs))
        else:
            attributes = tuple(sorted(a.SerializeToString() for a in item.attribute))
            found.append((item.op_type, attributes, refs))
        made.update((name, (at, i)) for i, name in enumerate(results(item)))
    return (tuple(found), tuple(made.get(name, "constant") for name in block.outputs))
