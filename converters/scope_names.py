"""Which TensorFlow scope each node of a graph belongs to, under names that a person would give.

A scope is a tuple of names from the model down to the layer. Calls and models that only wrap are dropped, and
so is the counter that Keras adds to a scope each time a layer is called (`expert_3_1` is `expert_3`), where
all neighbours have one. Flat names with a system in them (`tower_click_hidden`, `tower_click_logit`,
`tower_buy_hidden`, ...) are read as scopes.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from converters.names import identifier, scope_parts

Scope = tuple[str, ...]


def scopes(
    nodes: Sequence[Any], is_layer: Callable[[Any], bool], flat: AbstractSet[Scope]
) -> tuple[dict[int, Scope], dict[Scope, Scope]]:
    """The scope of each node by `id(node)`. For a layer (a node with weights) the last name is the layer's
    own; nodes that tf2onnx made without a name belong where their readers are.

    Also the scopes that were guessed from flat names, with what to add to `flat` to have one undone.
    """
    raw = {id(n): _raw_scope(n.name) for n in nodes}
    layers = [(raw[id(n)], frozenset(n.input[1:])) for n in nodes if is_layer(n) and raw[id(n)]]
    renamed = _without_counters(layers)
    clean = {key: renamed(path) for key, path in raw.items()}
    split, guessed = _split_flat_names({clean[id(n)] for n in nodes if is_layer(n)}, flat)
    clean = {key: split(path) for key, path in clean.items()}
    shared = _common_prefix([clean[id(n)][:-1] for n in nodes if is_layer(n)])
    clean = {k: p[len(shared) :] if p[: len(shared)] == shared else () for k, p in clean.items()}
    _place_unnamed(nodes, clean, {clean[id(n)] for n in nodes if is_layer(n)})
    return clean, {s[len(shared) :]: s for s in guessed if s[: len(shared)] == shared}


def base_name(name: str) -> str:
    """A name without its number: `block_2` is a `block`."""
    return re.sub(r"_?\d+$", "", name) or name


def singular_and_plural(base: str) -> tuple[str, str]:
    """`("expert", "experts")`; a name that ends like a plural stays as it is."""
    if base.endswith("ies") or (base.endswith("s") and not base.endswith("ss")):
        return base, base
    if re.search(r"(s|x|ch|sh)$", base):
        return base, f"{base}es"
    if re.search(r"[^aeiou]y$", base):
        return base, f"{base[:-1]}ies"
    return base, f"{base}s"


def class_name(names: Sequence[str]) -> str:
    """A class for modules of these names: what they have in common (`click_tower`, `buy_tower`: Tower)."""
    parts = [[p for p in n.split("_") if not p.isdigit()] or [n] for n in names]
    common = _common_prefix(parts) or _common_prefix([p[::-1] for p in parts])[::-1] or parts[0]
    return "".join(base_name(p).capitalize() for p in common if p) or "Block"


def _raw_scope(name: str) -> Scope:
    """The scopes before the op's own name; empty for a node without a TensorFlow name."""
    return tuple(scope_parts(name)[:-1]) if "/" in name else ()


def _without_counters(layers: Sequence[tuple[Scope, frozenset[str]]]) -> Callable[[Scope], Scope]:
    """`layers` are scopes with the weights that they use. A scope called twice has two counters, but the
    weights of one."""
    children: dict[Scope, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path, weights in layers:
        for depth, name in enumerate(path):
            children[path[:depth]][name] |= weights
    counted = set()
    for parent, names in children.items():
        owners: dict[str, set[frozenset[str]]] = defaultdict(set)
        for name, weights in names.items():
            owners[re.sub(r"_\d+$", "", name)].add(frozenset(weights))
        if all(re.search(r"_\d+$", name) for name in names) and all(len(o) == 1 for o in owners.values()):
            counted.add(parent)

    def clean(path: Scope) -> Scope:
        return tuple(
            identifier(re.sub(r"_\d+$", "", name) if path[:depth] in counted else name)
            for depth, name in enumerate(path)
        )

    return clean


def _split_flat_names(
    layers: set[Scope], flat: AbstractSet[Scope]
) -> tuple[Callable[[Scope], Scope], set[Scope]]:
    """Splits names of layers in one scope that form a grid of prefixes and suffixes: at least two prefixes,
    each with the same two or more suffixes. Prefixes in `flat` are no scopes."""
    replaced: dict[Scope, Scope] = {}
    guessed: set[Scope] = set()
    by_parent: dict[Scope, set[str]] = defaultdict(set)
    for path in filter(None, layers):
        by_parent[path[:-1]].add(path[-1])
    for parent, names in by_parent.items():
        suffixes: dict[str, set[str]] = defaultdict(set)
        for name in names:
            parts = name.split("_")
            for at in range(1, len(parts)):
                suffixes["_".join(parts[:at])].add("_".join(parts[at:]))
        grids: dict[frozenset[str], list[str]] = defaultdict(list)
        for prefix, found in suffixes.items():
            words = frozenset(s for s in found if re.match(r"[a-z]", s))
            if len(words) >= 2 and words == found and (*parent, prefix) not in flat:
                grids[words].append(prefix)
        for words, prefixes in sorted(grids.items(), key=lambda g: -len(g[0]) * len(g[1])):
            if len(prefixes) < 2 or any((*parent, f"{p}_{w}") in replaced for p in prefixes for w in words):
                continue
            replaced.update({(*parent, f"{p}_{w}"): (*parent, p, w) for p in prefixes for w in words})
            guessed.update((*parent, p) for p in prefixes)

    def split(path: Scope) -> Scope:
        for depth in range(len(path), 0, -1):
            if path[:depth] in replaced:
                return (*replaced[path[:depth]], *path[depth:])
        return path

    return split, guessed


def _common_prefix(paths: Sequence[Sequence[str]]) -> tuple[str, ...]:
    if not paths:
        return ()
    shortest = min(paths, key=len)
    at = next((i for i, name in enumerate(shortest) if any(p[i] != name for p in paths)), len(shortest))
    return tuple(shortest[:at])


def _place_unnamed(nodes: Sequence[Any], clean: dict[int, Scope], layers: set[Scope]) -> None:
    """Puts a node without a scope where its readers and what it reads are both, but in no layer's scope."""
    readers: dict[str, list[int]] = defaultdict(list)
    makers: dict[str, int] = {}
    for node in nodes:
        makers.update((name, id(node)) for name in node.output)
        for name in node.input:
            readers[name].append(id(node))
    unnamed = {id(n) for n in nodes if "/" not in n.name}
    for node in reversed(nodes):  # data-flow order: readers come first here
        if id(node) in unnamed:
            places = [clean[r] for name in node.output for r in readers[name]]
            sources = [makers[name] for name in node.input if name in makers]
            places += [clean[s] for s in sources if s not in unnamed]
            place = _common_prefix(places)
            clean[id(node)] = place[:-1] if place in layers else place
    for node in nodes:
        sources = [clean[makers[name]] for name in node.input if name in makers]
        if id(node) in unnamed and sources:
            clean[id(node)] = _common_prefix([clean[id(node)], *sources])
