"""What ONNX Runtime runs there: TensorFlow's dense half through tf2onnx, as in the suite `dense`, without its
weights, which the session is given."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from bench.peers import Task
from jaxrank.errors import JaxrankError

if TYPE_CHECKING:
    from bench.dense_build import Built

FILE = "source.onnx"
_SMALL = 16
"""Values that stay in the graph: ONNX Runtime sees shapes and indices when it plans."""


def write_onnx(
    built: "Built", directory: Path, reference: Callable[[np.ndarray], dict[str, Any]]
) -> dict[str, Any]:
    """Writes `source.onnx`. Returns what meta.json says about it: `columns` of the feature blocks, one for
    each input in order, and `weights` by initializer; or `refused`, why there is none.

    Args:
        reference: stores an array, and says where.
    """
    import onnx
    from onnx import numpy_helper

    try:
        graph = Task.of(built).graph
        model = onnx.load_from_string(graph.onnx())
    except JaxrankError as error:
        return {"refused": str(error)}
    weights = {}
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype.kind == "f" and array.size > _SMALL:
            weights[tensor.name] = reference(array)
            tensor.ClearField("raw_data")
            tensor.ClearField("float_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value="given to the session")
    (directory / FILE).write_bytes(model.SerializeToString())
    return {"refused": "", "weights": weights, "columns": msgspec.to_builtins(graph.columns)}
