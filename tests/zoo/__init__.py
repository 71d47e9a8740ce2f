"""TensorFlow ranking models as teams have them in production: the test set of the converter.

Each family of models is one file: builders that write an artifact with trained-like random weights, and
generators of fresh requests. `model.py` says what a zoo model is, `saving.py` writes artifacts, `weights.py`
draws weights, `drawing.py` draws raw features, and `references.py` asks TensorFlow for the scores.
"""

from tests.zoo import (
    factorization,
    feature_columns,
    graph_mode,
    interaction,
    keras_files,
    listwise,
    loops,
    multitask,
    preprocessing,
    recurrent,
    sequence,
    signatures,
    sparse_inputs,
)
from tests.zoo.model import Style, ZooModel

__all__ = ["ZOO", "Style", "ZooModel"]

ZOO: tuple[ZooModel, ...] = (
    *feature_columns.MODELS,
    *factorization.MODELS,
    *interaction.MODELS,
    *sequence.MODELS,
    *recurrent.MODELS,
    *multitask.MODELS,
    *listwise.MODELS,
    *preprocessing.MODELS,
    *sparse_inputs.MODELS,
    *graph_mode.MODELS,
    *loops.MODELS,
    *signatures.MODELS,
    *keras_files.MODELS,
)
