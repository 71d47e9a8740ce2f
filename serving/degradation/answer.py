"""A model at a level of degradation: what stands in its place for one request."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from urllib.parse import quote

import numpy as np

from jaxrank.manifest import Manifest
from serving.degradation.config import CandidatesStep, DegradationError, History, Reductions
from serving.degradation.reductions import (
    check_reductions,
    check_replacement,
    choose,
    of_candidates,
    priors,
    rank_below,
    shorten,
    take_candidates,
)
from serving.degradation.tally import Tally
from serving.errors import DeadlineError, ModelNotFoundError, ModelUnavailableError, OverloadedError
from serving.model import Model
from serving.scheduling import Urgency
from serving.tiers.budget import LookupBudget

DEGRADATION = "jaxrank-degradation"
"""Name of the gRPC trailing metadata, and of the HTTP header, that says what a request went without."""

Features = Mapping[str, np.ndarray]
Scores = dict[str, np.ndarray]
Lend = Callable[[str], AbstractContextManager[tuple[Model, int]]]
"""A served model by name, and its version. Raises `ModelNotFoundError` or `ModelUnavailableError`."""

_ABSENT = (ModelNotFoundError, ModelUnavailableError)


class DegradedModel:
    """`Model.refuse_late` and `Model.predict` of one request at a level.

    A step that does not fit the model, or names a model that is not served, is skipped; that is counted, told
    to the client, and logged once: under overload, an answer of higher quality is worth more than none.

    Attributes:
        by_other: whether another model was asked, whose scores or fault may be in the answer.
    """

    def __init__(self, model: Model, level: int, reductions: Reductions, lend: Lend, tally: Tally):
        self._model, self._level, self._reductions = model, level, reductions
        self._lend, self._tally = lend, tally
        self._remarks = [f"level={level}"]
        self.by_other = False

    def refuse_late(self, urgency: Urgency) -> None:
        """As `Model.refuse_late`, for the model that will answer."""
        if self._reductions.model is not None:
            try:
                with self._lend(self._reductions.model) as (other, _):
                    return other.refuse_late(urgency)
            except _ABSENT:  # `predict` says so
                pass
        self._model.refuse_late(urgency)

    def predict(
        self,
        inputs: Features,
        outputs: Sequence[str] | None,
        urgency: Urgency,
        budget: LookupBudget | None = None,
        prepared: bytes | None = None,
    ) -> Scores:
        """As `Model.predict`, with the level's reductions. Says in `urgency.remarks` what was left out. The
        own histories of a request that was prepared stay whole: its state was made of them."""
        signature = self._model.manifest.signature
        names = [t.name for t in signature.outputs] if outputs is None else list(outputs)
        step = self._reductions.candidates
        if step is not None and step.rest is not None:  # the turn goes on: two models are asked
            urgency = replace(urgency, turn_over=lambda: None)

        def own(features: Features) -> Scores:
            return self._model.predict(features, names, urgency, budget, prepared)

        def other(features: Features, name: str) -> Scores | None:
            return self._by_other(name, features, names, urgency, budget)

        history = self._reductions.history
        if prepared is not None and len(kept := of_candidates(history, signature)) < len(history):
            history = kept
            self._remarks.append("skipped=history")
        found = self._reduced(inputs, history, own, other)
        if self._level:
            urgency.remarks[DEGRADATION] = ";".join(self._remarks)
        return found

    def _reduced(
        self,
        inputs: Features,
        history: History,
        own: Callable[[Features], Scores],
        other: Callable[[Features, str], Scores | None],
    ) -> Scores:
        wanted, manifest = self._reductions, self._model.manifest
        if history and self._fits("history", Reductions(history), manifest):
            inputs, dropped = shorten(inputs, manifest.signature, history)
            self._remarks.append(f"history=-{dropped}")
            self._tally.count(history_values=dropped)

        def score(features: Features) -> Scores:
            found = None if wanted.model is None else other(features, wanted.model)
            return own(features) if found is None else found

        step = wanted.candidates
        if step is None or not self._fits("candidates", Reductions({}, step), manifest):
            return score(inputs)
        chosen = choose(inputs, step)
        if chosen.all():
            return score(inputs)
        return self._fewer(step, chosen, inputs, score, other)

    def _fewer(
        self,
        step: CandidatesStep,
        chosen: np.ndarray,
        inputs: Features,
        score: Callable[[Features], Scores],
        other: Callable[[Features, str], Scores | None],
    ) -> Scores:
        """The chosen candidates scored, the others ranked below them."""
        signature = self._model.manifest.signature
        exact = score(take_candidates(inputs, signature, chosen))
        by_other: Scores = {}
        if step.rest is not None:
            try:
                by_other = other(take_candidates(inputs, signature, ~chosen), step.rest) or {}
            except (
                OverloadedError,
                DeadlineError,
            ) as error:  # the best are scored: the prior orders the rest
                self._skip(f"rest:{quote(step.rest)}", error)
        found, order = {}, priors(inputs, step)
        for name, scores in exact.items():
            if name in by_other:
                order[~chosen] = by_other[name].reshape(-1)
            found[name] = rank_below(scores, chosen, order)
        self._remarks.append(f"candidates={int(chosen.sum())}/{len(chosen)}")
        self._tally.count(candidates_ranked_below=int((~chosen).sum()))
        return found

    def _by_other(
        self,
        name: str,
        inputs: Features,
        outputs: Sequence[str],
        urgency: Urgency,
        budget: LookupBudget | None,
    ) -> Scores | None:
        """The scores of another served model; None where that does not answer."""
        try:
            with self._lend(name) as (other, version):
                check_replacement(other.manifest, self._model.manifest)
                features = {spec.name: inputs[spec.name] for spec in other.manifest.signature.inputs}
                self.by_other = True
                found = other.predict(features, outputs, urgency, budget)
        except (DegradationError, *_ABSENT) as error:
            self._skip(f"model:{quote(name)}", error)
            return None
        self._remarks.append(f"model={quote(name)}:{version}")
        self._tally.count(other_model=1)
        return found

    def _fits(self, step: str, reductions: Reductions, manifest: Manifest) -> bool:
        try:
            check_reductions(reductions, manifest)
        except DegradationError as error:
            self._skip(step, error)
            return False
        return True

    def _skip(self, step: str, error: Exception) -> None:
        self._remarks.append(f"skipped={step}")
        self._tally.skip(step, error)
