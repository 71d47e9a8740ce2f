"""A graph that can be run: its variables restored and its lookup tables filled when the first answer is asked
for."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2

from converters.checkpoint import Checkpoint
from converters.errors import ConversionError
from converters.graph_files import drop_empty_attributes
from converters.saved_weights import restored_by_graph
from converters.source import TableContents, Weight, refused, said

_TABLE_INITIALIZERS = {
    "InitializeTable",
    "InitializeTableV2",
    "InitializeTableFromTextFile",
    "InitializeTableFromTextFileV2",
    "LookupTableImport",
    "LookupTableImportV2",
}


@dataclass
class RunnableGraph:
    """A graph that can be run. The session is opened when the first answer is asked for."""

    graph_def: Any
    restore: Callable[[Any, Any], None] = lambda session, graph: None
    initialize: Callable[[Any, Any], None] = lambda session, graph: None
    _sessions: dict[bool, Any] = field(default_factory=dict)
    _tables: dict[str, TableContents] = field(default_factory=dict)

    def session(self, *, variables: bool) -> Any:
        """A session with its lookup tables filled and, where asked for, its variables restored."""
        if variables not in self._sessions:
            drop_empty_attributes(self.graph_def)
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


def restore_variables(
    session: Any, meta: Any, checkpoint: Checkpoint | None, weights: Mapping[str, Weight]
) -> None:
    """Runs the graph's own restore op, and assigns the weights that it leaves out. Raises `ConversionError`
    if the checkpoint does not fit."""
    saver = meta.saver_def
    if checkpoint is None:
        return
    by_restore_op = restored_by_graph(meta.graph_def)
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


def fill_tables(session: Any, meta: Any, assets: Path | None) -> None:
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
