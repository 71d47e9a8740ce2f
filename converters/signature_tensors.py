"""The inputs and outputs of a signature, or of a graph that has none, as single tensors."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow as tf

from converters.errors import ConversionError
from converters.graph_files import called_function, refuse_unregistered
from converters.source import SourceTensor, choose
from jaxrank.manifest import Part

_OPEN = (None,)
"""The shape of an output whose rank TensorFlow does not know before the graph is folded: what comes out of a
lookup table or a TF1 loop."""


def signature_tensors(
    meta: Any, signature: str, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[tuple[SourceTensor, ...], tuple[SourceTensor, ...]]:
    """Inputs and outputs of a signature by name, or those of them that were asked for."""
    definition = meta.signature_def[signature]
    taken = [t for name in sorted(definition.inputs) for t in _tensors(name, definition.inputs[name])]
    taken = name_parts(taken, partial(_reads_splits, meta.graph_def))
    given = [
        t
        for name in sorted(definition.outputs)
        for t in _tensors(name, definition.outputs[name], output=True)
    ]
    return choose(taken, inputs, "--inputs"), choose(given, outputs, "--outputs")


def named_tensors(
    graph_def: Any, inputs: Sequence[str], outputs: Sequence[str], path: Path
) -> tuple[tuple[SourceTensor, ...], tuple[SourceTensor, ...]]:
    """A signature of tensors of a graph that has none, from `name=tensor:0` or `tensor:0`."""
    placeholders = [n.name for n in graph_def.node if n.op == "Placeholder"]
    if not inputs or not outputs:
        consumed = {t.split(":")[0].lstrip("^") for n in graph_def.node for t in n.input}
        ends = [n.name for n in graph_def.node if n.name not in consumed and n.op not in ("NoOp", "Const")]
        raise ConversionError(
            f"{path} has no signature; name its tensors with --inputs and --outputs. Placeholders: "
            f"{', '.join(placeholders) or 'none'}; nodes that nothing reads: {', '.join(ends[:20])}"
        )
    refuse_unregistered(graph_def, path)
    graph = tf.Graph()
    with graph.as_default():
        try:
            tf.graph_util.import_graph_def(graph_def, name="")
        except (ValueError, tf.errors.OpError) as error:
            raise ConversionError(f"{path} is not a graph that TensorFlow can build: {error}") from error

    def tensor(text: str, option: str) -> SourceTensor:
        alias, _, name = text.rpartition("=")
        full = name if ":" in name else f"{name}:0"
        try:
            found = graph.get_tensor_by_name(full)
        except (KeyError, ValueError) as error:
            raise ConversionError(
                f"{option} {text!r}: the graph has no tensor {full}; placeholders: {', '.join(placeholders)}"
            ) from error
        if found.shape.rank is None and option == "--inputs":
            raise ConversionError(f"{option} {text!r} has an unknown rank; give its placeholder a shape")
        return SourceTensor(
            alias or name.split(":")[0],
            found.dtype.base_dtype.name,
            _OPEN if found.shape.rank is None else tuple(found.shape.as_list()),
            full,
        )

    return (
        tuple(sorted((tensor(t, "--inputs") for t in inputs), key=lambda t: t.name)),
        tuple(sorted((tensor(t, "--outputs") for t in outputs), key=lambda t: t.name)),
    )


def _tensors(name: str, info: Any, *, output: bool = False) -> list[SourceTensor]:
    """The tensors of one entry of a signature: one, or the parts of a sparse or ragged feature."""
    kind = info.WhichOneof("encoding")
    if kind == "coo_sparse":
        rank = len(info.tensor_shape.dim) or 2
        dtype = tf.as_dtype(info.dtype).name
        sparse = info.coo_sparse
        return [
            SourceTensor(
                f"{name}/indices", "int64", (None, rank), sparse.indices_tensor_name, "sparse_indices", name
            ),
            SourceTensor(f"{name}/values", dtype, (None,), sparse.values_tensor_name, "sparse_values", name),
            SourceTensor(
                f"{name}/shape", "int64", (rank,), sparse.dense_shape_tensor_name, "sparse_shape", name
            ),
        ]
    if kind == "composite_tensor":
        raise ConversionError(
            f"{name!r} is a {info.composite_tensor.type_spec.type_spec_class_name} that this signature packs "
            "into one entry; export it as the tensors that it is made of"
        )
    if info.tensor_shape.unknown_rank and output:
        return [SourceTensor(name, tf.as_dtype(info.dtype).name, _OPEN, info.name)]
    if info.tensor_shape.unknown_rank:
        raise ConversionError(
            f"{name!r} ({info.name}) has an unknown rank; give it a shape in the exported signature"
        )
    shape = tuple(None if d.size < 0 else d.size for d in info.tensor_shape.dim)
    return [SourceTensor(name, tf.as_dtype(info.dtype).name, shape, info.name)]


def name_parts(tensors: Sequence[SourceTensor], reads_splits: Callable[[str], bool]) -> list[SourceTensor]:
    """Recognises the parts of sparse and ragged inputs, which TensorFlow 2 exports as plain tensors `x`,
    `x_1`, `x_2`: indices, values and shape, or flat values and splits (`reads_splits` says whether a
    tensor is used as these)."""
    by_name = {t.name: t for t in tensors}
    found = dict(by_name)
    for name, tensor in by_name.items():
        one, two = by_name.get(f"{name}_1"), by_name.get(f"{name}_2")
        rank = tensor.shape[1] if len(tensor.shape) == 2 else None
        if one and two and rank and two.shape == (rank,) and (tensor.dtype, two.dtype) == ("int64", "int64"):
            kinds: list[tuple[SourceTensor, Part]] = [
                (tensor, "sparse_indices"),
                (one, "sparse_values"),
                (two, "sparse_shape"),
            ]
        else:
            splits, at = [], 1
            while (part := by_name.get(f"{name}_{at}")) and part.dtype in ("int64", "int32"):
                if part.shape != (None,) or not reads_splits(part.tensor_name):
                    break
                splits.append(part)
                at += 1
            if not splits or tensor.part != "rows":
                continue
            kinds = [(tensor, "flat_values"), *((s, "row_splits") for s in splits)]
        for part, kind in kinds:
            found[part.name] = replace(part, part=kind, feature=name)
    return list(found.values())


def _reads_splits(graph_def: Any, tensor_name: str) -> bool:
    """Whether a tensor of the main graph, or the function argument that it becomes, is read as row splits."""
    functions = {f.signature.name: f for f in graph_def.library.function}

    def read(nodes: Any, name: str, depth: int) -> bool:
        sliced: set[str] = set()
        for node in nodes:
            for position, text in enumerate(node.input):
                if text.split(":")[0] != name:
                    continue
                if node.op.startswith("Ragged"):
                    return True
                if node.op == "StridedSlice" and position == 0 and depth:
                    sliced |= _slice_of(node, nodes)
                    if {"from the second", "to the last but one"} <= sliced:
                        return True  # row lengths: splits[1:] - splits[:-1]
                function = functions.get(called_function(node)) or functions.get(node.op)
                if function is not None:
                    argument = function.signature.input_arg[position].name
                    if read(function.node_def, argument, depth + 1):
                        return True
                elif node.op == "Identity" and read(nodes, node.name, depth):
                    return True
        return False

    return read(graph_def.node, tensor_name.split(":")[0], 0)


def _slice_of(node: Any, nodes: Any) -> set[str]:
    """What a StridedSlice of constants takes of a vector, of what row lengths are computed from."""
    constants = {n.name: n for n in nodes if n.op == "Const"}
    ends = [constants.get(text.split(":")[0]) for text in node.input[1:3]]
    begin, end = ([] if c is None else tf.make_ndarray(c.attr["value"].tensor).tolist() for c in ends)
    found = set()
    if begin == [1] and "end_mask" in node.attr and node.attr["end_mask"].i:
        found.add("from the second")
    if begin == [0] and end == [-1]:
        found.add("to the last but one")
    return found
