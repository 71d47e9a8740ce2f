"""The flat forms of one model: at a fixed number of rows for conversion, and with open rows, in a session,
for TensorFlow's values of any tensor."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow as tf

from converters.evaluate import evaluate
from converters.flat_graph import FlatGraph
from converters.plugins import Lowerings
from converters.source import SourceModel, SourceTensor, refused

Observe = Callable[[FlatGraph, int], Mapping[str, Sequence[int]]]
"""`(flat graph, its rows) -> shapes by source name`."""

_IN_MEMORY_BYTES = 1 << 30
"""Models with more weights than this are not restored for TensorFlow's answers: the live graph reads the rows
that a request needs."""


class FlatModel:
    """A source model with its live graph."""

    def __init__(self, source: SourceModel, lowerings: Lowerings | None = None):
        self.source = source
        self.lowerings = lowerings or {}

    def with_open_rows(self) -> FlatGraph:
        """The graph for any number of rows."""
        return self._evaluate(None)

    def at_rows(self, rows: int, observe: Observe | None = None) -> FlatGraph:
        """The graph with every open first dimension at `rows`, constants marked with what they add for each
        row more. `observe` knows shapes that TensorFlow cannot infer."""
        # Without observed shapes: what is seen on a few requests must not become a rule for more rows.
        more = [self._evaluate(rows + extra) for extra in (1, 2)]
        return self._with_shapes(rows, observe, with_more_rows=more)

    def _with_shapes(self, rows: int, observe: Observe | None, **options: Any) -> FlatGraph:
        flat = self._evaluate(rows, **options)
        shapes = {} if observe is None else observe(flat, rows)
        return self._evaluate(rows, shapes=shapes, **options) if shapes else flat

    def _evaluate(self, rows: int | None, **options: Any) -> FlatGraph:
        source = self.source
        return evaluate(
            source.graph_def,
            [t.tensor_name for t in source.outputs],
            {t.tensor_name: (tf.as_dtype(t.dtype), _shape(t, rows)) for t in source.inputs},
            source.weights,
            inputs_names={t.tensor_name: t.placeholder for t in source.inputs},
            contents=source.tables,
            lowerings={} if options.get("live") else self.lowerings,
            **options,
        )

    @cached_property
    def live(self) -> "LiveGraph":
        """TensorFlow's own graph, flat, with open rows."""
        return LiveGraph(self._evaluate(None, weights_as_constants=True, live=True), self.source.inputs)

    def predict(self, features: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """TensorFlow's outputs: of the model as exported, or, for tables that do not fit into memory, of the
        same ops with lookups that read the checkpoint's rows."""
        if sum(w.nbytes for w in self.source.weights.values()) <= _IN_MEMORY_BYTES:
            return self.source.predict(features)
        found = self.live.run([t.tensor_name for t in self.source.outputs], features)
        return dict(zip((t.name for t in self.source.outputs), found, strict=True))


class LiveGraph:
    """A flat graph in a session: TensorFlow's value of any tensor of the source graph, by source name."""

    def __init__(self, flat: FlatGraph, inputs: Sequence[SourceTensor]):
        self.flat = flat
        self._feeds = {t.name: flat.graph.get_tensor_by_name(f"{t.placeholder}:0") for t in inputs}
        self._session = tf.compat.v1.Session(graph=flat.graph)
        self._session.run(flat.initializers)

    def run(self, names: Sequence[str], features: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Values of source tensors. Raises `ConversionError` where TensorFlow refuses the features."""
        tensors = [self.flat.tensors[name] for name in names]
        feeds = {self._feeds[name]: value for name, value in features.items()}
        try:
            return [np.asarray(v) for v in self._session.run(tensors, feeds)]
        except (tf.errors.OpError, ValueError, TypeError) as error:
            raise refused(error) from error


def _shape(tensor: SourceTensor, rows: int | None) -> list[int | None]:
    """The shape at a number of rows. What a sparse or ragged feature holds is not known before it comes."""
    if tensor.part == "row_splits":
        return [None if rows is None else rows + 1]
    if tensor.part != "rows" or not tensor.shape:
        return list(tensor.shape)
    first = rows if tensor.shape[0] is None else tensor.shape[0]
    return [first, *tensor.shape[1:]]
