"""The schema of `report.json`: what became of every op and input of a model, and how far the scores are from
TensorFlow's."""

from typing import Literal

import msgspec

from jaxrank.manifest import Certificate, OpPlacement, Signature, Source

REPORT_SCHEMA_VERSION = 1

ERROR_EDGES = tuple(10.0**e for e in range(-9, 1))
"""Edges of the error histogram: 1e-9, 1e-8, ... 1."""


class UnsupportedOp(msgspec.Struct, frozen=True, kw_only=True):
    """An op of the source graph that has no place in a bundle."""

    name: str
    op: str
    advice: str
    """Why, and what the model's owner can do about it."""


class TableUse(msgspec.Struct, frozen=True, kw_only=True):
    """An embedding table or vocabulary, and who reads it."""

    name: str
    kind: Literal["embedding", "vocabulary"]
    place: Literal["host", "dense"]
    """`dense`: small enough to stay in the dense program, on the device."""
    rows: int
    dim: int
    """Values of one row; 1 for a vocabulary."""
    dtype: str
    bytes: int
    readers: tuple[str, ...]
    """Host operators, or ops of the source graph where the table is in the dense half."""


class Removed(msgspec.Struct, frozen=True, kw_only=True):
    """Ops of the source graph that the bundle no longer has."""

    folded: int
    """Computed once, at conversion: nothing that a client sends reaches them."""
    frozen: int
    """Of those, how many only read variables and constants: weights that were frozen."""
    training: int = 0
    """Dropped because they act in training only: dropout, summaries, assertions, identity."""


class ScoreSample(msgspec.Struct, frozen=True, kw_only=True):
    """Scores of one output behind the plots: a sample of them, and the errors of all."""

    output: str
    expected: tuple[float, ...]
    found: tuple[float, ...]
    exact: int
    """Values without an error."""
    errors: tuple[int, ...]
    """Other values by their error (absolute up to 1, relative beyond): below `ERROR_EDGES[0]`, between each
    pair of edges, and at or above the last."""


class ConversionReport(msgspec.Struct, frozen=True, kw_only=True):
    """`report.json`."""

    schema_version: int = REPORT_SCHEMA_VERSION
    source: Source
    signature: Signature
    scope_reasons: dict[str, str]
    """Why each input (or composite feature) has its scope, by name."""
    ops: tuple[OpPlacement, ...]
    unsupported: tuple[UnsupportedOp, ...] = ()
    tables: tuple[TableUse, ...] = ()
    removed: Removed
    notes: tuple[str, ...] = ()
    """Decisions about the whole model, such as that it mixes candidates."""
    certificate: Certificate | None = None
    """None for a dry run, and where ops are unsupported."""
    scores: tuple[ScoreSample, ...] = ()
    counts: dict[str, dict[str, int]] = {}
    """Ops by place and type; filled when the report is written."""
