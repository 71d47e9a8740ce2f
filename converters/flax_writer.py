"""Writes the dense half as a Flax nnx module that a person would keep working on: `model.py` and
`params.safetensors`.

Layers are nnx layers under their TensorFlow names; a scope with several layers is a class; blocks of one
structure are instances of one class, and run in a loop where TensorFlow spelled them out one by one.
"""

import re
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors.numpy import save_file

from converters.errors import Unsupported, UnsupportedOpsError
from converters.flax_body import Body, BodyWriter, Member, is_weight
from converters.flax_expressions import operator
from converters.flax_layout import Block, blocks, layout
from converters.flax_members import layer
from converters.flax_render import RESERVED, ClassBody, render
from converters.lifting import lift_graph
from converters.lifting.graph import OWN_DOMAIN, Graph
from converters.names import UniqueNames, identifier
from converters.onnx_graph import TensorType
from converters.scope_names import Scope, class_name, scopes
from jaxrank.bundle import MODEL, PARAMS
from jaxrank.host_program import BlockColumn
from jaxrank.manifest import TensorSpec

_FROM = {
    "jaxrank.flax_layers": ("concatenate", "stack"),
    "jaxrank.flax_ranking": ("Dice", "PReLU", "ScaleShift", "factorization_machine", "l2_normalize"),
}
"""What generated code may use besides jax and flax."""

RANKER_CALL = "def __call__(self, request: Request, candidate: Candidate) -> dict[str, jax.Array]:"


def ranker_source(
    proto: onnx.ModelProto,
    columns: tuple[BlockColumn, ...],
    outputs: tuple[TensorSpec, ...],
    source: str,
    rows: int = 1,
) -> "FlaxSource":
    """The dense half as a module `Ranker`.

    Args:
        rows: candidates that the shapes of `proto` are for. For one, the module takes any number of rows; for
            more, it is written flat and its numbers are those of so many candidates (see `whole_batch`).

    Raises `UnsupportedOpsError` with every node that has no entry in the operator table.
    """
    types = {
        f"{c.feature}:0": TensorType(np.dtype(c.dtype), (rows if c.scope == "candidate" else 1, *c.shape))
        for c in columns
    }
    writer = _Writer(Graph(proto, types=types), grouped=rows == 1)
    if not outputs:
        nothing = _class("Ranker", "The host makes all outputs.", [], RANKER_CALL, ["return {}"])
        empty = [_inputs_class(scope, []) for scope in ("request", "candidate")]
        return FlaxSource(writer.module_text(f"{source}, dense half.", [*empty, nothing]), {})
    names = {f"{c.feature}:0": f"{c.scope}.{c.feature}" for c in columns}
    written = writer.run(names, [o.name for o in outputs])
    inputs = [
        _inputs_class(scope, [c for c in columns if c.scope == scope]) for scope in ("request", "candidate")
    ]
    results = [f'"{o.name}": {text}' for o, text in zip(outputs, written.results, strict=True)]
    one_each = "Request and candidate features in, one value for each row and output."
    all_at_once = (
        "Request and candidate features in, scores of all candidates out; each depends on the others."
    )
    ranker = _class(
        "Ranker",
        one_each if rows == 1 else all_at_once,
        written.members,
        RANKER_CALL,
        [*written.statements, f"return {{{', '.join(results)}}}"],
    )
    takes = "one request row, or one for each candidate, against N candidate rows"
    docstring = f"""{source}, dense half. Written by `jaxrank convert`; yours to edit and train further.

`Ranker` scores rows: {takes if rows == 1 else "one request row against N candidate rows"}.
`jaxrank.flax_module.load_flax` gives it the weights of `params.safetensors`, by attribute name.
"""
    text = writer.module_text(docstring, [*inputs, *writer.class_sources(), ranker])
    flops = sum(_product_flops(node, writer.graph) for node in writer.graph.nodes)
    return FlaxSource(text, written.weights, flops)


def write_module(source: "FlaxSource", bundle: Path) -> None:
    """Writes `model.py`, formatted, and `params.safetensors`."""
    save_file(source.params, bundle / PARAMS)
    path = bundle / MODEL
    path.write_text(source.text)
    subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--quiet", "--line-length", "110", "--isolated", str(path)],
        check=True,
    )


@dataclass(frozen=True)
class FlaxSource:
    """A module's source text, and the values of its parameters by attribute name."""

    text: str
    params: dict[str, np.ndarray]
    flops: int = 0
    """Of the matrix products, at the rows that the module was written for."""


def module_source(model: onnx.ModelProto, static: Mapping[str, np.ndarray] | None = None) -> FlaxSource:
    """Any ONNX model as a Flax module `Model` of the model's inputs that returns a tuple of its outputs.

    Args:
        static: values of inputs that become part of the module (axes, shapes); they are no arguments of it.

    Raises `UnsupportedOpsError` as `write_flax` does.
    """
    writer = _Writer(Graph(model, static=static))
    unique = UniqueNames(RESERVED)
    arguments = {
        value.name: unique.take(identifier(value.name))
        for value in model.graph.input
        if value.name not in writer.graph.constants
    }
    written = writer.run(arguments, ())
    parameters = "".join(f", {name}: jax.Array" for name in arguments.values())
    signature = f"def __call__(self{parameters}) -> tuple[jax.Array, ...]:"
    returned = f"return ({', '.join(written.results)},)"
    module = _class("Model", "The ONNX model.", written.members, signature, [*written.statements, returned])
    docstring = f"{model.graph.name or 'model'}, written from ONNX."
    return FlaxSource(writer.module_text(docstring, [*writer.class_sources(), module]), written.weights)


@dataclass
class _Class:
    """A class that blocks share: its source with a placeholder for its name, and the blocks' names."""

    source: str
    names: list[str] = field(default_factory=list)


class _Writer:
    """Writes a graph's blocks, inner ones first."""

    def __init__(self, graph: Graph, grouped: bool = True):
        self.graph = graph
        self.grouped = grouped
        lift_graph(graph)
        graph.tidy()
        self.classes: list[_Class] = []
        self.where: dict[int, Scope] = {}

    def run(self, inputs: Mapping[str, str], outputs: Sequence[str]) -> ClassBody:
        """The body of the outermost class. `inputs` are what the graph's inputs are called, `outputs` what
        its results should be called."""
        _refuse_unknown(self.graph)
        flat: set[Scope] = set()
        while True:
            self.where, guessed = scopes(self.graph.nodes, self._is_layer, flat)
            if not self.grouped:
                self.where, guessed = dict.fromkeys(self.where, ()), {}
            root = layout(self.graph, self.where, self._is_layer, self._weights)
            # A class that was guessed from flat names is one only if it computes one thing.
            scattered = {b.scope for b in blocks(root) if b.scope in guessed and len(b.outputs) > 1}
            if not scattered:
                break
            flat |= {guessed[s] for s in scattered}
        return render(
            self._body(root), [inputs[name] for name in root.inputs], list(inputs.values()), outputs
        )

    def class_sources(self) -> list[str]:
        return [c.source.replace("_NAME_", f"_C{i}_") for i, c in enumerate(self.classes)]

    def module_text(self, docstring: str, classes: Sequence[str]) -> str:
        names = self._class_names()
        code = re.sub(r"\b_C(\d+)_", lambda m: names[int(m.group(1))], "\n\n\n".join(classes))
        return f'"""{docstring}"""\n\n{_imports(code)}\n\n\n{code}\n'

    def _is_layer(self, node: Any) -> bool:
        return layer(node, self.graph) is not None

    def _weights(self, node: Any) -> list[str]:
        constants = self.graph.constants
        return [name for name in node.input if name in constants and is_weight(constants[name])]

    def _body(self, block: Block) -> Body:
        return BodyWriter(block, self.graph, self.where, self._child).run()

    def _child(self, block: Block) -> Member:
        unique = UniqueNames(("self",))
        generic = iter("xyz" if block.port_names.count("x") <= 3 else ["x"] * len(block.port_names))
        inputs = [unique.take(next(generic) if name == "x" else name) for name in block.port_names]
        written = render(self._body(block), inputs, inputs)
        text = self._class_source(block, inputs, written)
        number = next((i for i, c in enumerate(self.classes) if c.source == text), len(self.classes))
        if number == len(self.classes):
            self.classes.append(_Class(text))
        self.classes[number].names.append(block.name)
        return Member(block.name, f"_C{number}_(rngs=rngs)", written.weights)

    def _class_source(self, block: Block, inputs: list[str], written: ClassBody) -> str:
        takes = ", ".join(
            f"{name} {_dimensions(self.graph.shape(value))}"
            for name, value in zip(inputs, block.inputs, strict=True)
        )
        gives = ", ".join(_dimensions(self.graph.shape(value)) for value in block.outputs)
        arguments = "".join(f", {name}: jax.Array" for name in inputs)
        returns = "jax.Array"
        if len(block.outputs) > 1:
            returns = f"tuple[{', '.join(['jax.Array'] * len(block.outputs))}]"
        doc = textwrap.fill(f"{takes} to {gives}.", 100, subsequent_indent="    ", break_on_hyphens=False)
        return _class(
            "_NAME_",
            doc,
            written.members,
            f"def __call__(self{arguments}) -> {returns}:",
            _returning(written.statements, ", ".join(written.results)),
        )

    def _class_names(self) -> list[str]:
        unique = UniqueNames(("Ranker", "Request", "Candidate", *(n for ns in _FROM.values() for n in ns)))
        names: list[str] = []
        for made in self.classes:
            name = class_name(list(dict.fromkeys(made.names)))
            taken = unique.take(name)
            names.append(taken.replace("_", ""))
        return names


def _imports(code: str) -> str:
    jax = ["import jax", *(["import jax.numpy as jnp"] if re.search(r"\bjnp\.", code) else [])]
    named = ["from typing import NamedTuple", ""] if "(NamedTuple)" in code else []
    lines = [*named, *jax, "from flax import nnx"]
    own = ["from jaxrank import layers"] if re.search(r"(?<![\w.])layers\.", code) else []
    for module, names in _FROM.items():
        used = [name for name in names if re.search(rf"(?<![\w.]){name}\(", code)]
        if used:
            own.append(f"from {module} import {', '.join(used)}")
    return "\n".join([*lines, *(["", *own] if own else [])])


def _class(name: str, doc: str, members: list[str], signature: str, statements: list[str]) -> str:
    lines = [f"class {name}(nnx.Module):", f'    """{doc}"""', ""]
    lines += ["    def __init__(self, *, rngs: nnx.Rngs):", *_indented(members or ["pass"], 8), ""]
    lines += [f"    {signature}", *_indented(statements, 8)]
    return "\n".join(lines)


def _indented(lines: list[str], width: int) -> list[str]:
    return [textwrap.indent(line, " " * width) for line in lines]


def _returning(statements: list[str], result: str) -> list[str]:
    """`y = f(x); return y` is `return f(x)`."""
    last = statements[-1] if statements else ""
    if last.startswith(f"{result} = ") and "\n" not in last:
        return [*statements[:-1], f"return {last.removeprefix(f'{result} = ')}"]
    return [*statements, f"return {result}"]


def _dimensions(shape: tuple[int, ...] | None) -> str:
    """Dimension 0 holds the rows."""
    if shape is None:
        return "of a shape that varies"
    return f"[{', '.join(['n', *map(str, shape[1:])])}]" if shape else "[]"


def _inputs_class(scope: str, columns: list[BlockColumn]) -> str:
    title = scope.capitalize()
    rows = "1 (or N)" if scope == "request" else "N"
    fields = [
        f"    {c.feature}: jax.Array  # {c.dtype} [{', '.join(['n', *map(str, c.shape)])}]" for c in columns
    ]
    doc = f'    """{title}-scope features; n is {rows}."""'
    return "\n".join([f"class {title}(NamedTuple):", doc, *(["", *fields] if fields else [])])


def _refuse_unknown(graph: Graph) -> None:
    missing: list[Unsupported] = []
    for node in graph.nodes:
        found = operator(node.op_type) if node.domain in ("", "ai.onnx", OWN_DOMAIN) else None
        if layer(node, graph) is not None:
            continue
        if found is None:
            advice = "has no Flax form in converters/onnx_ops; replace it in the model by supported ops"
            missing.append(Unsupported(node.name, node.op_type, advice))
            continue
        for at in found.static:
            if at < len(node.input) and node.input[at] and node.input[at] not in graph.constants:
                advice = f"operand {at} must be a constant, but depends on a feature"
                missing.append(Unsupported(node.name, node.op_type, advice))
    if missing:
        raise UnsupportedOpsError(missing)


def _product_flops(node: Any, graph: Graph) -> int:
    """2 x the size of the iteration space of a product."""
    if node.op_type not in ("Linear", "MatMul", "Gemm", "Einsum"):
        return 0
    shapes = [graph.shape(name) for name in node.input]
    if any(shape is None for shape in shapes[:2]):
        return 0
    if node.op_type != "Einsum":
        left, right = (shape or (1,) for shape in shapes[:2])
        return 2 * int(np.prod(left, dtype=np.int64)) * (right[-1] if len(right) > 1 else 1)
    equation = next(a.s.decode() for a in node.attribute if a.name == "equation").split("->")[0]
    sizes: dict[str, int] = {}
    for labels, shape in zip(equation.replace(" ", "").split(","), shapes, strict=True):
        if "..." in labels or shape is None:
            return 0
        sizes.update(zip(labels, shape, strict=True))
    return 2 * int(np.prod(list(sizes.values()), dtype=np.int64))
