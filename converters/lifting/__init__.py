"""Layers from arithmetic: ONNX to ONNX rewrites that put back what TensorFlow took apart.

The writer calls `lift_graph`, which runs the passes of `PASSES` until none finds anything, on the model's
graph and on the bodies of its loops; `lift` does so from ONNX to ONNX. A pass is a function
`(Graph) -> bool` in a file of its own that states its pattern; the patterns are written in
`lifting/pattern.py`'s small language. Each rewrite is exact up to float rounding. Layers that ONNX knows get
its operators (LayerNormalization, Gelu, PRelu, ...), others are in the domain "jaxrank" (Linear, Dice, ...).
"""

from collections.abc import Callable

import onnx

from converters.lifting.batch_norm import lift_batch_norm
from converters.lifting.constants import simplify_constants
from converters.lifting.dice import lift_dice
from converters.lifting.factorization_machine import lift_factorization_machine
from converters.lifting.gated_activations import lift_gated_activations
from converters.lifting.gelu import lift_gelu
from converters.lifting.graph import Graph
from converters.lifting.l2_normalize import lift_l2_normalize
from converters.lifting.layer_norm import lift_layer_norm
from converters.lifting.linear import lift_linear
from converters.lifting.prelu import lift_prelu
from converters.lifting.softmax import lift_softmax
from converters.lifting.softplus import lift_softplus
from converters.lifting.views import simplify_views

Pass = Callable[[Graph], bool]

# Dice and layer norm before batch norm, which would take their affine parts for its own; constants last, when
# those that are weights belong to layers.
PASSES: tuple[Pass, ...] = (
    simplify_views,
    lift_linear,
    lift_dice,
    lift_layer_norm,
    lift_gelu,
    lift_gated_activations,
    lift_prelu,
    lift_softplus,
    lift_softmax,
    lift_l2_normalize,
    lift_factorization_machine,
    lift_batch_norm,
    simplify_constants,
)


def lift(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same function with layers for arithmetic; every input and output keeps its name and shape."""
    graph = Graph(model)
    lift_graph(graph)
    graph.tidy()
    return graph.to_model()


def lift_graph(graph: Graph) -> None:
    """Runs the passes on a graph, or on a body of control flow, until none finds anything."""
    while any([step(graph) for step in PASSES]):
        pass
