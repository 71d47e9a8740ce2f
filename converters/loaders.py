"""Loads a model from each of the formats that teams have, without restoring its variables.

SavedModels of TensorFlow 1 and 2, frozen graphs, meta graphs with a checkpoint, and Keras files all come down
to one thing: a graph, its signature, and a checkpoint whose variables are views of its files. TensorFlow's
own answers come from a session on that same graph, which is what TensorFlow Serving runs.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow.python.framework import op_def_registry

from converters.checkpoint import Checkpoint
from converters.dataflow import VARIABLES
from converters.errors import ConversionError, Unsupported, UnsupportedOpsError
from converters.source import SourceModel, SourceTensor, TableContents, Weight, choose, refused, said
from jaxrank.manifest import Part

_LARGEST_PROTO = (1 << 31) - 1
_TABLE_INITIALIZERS = {
    "InitializeTable",
    "InitializeTableV2",
    "InitializeTableFromTextFile",
    "InitializeTableFromTextFileV2",
    "LookupTableImport",
    "LookupTableImportV2",
}
_OPEN = (None,)
"""The shape of an output whose rank TensorFlow does not know before the graph is folded: what comes out of a
lookup table or a TF1 loop."""
PREDICT = "tensorflow/serving/predict"


def load(
    path: Path,
    signature: str = "serving_default",
    inputs: Sequence[str] = (),
    outputs: Sequence[str] = (),
) -> SourceModel:
    """Loads one signature of a model.

    Args:
        path: a SavedModel directory, a frozen graph (`.pb`, `.pbtxt`), a meta graph (`.meta`) or the
            directory or prefix of a checkpoint that has one, or a Keras file (`.keras`, `.h5`).
        inputs, outputs: for frozen and meta graphs the tensors that are the signature, `name=tensor:0` or
            `tensor:0`; for a signature, the names of those to keep.

    Raises:
        ConversionError: `path` is none of these, is damaged, or has not what was asked for.
    """
    if (path / "saved_model.pb").is_file() or (path / "saved_model.pbtxt").is_file():
        return _saved_model(path, signature, inputs, outputs)
    if path.suffix in (".keras", ".h5", ".hdf5") and path.is_file():
        return _keras_file(path, signature, inputs, outputs)
    if path.suffix in (".pb", ".pbtxt") and path.is_file():
        return _frozen_graph(path, inputs, outputs)
    prefix = _checkpoint_prefix(path)
    if prefix is not None:
        return _meta_graph(path, prefix, signature, inputs, outputs)
    found = "it does not exist"
    if path.is_dir():
        found = "it has no saved_model.pb and no checkpoint with a .meta file"
    elif path.exists():
        found = "its name does not end in .pb, .pbtxt, .meta, .keras or .h5"
    raise ConversionError(
        f"{path} is not a TensorFlow model: {found}; give a SavedModel directory, a frozen graph, a meta "
        "graph or a Keras file"
    )


@dataclass
class _Graph:
    """A graph that can be run. The session is opened when the first answer is asked for."""

    graph_def: Any
    restore: Callable[[Any, Any], None] = lambda session, graph: None
    initialize: Callable[[Any, Any], None] = lambda session, graph: None
    _sessions: dict[bool, Any] = field(default_factory=dict)
    _tables: dict[str, TableContents] = field(default_factory=dict)

    def session(self, *, variables: bool) -> Any:
        """A session with its lookup tables filled and, where asked for, its variables restored."""
        if variables not in self._sessions:
            _drop_empty_attributes(self.graph_def)
            graph = tf.Graph()
            with graph.as_default():
                tf.graph_util.import_graph_def(self.graph_def, name="")
            config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
            session = tf.compat.v1.Session(graph=graph, config=config)
            if variables:
                self.restore(session, graph)
            self.initialize(session, graph)
            self._sessions[variables] = session
        return self._sessions[variables]

    def run(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            return [np.asarray(v) for v in self.session(variables=True).run(list(names), dict(feeds))]
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise refused(error) from error

    def table(self, node_name: str) -> TableContents:
        if node_name not in self._tables:
            self._tables[node_name] = self._read_table(node_name)
        return self._tables[node_name]

    def _read_table(self, node_name: str) -> TableContents:
        session = self.session(variables=any(n.op.startswith("Mutable") for n in self.graph_def.node))
        graph = session.graph
        operation = graph.get_operation_by_name(node_name)
        with graph.as_default():
            made = tf.raw_ops.LookupTableExportV2(
                table_handle=_resource(operation),
                Tkeys=operation.get_attr("key_dtype"),
                Tvalues=operation.get_attr("value_dtype"),
            )
        try:
            keys, values = session.run([made.keys, made.values])
        except tf.errors.OpError as error:
            raise ConversionError(f"the lookup table {node_name} has no entries: {said(error)}") from error
        return TableContents(np.asarray(keys), np.asarray(values))


def _resource(operation: Any) -> Any:
    tensor = operation.outputs[0]
    if tensor.dtype == tf.resource:
        return tensor
    raise ConversionError(
        f"the lookup table {operation.name} is a {operation.type} of TensorFlow 0.x; save the model again "
        "with TensorFlow 1.15 or later"
    )


def _saved_model(path: Path, signature: str, inputs: Sequence[str], outputs: Sequence[str]) -> SourceModel:
    meta = _serving_meta_graph(path)
    names = sorted(name for name in meta.signature_def if not name.startswith("__saved_model"))
    if signature not in meta.signature_def:
        raise ConversionError(
            f"{path} has no signature {signature!r}; it has: {', '.join(names) or 'none'} "
            "(choose one with --signature)"
        )
    checkpoint = path / "variables" / "variables"
    warmup = path / "assets.extra" / "tf_serving_warmup_requests"
    return _from_meta_graph(
        path,
        "saved_model",
        meta,
        Checkpoint(checkpoint) if Path(f"{checkpoint}.index").is_file() else None,
        _signature_tensors(meta, signature, inputs, outputs),
        signature,
        meta.signature_def[signature].method_name or PREDICT,
        warmup=warmup if warmup.is_file() else None,
        assets=path / "assets",
    )


def _serving_meta_graph(path: Path) -> Any:
    file = path / "saved_model.pb"
    proto = saved_model_pb2.SavedModel()
    if file.is_file():
        _parse(file, proto)
    else:
        _parse_text(path / "saved_model.pbtxt", proto)
    serving = [m for m in proto.meta_graphs if "serve" in m.meta_info_def.tags]
    if not serving:
        tags = [", ".join(m.meta_info_def.tags) for m in proto.meta_graphs]
        raise ConversionError(f"{path} has no graph tagged 'serve'; its graphs are tagged: {tags}")
    return min(serving, key=lambda m: len(m.meta_info_def.tags))


def _meta_graph(
    path: Path, prefix: Path, signature: str, inputs: Sequence[str], outputs: Sequence[str]
) -> SourceModel:
    meta = meta_graph_pb2.MetaGraphDef()
    _parse(Path(f"{prefix}.meta"), meta)
    if signature in meta.signature_def:
        tensors = _signature_tensors(meta, signature, inputs, outputs)
        method = meta.signature_def[signature].method_name or PREDICT
    else:
        tensors, method = _named_tensors(meta.graph_def, inputs, outputs, path), PREDICT
    return _from_meta_graph(
        path, "checkpoint", meta, Checkpoint(prefix), tensors, signature, method, assets=prefix.parent
    )


def _frozen_graph(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> SourceModel:
    graph_def = tf.compat.v1.GraphDef()
    if path.suffix == ".pb":
        _parse(path, graph_def)
    else:
        _parse_text(path, graph_def)
    variables = [n.name for n in graph_def.node if n.op in VARIABLES]
    if variables:
        raise ConversionError(
            f"{path} is not frozen: it has {len(variables)} variables ({', '.join(variables[:3])}, ...) "
            "without values; give the checkpoint's .meta file instead, or freeze it"
        )
    meta = meta_graph_pb2.MetaGraphDef(graph_def=graph_def)
    tensors = _named_tensors(graph_def, inputs, outputs, path)
    return _from_meta_graph(path, "frozen_graph", meta, None, tensors, "serving_default", PREDICT)


def _keras_file(path: Path, signature: str, inputs: Sequence[str], outputs: Sequence[str]) -> SourceModel:
    import keras

    directory = tempfile.TemporaryDirectory(prefix="jaxrank-keras-")
    try:
        model: Any = keras.models.load_model(path, compile=False)
        exported = Path(directory.name) / "saved_model"
        model.export(str(exported), format="tf_saved_model", verbose=False)
    except Exception as error:  # Keras raises whatever its layers and file formats raise
        raise ConversionError(f"{path} does not load as a Keras model: {error}") from error
    source = _saved_model(exported, signature, inputs, outputs)
    kind = "keras" if path.suffix == ".keras" else "h5"
    return replace(source, path=path, format=kind, keep=(directory, *source.keep))


def _from_meta_graph(
    path: Path,
    kind: str,
    meta: Any,
    checkpoint: Checkpoint | None,
    tensors: tuple[tuple[SourceTensor, ...], tuple[SourceTensor, ...]],
    signature: str,
    method: str,
    warmup: Path | None = None,
    assets: Path | None = None,
) -> SourceModel:
    graph_def = meta.graph_def
    for node in graph_def.node:
        node.device = ""
    _refuse_unregistered(graph_def, path)
    weights = _weights(meta, checkpoint)
    graph = _Graph(
        graph_def,
        restore=lambda session, _: _restore(session, meta, checkpoint, weights),
        initialize=lambda session, _: _initialize_tables(session, meta, assets),
    )
    by_name = {t.name: t.tensor_name for t in tensors[0]}
    return SourceModel(
        path=path,
        format=kind,
        signature_name=signature,
        method_name=method,
        inputs=tensors[0],
        outputs=tensors[1],
        graph_def=graph_def,
        weights=weights,
        tables=graph.table,
        run=lambda names, feeds: graph.run(names, {by_name[n]: v for n, v in feeds.items()}),
        warmup=warmup,
        keep=(graph,),
    )


def _restore(session: Any, meta: Any, checkpoint: Checkpoint | None, weights: Mapping[str, Weight]) -> None:
    saver = meta.saver_def
    if checkpoint is None:
        return
    by_restore_op = _restored_by_graph(meta.graph_def)
    try:
        if saver.restore_op_name:
            session.run(saver.restore_op_name, {saver.filename_tensor_name: str(checkpoint.prefix)})
        with session.graph.as_default():
            for node in weights.keys() - by_restore_op.keys():
                handle = session.graph.get_operation_by_name(node).outputs[0]
                value = tf.compat.v1.placeholder(weights[node].dtype)
                assign = tf.raw_ops.AssignVariableOp(resource=handle, value=value)
                session.run(assign, {value: weights[node].array()})
    except tf.errors.OpError as error:
        raise ConversionError(
            f"{checkpoint.prefix} does not restore: {said(error)}; copy the checkpoint again or "
            "export the model again"
        ) from error


def _initialize_tables(session: Any, meta: Any, assets: Path | None) -> None:
    """Runs what fills the lookup tables: a SavedModel's init op, the table initializers of a TF1 graph, or,
    in a frozen graph that has neither, the initializers that are in the graph."""
    feeds = {}
    for packed in meta.collection_def["saved_model_assets"].any_list.value:
        asset = meta_graph_pb2.AssetFileDef()
        packed.Unpack(asset)
        feeds[asset.tensor_info.name] = str((assets or Path()) / asset.filename)
    for asset in meta.asset_file_def:
        feeds[asset.tensor_info.name] = str((assets or Path()) / asset.filename)
    ops = [
        name
        for key in ("saved_model_main_op", "legacy_init_op", "table_initializer")
        for name in meta.collection_def[key].node_list.value
    ]
    if "__saved_model_init_op" in meta.signature_def:
        ops.append(meta.signature_def["__saved_model_init_op"].outputs["__saved_model_init_op"].name)
    if not ops:
        ops = [n.name for n in meta.graph_def.node if n.op in _TABLE_INITIALIZERS]
    try:
        for name in ops:
            session.run(name, feeds)
    except tf.errors.OpError as error:
        raise ConversionError(
            f"the lookup tables cannot be filled: {said(error)}; a vocabulary file that the "
            "model reads must be at its place"
        ) from error


def _weights(meta: Any, checkpoint: Checkpoint | None) -> dict[str, Weight]:
    """Values of the variables, by the name of their node.

    The graph itself says what it restores where. Keras 3 exports restore copies of the variables and leave
    out those that the functions read; the object graph knows which objects a function captures.
    """
    if checkpoint is None:
        return {}
    variables = [n for n in meta.graph_def.node if n.op in VARIABLES]
    nodes = {n.name: n.attr["shared_name"].s.decode() or n.name for n in variables}
    found = _restored_by_graph(meta.graph_def)
    keys = checkpoint.object_keys()
    for node, number in _captured(meta).items():
        if node in nodes and node not in found and number in keys:
            found[node] = (keys[number], "")
    return {
        node: Weight(nodes[node], checkpoint.parts(key, spec))
        for node, (key, spec) in found.items()
        if node in nodes
    }


def _captured(meta: Any) -> dict[str, int]:
    """The object that a node of the main graph stands for: the last arguments of a call are the objects
    that the function captures."""
    captures = {name: f.bound_inputs for name, f in meta.object_graph_def.concrete_functions.items()}
    found: dict[str, int] = {}
    for node in meta.graph_def.node:
        bound = captures.get(node.attr["f"].func.name, ())
        arguments = [text.split(":")[0] for text in node.input if not text.startswith("^")]
        if bound:
            found.update(zip(arguments[-len(bound) :], bound, strict=True))
    return found


def _restored_by_graph(graph_def: Any) -> dict[str, tuple[str, str]]:
    """(key, slice) in the checkpoint of every variable node that the graph's restore ops assign to."""
    functions = {f.signature.name: f for f in graph_def.library.function}
    found = dict(_restored(graph_def.node, {}))
    for node in graph_def.node:
        function = functions.get(_called(node))
        if function is None or not any(n.op == "RestoreV2" for n in function.node_def):
            continue
        outer = [text.split(":")[0] for text in node.input if not text.startswith("^")]
        arguments = dict(zip((a.name for a in function.signature.input_arg), outer, strict=True))
        found.update(_restored(function.node_def, arguments))
    return found


def _called(node: Any) -> str:
    """The function that a node calls. Reading an attribute that a node has not would put an empty one there,
    with which TensorFlow does not build the graph any more."""
    return node.attr["f"].func.name if "f" in node.attr else ""


def _restored(nodes: Any, arguments: Mapping[str, str]) -> list[tuple[str, tuple[str, str]]]:
    """Pairs of a variable's node and the (key, slice) of the checkpoint that a RestoreV2 assigns to it."""
    by_name = {n.name: n for n in nodes}

    def strings(text: str) -> list[str]:
        node = by_name[text.split(":")[0]]
        return [s.decode() for s in tf.make_ndarray(node.attr["value"].tensor).ravel().tolist()]

    pairs = []
    for node in nodes:
        if node.op not in ("Assign", "AssignVariableOp"):
            continue
        value = node.input[1]
        while value.split(":")[0] in by_name and by_name[value.split(":")[0]].op == "Identity":
            value = by_name[value.split(":")[0]].input[0]
        restore = by_name.get(value.split(":")[0])
        if restore is None or restore.op != "RestoreV2":
            continue
        last = value.split(":")[-1]
        index = int(last) if ":" in value else 0
        key, spec = strings(restore.input[1])[index], strings(restore.input[2])[index]
        target = node.input[0].split(":")[0]
        pairs.append((arguments.get(target, target), (key, spec)))
    return pairs


def _signature_tensors(
    meta: Any, signature: str, inputs: Sequence[str], outputs: Sequence[str]
) -> tuple[tuple[SourceTensor, ...], tuple[SourceTensor, ...]]:
    definition = meta.signature_def[signature]
    taken = [t for name in sorted(definition.inputs) for t in _tensors(name, definition.inputs[name])]
    taken = name_parts(taken, partial(_reads_splits, meta.graph_def))
    given = [
        t
        for name in sorted(definition.outputs)
        for t in _tensors(name, definition.outputs[name], output=True)
    ]
    return choose(taken, inputs, "--inputs"), choose(given, outputs, "--outputs")


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
                function = functions.get(_called(node)) or functions.get(node.op)
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


def _named_tensors(
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
    _refuse_unregistered(graph_def, path)
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


def _checkpoint_prefix(path: Path) -> Path | None:
    """The prefix of a checkpoint that has a meta graph: from the .meta file, the prefix itself, or the newest
    of a directory."""
    if path.suffix == ".meta":
        path = path.with_suffix("")
    if path.is_dir():
        latest = tf.train.latest_checkpoint(str(path))
        if latest is None:
            return None
        path = Path(latest)
    return path if Path(f"{path}.meta").is_file() else None


def _refuse_unregistered(graph_def: Any, path: Path) -> None:
    own = {f.signature.name for f in graph_def.library.function}
    nodes = [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]
    missing = [
        Unsupported(
            n.name,
            n.op,
            f"{path.name} needs a custom op that this TensorFlow does not have; compute it before the model, "
            "or replace it by registered ops",
        )
        for n in nodes
        if n.op not in own and op_def_registry.get(n.op) is None
    ]
    if missing:
        raise UnsupportedOpsError(missing)


def _drop_empty_attributes(graph_def: Any) -> None:
    """Reading an absent attribute of a protobuf map puts an empty one there, which TensorFlow does not
    import."""
    for node in (*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)):
        for name in [k for k, v in node.attr.items() if v.WhichOneof("value") is None]:
            del node.attr[name]


def _parse(path: Path, proto: Any) -> None:
    if path.stat().st_size > _LARGEST_PROTO:
        raise ConversionError(
            f"{path} has {path.stat().st_size >> 20} MiB; a protobuf holds 2 GiB. Its weights must be "
            "variables in a checkpoint, not constants in the graph: export the model without freezing it"
        )
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise ConversionError(f"{path} is damaged, it does not parse: {error}") from error


def _parse_text(path: Path, proto: Any) -> None:
    try:
        text_format.Parse(path.read_text(), proto)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConversionError(
            f"{path} is damaged, it does not parse as a {type(proto).__name__}: {error}"
        ) from error
