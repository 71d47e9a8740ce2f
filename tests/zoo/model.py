"""What a model of the zoo is: a builder, a request generator, and TensorFlow's own answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

Features = dict[str, np.ndarray]
"""Raw features of one request by input name; strings are object arrays of bytes. Inputs of request scope have
one row, the others one for each candidate."""

Style = Literal[
    "keras3",
    "tf2_module",
    "tf1_saved_model",
    "feature_columns",
    "frozen_graph",
    "tf1_checkpoint",
    "keras_file",
    "h5_file",
]


USER_INPUTS = ("user_*",)
"""The pattern of request inputs in models whose signature has `[None, ...]` for all of them."""


class Save(Protocol):
    """Writes the artifact into a directory, and returns the path that the converter takes."""

    def __call__(self, directory: Path, width: int = 1) -> Path: ...


class Request(Protocol):
    """Draws the raw features of one user against `rows` candidates."""

    def __call__(self, rows: int, seed: int) -> Features: ...


def take_row(features: Mapping[str, np.ndarray], row: int) -> Features:
    """The request with one candidate left, for inputs that are all dense: those of one row are the user's."""
    return {name: value if len(value) == 1 else value[row : row + 1] for name, value in features.items()}


@dataclass(frozen=True)
class ZooModel:
    """One ranking model and everything that a conversion test needs to know of it."""

    name: str
    """Identifier, unique in the zoo."""

    style: Style
    """How the team saved it."""

    summary: str
    """What is in it, in one line for the coverage table."""

    save: Save
    """`(directory, width=1) -> path`; `width` multiplies the hidden sizes, never the tables' rows."""

    request: Request
    """`(rows, seed) -> features`: one user against `rows` candidates, with out-of-vocabulary ids, empty and
    non-ASCII strings, and empty bags where the model has them."""

    reference: Callable[[Path, Mapping[str, np.ndarray]], Features]
    """`(path, features) -> outputs`: what TensorFlow itself answers from the saved artifact."""

    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the conversion: `request_inputs`, `signature`, `inputs`, `outputs`."""

    tolerance: float = 1e-5
    """Largest error: absolute for values up to 1, relative to the value beyond. 1e-5 is what float32 sums in
    another order need; more needs a `reason`."""

    reason: str = ""
    """Why the tolerance is more than 1e-5."""

    row_wise: bool = True
    """False where the score of a candidate depends on the other candidates of the request."""

    take: Callable[[Mapping[str, np.ndarray], int], Features] = take_row
    """`(features, row) -> features`: the same request with that candidate alone."""
