"""Loads a model from each of the formats that teams have, without restoring its variables.

SavedModels of TensorFlow 1 and 2, frozen graphs, meta graphs with a checkpoint, and Keras files all come down
to one thing: a graph, its signature, and a checkpoint whose variables are views of its files. TensorFlow's
own answers come from a session on that same graph, which is what TensorFlow Serving runs.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2

from converters.checkpoint import Checkpoint
from converters.dataflow import VARIABLES
from converters.errors import ConversionError
from converters.graph_files import checkpoint_prefix, parse, parse_text, refuse_unregistered
from converters.runnable_graph import RunnableGraph, fill_tables, restore_variables
from converters.saved_weights import saved_weights
from converters.signature_tensors import named_tensors, signature_tensors
from converters.source import SourceModel, SourceTensor

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
    prefix = checkpoint_prefix(path)
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
        signature_tensors(meta, signature, inputs, outputs),
        signature,
        meta.signature_def[signature].method_name or PREDICT,
        warmup=warmup if warmup.is_file() else None,
        assets=path / "assets",
    )


def _serving_meta_graph(path: Path) -> Any:
    file = path / "saved_model.pb"
    proto = saved_model_pb2.SavedModel()
    if file.is_file():
        parse(file, proto)
    else:
        parse_text(path / "saved_model.pbtxt", proto)
    serving = [m for m in proto.meta_graphs if "serve" in m.meta_info_def.tags]
    if not serving:
        tags = [", ".join(m.meta_info_def.tags) for m in proto.meta_graphs]
        raise ConversionError(f"{path} has no graph tagged 'serve'; its graphs are tagged: {tags}")
    return min(serving, key=lambda m: len(m.meta_info_def.tags))


def _meta_graph(
    path: Path, prefix: Path, signature: str, inputs: Sequence[str], outputs: Sequence[str]
) -> SourceModel:
    meta = meta_graph_pb2.MetaGraphDef()
    parse(Path(f"{prefix}.meta"), meta)
    if signature in meta.signature_def:
        tensors = signature_tensors(meta, signature, inputs, outputs)
        method = meta.signature_def[signature].method_name or PREDICT
    else:
        tensors, method = named_tensors(meta.graph_def, inputs, outputs, path), PREDICT
    return _from_meta_graph(
        path, "checkpoint", meta, Checkpoint(prefix), tensors, signature, method, assets=prefix.parent
    )


def _frozen_graph(path: Path, inputs: Sequence[str], outputs: Sequence[str]) -> SourceModel:
    graph_def = tf.compat.v1.GraphDef()
    if path.suffix == ".pb":
        parse(path, graph_def)
    else:
        parse_text(path, graph_def)
    variables = [n.name for n in graph_def.node if n.op in VARIABLES]
    if variables:
        raise ConversionError(
            f"{path} is not frozen: it has {len(variables)} variables ({', '.join(variables[:3])}, ...) "
            "without values; give the checkpoint's .meta file instead, or freeze it"
        )
    meta = meta_graph_pb2.MetaGraphDef(graph_def=graph_def)
    tensors = named_tensors(graph_def, inputs, outputs, path)
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
    refuse_unregistered(graph_def, path)
    weights = saved_weights(meta, checkpoint)
    graph = RunnableGraph(
        graph_def,
        restore=lambda session, _: restore_variables(session, meta, checkpoint, weights),
        initialize=lambda session, _: fill_tables(session, meta, assets),
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
