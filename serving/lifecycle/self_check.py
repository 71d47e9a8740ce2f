"""Whether the engine that will serve gives the scores that a bundle recorded."""

import itertools
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxrank import bundle as files
from jaxrank.certificate import CertificateError, Example, certify, read_examples
from jaxrank.manifest import Manifest, Target
from serving.lifecycle.errors import SelfCheckError
from serving.lifecycle.scoring import score
from serving.model import Model

MAX_REQUESTS = 100
MAX_ROWS = 2_000
"""Candidates of them in all: a few hundredths of a second, whatever was recorded."""


def recorded_requests(bundle: Path, manifest: Manifest) -> list[Example]:
    """The first of a bundle's recorded requests, with TensorFlow's outputs."""
    if files.EXAMPLES not in manifest.files:
        return []
    found, rows = [], 0
    for example in itertools.islice(read_examples(bundle), MAX_REQUESTS):
        rows += example.rows
        if found and rows > MAX_ROWS:
            break
        found.append(example)
    return found


def self_check(bundle: Path, model: Model) -> str:
    """Scores recorded requests and compares them with TensorFlow's outputs, within the certificate's
    tolerance. Returns what was done, for the log.

    A program of lower precision is held to twice the largest error of its own certificate: another CPU sums
    in another order. Scores are not compared where the tables are no longer those of the certificate, because
    they are in a store or took deltas.

    Raises `SelfCheckError` naming the output, its error and the tolerance, and what `score` raises.
    """
    examples = recorded_requests(bundle, model.manifest)
    found = [score(model, example.features) for example in examples]
    if why := model.not_as_certified:
        return f"{len(examples)} recorded requests scored, not compared: {why}"
    if examples:
        _compare(model, examples, found)
    return f"{len(examples)} recorded requests compared"


def _compare(model: Model, examples: list[Example], found: list[dict[str, np.ndarray]]) -> None:
    manifest = model.manifest
    outputs = {name for example in examples for name in example.outputs}
    stage = "the self-check" if model.target is None else f"the self-check on {model.target.name}"
    bounds = _bounds(manifest, model.target, outputs)
    for output, bound in bounds.items():
        expected = [Example(example.features, _only(example.outputs, output)) for example in examples]
        try:
            # That an output never changes is no fault here: these may be a few of the recorded requests.
            certify(
                stage,
                expected,
                [_only(value, output) for value in found],
                manifest.certificate.tolerance,
                outputs,
                bound=bound,
            )
        except CertificateError as error:
            raise SelfCheckError(f"{error}. Convert and compile the model again on such a machine") from error


def _bounds(manifest: Manifest, target: Target | None, outputs: set[str]) -> dict[str, float]:
    """The largest error of each output."""
    tolerance = manifest.certificate.tolerance
    bounds = dict.fromkeys(sorted(outputs), tolerance)
    if not manifest.precision or target is None:
        return bounds
    if target.certificate is None:  # compiled where it could not be run: only a NaN can be told from a score
        kept = max((k.bound for k in manifest.kept if k.metric == "abs"), default=float("inf"))
        return dict.fromkeys(bounds, kept)
    for certified in target.certificate.outputs:
        bounds[certified.output] = max(bounds[certified.output], 2 * certified.max_abs_error)
    return bounds


def _only(values: Mapping[str, np.ndarray], output: str) -> dict[str, np.ndarray]:
    return {output: values[output]} if output in values else {}
