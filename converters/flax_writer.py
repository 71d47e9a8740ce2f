"""Writes the dense half as a Flax nnx module that a person would keep working on: `model.py` and
`params.safetensors`.

A product with a constant matrix (and the sum with a constant vector after it) becomes an `nnx.Linear` named
after its TensorFlow scope; other weights become `nnx.Param`; single numbers are written out; activations are
applied in place.
"""

import builtins
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save_file

from converters.dense import OPSET, OWN_DOMAIN
from converters.errors import Unsupported, UnsupportedOpsError
from converters.names import UniqueNames, identifier, layer_name, scope_parts
from converters.onnx_ops import OPS, Operand
from jaxrank.bundle import MODEL, PARAMS
from jaxrank.host_program import BlockColumn
from jaxrank.manifest import TensorSpec

# Applied to the value before it, in the same line, when nothing else reads that value.
_INLINE = {
    "Relu",
    "Sigmoid",
    "Tanh",
    "Softmax",
    "Softplus",
    "Elu",
    "Selu",
    "LeakyRelu",
    "Squeeze",
    "Unsqueeze",
    "Reshape",
}


@dataclass
class _Module:
    """The module while it is written."""

    layers: list[str] = field(default_factory=list)
    body: list[str] = field(default_factory=list)
    params: dict[str, np.ndarray] = field(default_factory=dict)
    members: UniqueNames = field(default_factory=lambda: UniqueNames(("request", "candidate", "self")))
    locals: UniqueNames = field(
        default_factory=lambda: UniqueNames(
            ("request", "candidate", "self", "jax", "jnp", "nnx", "concatenate", *dir(builtins))
        )
    )
    linear_flops: int = 0


def write_flax(
    proto: onnx.ModelProto,
    columns: tuple[BlockColumn, ...],
    outputs: tuple[TensorSpec, ...],
    bundle: Path,
    source: str,
) -> int:
    """Writes `model.py` and `params.safetensors`. Returns the FLOPs of the matrix products for one candidate,
    as the source graph does them.

    Raises `UnsupportedOpsError` with every node that has no entry in the operator table.
    """
    writer = _Writer(proto, columns)
    writer.run()
    save_file(writer.module.params, bundle / PARAMS)
    path = bundle / MODEL
    path.write_text(writer.source(outputs, source))
    subprocess.run(
        [sys.executable, "-m", "ruff", "format", "--quiet", "--line-length", "110", "--isolated", str(path)],
        check=True,
    )
    return writer.module.linear_flops


class _Writer:
    def __init__(self, proto: onnx.ModelProto, columns: tuple[BlockColumn, ...]):
        self.graph = proto.graph
        self.columns = columns
        self.module = _Module()
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.graph.initializer}
        self.shapes = _static_shapes(proto)
        self.uses: dict[str, int] = {}
        for node in self.graph.node:
            for name in node.input:
                self.uses[name] = self.uses.get(name, 0) + 1
        for value in self.graph.output:
            self.uses[value.name] = self.uses.get(value.name, 0) + 1
        self.text: dict[str, str] = {f"{c.feature}:0": f"{c.scope}.{c.feature}" for c in columns}
        self.shapes.update((f"{c.feature}:0", (1, *c.shape)) for c in columns)
        self.pending: dict[str, str] = {}
        self.param_of: dict[str, str] = {}
        self.layer_of: dict[tuple[str, bytes | None], str] = {}

    def run(self) -> None:
        nodes = self._products_on_the_last_axis(self._fold_constants())
        self._refuse_unknown(nodes)
        skip: set[int] = set()
        for i, node in enumerate(nodes):
            if i in skip:
                continue
            if node.op_type in ("MatMul", "Gemm") and (bias := self._linear(nodes, node)) is not None:
                skip.update(bias)
            else:
                self._node(node)

    def _fold_constants(self) -> list[Any]:
        """The nodes whose values depend on a feature. A constant found makes more shapes known, and a shape
        more constants, so both are done until nothing changes."""
        nodes = list(self.graph.node)
        while True:
            left = [n for n in nodes if not self._is_constant(n)]
            if len(left) == len(nodes):
                return nodes
            nodes = left
            graph = onnx.helper.make_graph(
                nodes,
                "features only",
                list(self.graph.input),
                list(self.graph.output),
                [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
                value_info=list(self.graph.value_info),
            )
            opsets = [onnx.helper.make_opsetid("", OPSET), onnx.helper.make_opsetid(OWN_DOMAIN, 1)]
            model = onnx.helper.make_model(graph, opset_imports=opsets)
            self.shapes.update(_static_shapes(onnx.shape_inference.infer_shapes(model, data_prop=True)))

    def _is_constant(self, node: Any) -> bool:
        """Whether a node's value is known now: then it is put among the constants and needs no code."""
        if node.op_type == "Shape" and node.input[0] in self.shapes and not node.attribute:
            self.constants[node.output[0]] = np.array(self.shapes[node.input[0]], np.int64)
        elif (
            node.domain in ("", "ai.onnx")
            and (node.input or node.op_type == "Constant")
            and all(name in self.constants for name in node.input if name)
        ):
            alone = onnx.helper.make_graph([node], "constant", [], [_untyped(o) for o in node.output])
            for name in node.input:
                if name:
                    alone.initializer.append(numpy_helper.from_array(self.constants[name], name))
            model = onnx.helper.make_model(alone, opset_imports=[onnx.helper.make_opsetid("", OPSET)])
            values = ReferenceEvaluator(model).run(None, {})
            self.constants.update(zip(node.output, map(np.asarray, values), strict=True))  # pyright: ignore
        else:
            return False
        return True

    def _products_on_the_last_axis(self, nodes: list[Any]) -> list[Any]:
        """reshape to a matrix, product, reshape back (how TensorFlow spells a dense layer on sequences) is
        one product."""
        producer = {name: n for n in nodes for name in n.output}
        dropped: set[int] = set()
        for node in nodes:
            before = producer.get(node.input[0]) if node.op_type == "MatMul" else None
            after = [n for n in nodes if node.output[0] in n.input]
            if before is None or before.op_type != "Reshape" or node.input[1] not in self.constants:
                continue
            if len(after) != 1 or after[0].op_type != "Reshape" or self.uses[node.output[0]] != 1:
                continue
            source, flat = self.shapes[before.input[0]], self.shapes[node.input[0]]
            if source[-1] != flat[-1] or self.shapes[after[0].output[0]][:-1] != source[:-1]:
                continue
            self.uses[node.input[0]] -= 1
            if not self.uses[node.input[0]]:
                dropped.add(id(before))
            else:
                self.uses[before.input[0]] += 1
            dropped.add(id(after[0]))
            node.input[0], node.output[0] = before.input[0], after[0].output[0]
        return [n for n in nodes if id(n) not in dropped]

    def _refuse_unknown(self, nodes: list[Any]) -> None:
        missing: list[Unsupported] = []
        for node in nodes:
            entry = OPS.get(node.op_type) if node.domain in ("", "ai.onnx", OWN_DOMAIN) else None
            if entry is None:
                advice = (
                    "has no Flax form in converters/onnx_ops.py; replace it in the model by supported ops"
                )
                missing.append(Unsupported(node.name, node.op_type, advice))
                continue
            for at in entry.static:
                if at < len(node.input) and node.input[at] and node.input[at] not in self.constants:
                    advice = f"operand {at} must be a constant, but depends on a feature"
                    missing.append(Unsupported(node.name, node.op_type, advice))
        if missing:
            raise UnsupportedOpsError(missing)

    def _linear(self, nodes: list[Any], node: Any) -> set[int] | None:
        """Lifts a product with a constant matrix. Returns the positions of the nodes it took besides, None if
        it is not one."""
        kernel = self.constants.get(node.input[1])
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        if kernel is None or kernel.ndim != 2 or attributes.get("transA"):
            return None
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0:
            return None
        if attributes.get("transB"):
            kernel = np.ascontiguousarray(kernel.T)
        bias, taken, output = None, set(), node.output[0]
        if node.op_type == "Gemm" and len(node.input) > 2:
            bias = self.constants.get(node.input[2])
            if bias is None:
                return None
        elif node.op_type == "MatMul" and self.uses[output] == 1:
            at, add = next(((i, n) for i, n in enumerate(nodes) if output in n.input), (-1, None))
            other = [name for name in add.input if name != output] if add is not None else []
            if add is not None and add.op_type == "Add" and len(other) == 1 and other[0] in self.constants:
                candidate = self.constants[other[0]]
                if candidate.size == kernel.shape[1] and candidate.ndim <= 1 + (candidate.shape[:1] == (1,)):
                    bias, taken, output = candidate, {at}, add.output[0]
        if bias is not None and bias.size != kernel.shape[1]:
            return None
        weights = (node.input[1], None if bias is None else bias.tobytes())
        rows = int(np.prod(self.shapes[node.input[0]][:-1], dtype=np.int64))
        self.module.linear_flops += 2 * rows * kernel.size
        self.shapes.setdefault(output, (*self.shapes[node.input[0]][:-1], kernel.shape[1]))
        name = self.layer_of.get(weights)
        if name is None:
            name = self._new_linear(layer_name(node.name), kernel, bias)
            self.layer_of[weights] = name
        self._assign(output, f"self.{name}({self._operand(node.input[0])})", name)
        return taken

    def _new_linear(self, name: str, kernel: np.ndarray, bias: np.ndarray | None) -> str:
        name = self.module.members.take(name)
        features = f"{kernel.shape[0]}, {kernel.shape[1]}"
        no_bias = "" if bias is not None else ", use_bias=False"
        self.module.layers.append(f"self.{name} = nnx.Linear({features}{no_bias}, rngs=rngs)")
        self.module.params[f"{name}.kernel"] = np.ascontiguousarray(kernel, np.float32)
        if bias is not None:
            self.module.params[f"{name}.bias"] = np.ascontiguousarray(bias.reshape(-1), np.float32)
        return name

    def _node(self, node: Any) -> None:
        entry = OPS[node.op_type]
        operands: list[Any] = []
        for i, name in enumerate(node.input):
            if not name:
                operands.append(None)
            elif i in entry.static:
                operands.append(self.constants[name])
            else:
                operands.append(self._operand(name))
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        try:
            text = entry.function(*operands, **attributes)
        except (TypeError, ValueError) as error:
            raise UnsupportedOpsError(
                [Unsupported(node.name, node.op_type, f"is not supported with: {error}")]
            ) from error
        if node.op_type in ("MatMul", "Einsum"):
            self.module.linear_flops += self._product_flops(node)
        if len(node.output) > 1:
            names = [self.module.locals.take(_value_name(node)) for _ in node.output]
            self.module.body.append(f"{', '.join(names)} = {text}")
            self.text.update(zip(node.output, names, strict=True))
        else:
            self._assign(node.output[0], text, _value_name(node))

    def _product_flops(self, node: Any) -> int:
        """2 x the size of the iteration space of a batched product."""
        left, right = self.shapes[node.input[0]], self.shapes[node.input[1]]
        if node.op_type == "MatMul":
            return 2 * int(np.prod(left, dtype=np.int64)) * right[-1]
        equation = next(a.s.decode() for a in node.attribute if a.name == "equation").split("->")[0]
        sizes: dict[str, int] = {}
        for labels, name in zip(equation.split(","), node.input, strict=True):
            sizes.update(zip(labels.strip(), self.shapes[name], strict=True))
        return 2 * int(np.prod(list(sizes.values()), dtype=np.int64))

    def _operand(self, name: str) -> Operand:
        if name in self.text:
            text = self.text[name]
        elif name in self.pending:
            text = self.pending.pop(name)
        else:
            return Operand(self._constant(name), self.constants[name].shape)
        if name not in self.shapes:
            advice = "has a shape that is not known before it runs; give it a fixed one in the model"
            raise UnsupportedOpsError([Unsupported(name, "unknown shape", advice)])
        return Operand(text, self.shapes[name])

    def _constant(self, name: str) -> str:
        value = self.constants[name]
        if value.size == 1 and value.ndim <= 1 or value.size == 1 and value.dtype.kind != "f":
            return _literal(value.reshape(-1)[0].item(), value)
        if value.dtype != np.float32:
            return f"jnp.array({value.tolist()}, jnp.{value.dtype.name}{'_' if value.dtype == bool else ''})"
        if value.size and (value == value.flat[0]).all():
            return f"jnp.full({tuple(value.shape)}, {_literal(value.flat[0].item(), value)})"
        if name not in self.param_of:
            member = self.module.members.take(_param_name(name))
            self.param_of[name] = member
            self.module.layers.append(f"self.{member} = nnx.Param(jnp.zeros({tuple(value.shape)}))")
            self.module.params[member] = np.ascontiguousarray(value)
        return f"self.{self.param_of[name]}[...]"

    def _assign(self, output: str, text: str, name: str) -> None:
        follower = [n for n in self.graph.node if output in n.input]
        if self.uses[output] == 1 and len(follower) == 1 and follower[0].op_type in _INLINE:
            self.pending[output] = text
            return
        if re.fullmatch(r"[\w.]+", text) and not text[0].isdigit():
            self.text[output] = text  # another name for a value that has one
            return
        local = self.module.locals.take(name)
        if text.startswith("(") and text.endswith(")") and _closes_at_end(text):
            text = text[1:-1]
        self.module.body.append(f"{local} = {text}")
        self.text[output] = local

    def source(self, outputs: tuple[TensorSpec, ...], source: str) -> str:
        results = [f'"{o.name}": {self._operand(f"output/{o.name}:0")}' for o in outputs]
        inputs = "\n\n\n".join(
            _inputs_class(scope, [c for c in self.columns if c.scope == scope])
            for scope in ("request", "candidate")
        )
        layers = "\n        ".join(self.module.layers) or "pass"
        body = "\n        ".join(self.module.body)
        return f'''"""{source}, dense half. Written by `jaxrank convert`; yours to edit and train further.

`Ranker` scores rows: one request row, or one for each candidate, against N candidate rows.
`jaxrank.flax_module.load_flax` gives it the weights of `params.safetensors`, by attribute name.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxrank.flax_layers import concatenate


{inputs}


class Ranker(nnx.Module):
    """Request and candidate features in, one value for each row and output."""

    def __init__(self, *, rngs: nnx.Rngs):
        {layers}

    def __call__(self, request: Request, candidate: Candidate) -> dict[str, jax.Array]:
        {body}
        return {{{", ".join(results)}}}
'''


def _inputs_class(scope: str, columns: list[BlockColumn]) -> str:
    title = scope.capitalize()
    rows = "1 (or N)" if scope == "request" else "N"
    fields = [
        f"    {c.feature}: jax.Array  # {c.dtype} [{', '.join(['n', *map(str, c.shape)])}]" for c in columns
    ]
    return "\n".join(
        [
            f"class {title}(NamedTuple):",
            f'    """{title}-scope features; n is {rows}."""',
            "",
            *(fields or ["    pass"]),
        ]
    )


def _param_name(name: str) -> str:
    parts = scope_parts(name.split(":")[0].split("__")[0])
    return identifier("_".join([layer_name("/".join(parts)), *parts[-1:]]) if len(parts) > 1 else parts[-1])


def _untyped(name: str) -> onnx.ValueInfoProto:
    value = onnx.ValueInfoProto()
    value.name = name
    return value


def _value_name(node: Any) -> str:
    parts = scope_parts(node.name.split("__")[0])
    what = identifier(re.sub(r"(_\d+)+$", "", parts[-1]))
    if len(parts) == 1:
        return what
    owner = layer_name(node.name)
    return owner if what in ("relu", "concat", "add", "bias_add", "softmax") else f"{owner}_{what}"


def _closes_at_end(text: str) -> bool:
    depth = 0
    for i, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return i == len(text) - 1
    return False


def _literal(item: Any, value: np.ndarray) -> str:
    if value.dtype.kind == "f" and not np.isfinite(item):
        return "jnp.nan" if np.isnan(item) else ("jnp.inf" if item > 0 else "-jnp.inf")
    # The shortest decimal that is this float32, in parentheses where an operator binds tighter than a sign.
    text = str(np.float32(item)) if value.dtype == np.float32 else repr(item)
    return f"({text})" if text.startswith("-") else text


def _static_shapes(proto: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    for value in (*proto.graph.value_info, *proto.graph.input, *proto.graph.output):
        dims = value.type.tensor_type.shape.dim
        if all(d.HasField("dim_value") for d in dims):
            shapes[value.name] = tuple(d.dim_value for d in dims)
    return shapes
