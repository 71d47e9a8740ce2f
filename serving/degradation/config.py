"""The degradation config: which steps the owner of a model allows when the server is overloaded.

A TOML or JSON file (docs/overload.md).
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from jaxrank.errors import JaxrankError

MAX_STEPS = 16

Positive = Annotated[int, msgspec.Meta(ge=1)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class DegradationError(JaxrankError):
    """The degradation config cannot be read, or does not fit a model; the message names the field."""


class HistoryStep(
    msgspec.Struct, frozen=True, kw_only=True, tag="history", tag_field="kind", forbid_unknown_fields=True
):
    """Each row of the named features keeps at most `length` values."""

    features: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]
    """Ragged or sparse features, or inputs whose second dimension the signature leaves open."""
    length: Positive
    keep: Literal["first", "last"] = "first"
    """Which end of a row stays."""


class CandidatesStep(
    msgspec.Struct, frozen=True, kw_only=True, tag="candidates", tag_field="kind", forbid_unknown_fields=True
):
    """The `exact` candidates with the highest prior are scored; the others are ranked below them."""

    exact: Positive
    prior: Name
    """A candidate input of numbers, `[N]` or `[N, columns]`: a score that an earlier stage gave."""
    column: Annotated[int, msgspec.Meta(ge=0)] = 0
    rest: Name | None = None
    """A served model that orders the others; the prior does without it."""


class ModelStep(
    msgspec.Struct, frozen=True, kw_only=True, tag="model", tag_field="kind", forbid_unknown_fields=True
):
    """Another served model answers: a smaller one, or one in lower precision."""

    model: Name


Step = HistoryStep | CandidatesStep | ModelStep
History = Mapping[str, tuple[int, str]]
"""Length and kept end by feature."""


class ModelSteps(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model: level n applies the first n steps; of steps of one kind, the later one wins."""

    steps: Annotated[tuple[Step, ...], msgspec.Meta(min_length=1, max_length=MAX_STEPS)]
    queue_ms: Annotated[float, msgspec.Meta(gt=0)] = 20
    """Mean wait of a request above which quality is given up."""
    fixed_level: Annotated[int, msgspec.Meta(ge=0, le=MAX_STEPS)] | None = None
    """Always this level: to measure what its quality is worth."""


class DegradationConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    models: dict[Name, ModelSteps]


@dataclass(frozen=True)
class Reductions:
    """What the first steps of a model come to.

    Attributes:
        model: who answers in the model's place.
    """

    history: History
    candidates: CandidatesStep | None = None
    model: str | None = None

    @property
    def models(self) -> tuple[str, ...]:
        """Other models that it needs."""
        rest = None if self.candidates is None else self.candidates.rest
        return tuple(name for name in (self.model, rest) if name is not None)


def reductions(steps: ModelSteps) -> tuple[Reductions, ...]:
    """For each level from 0."""
    found = [Reductions({})]
    for step in steps.steps:
        last = found[-1]
        match step:
            case HistoryStep():
                cut = dict.fromkeys(step.features, (step.length, step.keep))
                found.append(Reductions({**last.history, **cut}, last.candidates, last.model))
            case CandidatesStep():
                found.append(Reductions(last.history, step, last.model))
            case ModelStep():
                found.append(Reductions(last.history, last.candidates, step.model))
    return tuple(found)


def load_degradation_config(path: Path) -> DegradationConfig:
    """Reads a `.toml` or `.json` file. Raises `DegradationError`, which names the field at fault."""
    try:
        text = path.read_bytes()
        document = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text.decode())
    except OSError as error:
        raise DegradationError(f"the degradation config {path} cannot be read: {error.strerror}") from error
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise DegradationError(f"the degradation config {path} is not {kind}: {error}") from error
    try:
        config = msgspec.convert(document, DegradationConfig, strict=True)
    except msgspec.ValidationError as error:
        what, _, where = str(error).partition(" - at ")
        field = f"field {where.strip('`').removeprefix('$.')}: " if where else ""
        raise DegradationError(
            f"the degradation config {path}: {field}{what}; see docs/overload.md"
        ) from error
    for name, model in config.models.items():
        if (model.fixed_level or 0) > len(model.steps):
            raise DegradationError(
                f"the degradation config {path}: field models.{name}.fixed_level is {model.fixed_level}; the "
                f"model has {len(model.steps)} steps"
            )
        if name in {step.model for step in model.steps if isinstance(step, ModelStep)}:
            raise DegradationError(
                f"the degradation config {path}: field models.{name}.steps replaces the model by itself; "
                "name another served model"
            )
    return config
