"""Certificates of compiled programs: what serves is run on recorded requests and compared with TensorFlow."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from jaxrank import bundle as files
from jaxrank.certificate import Example, certify, load_examples
from jaxrank.manifest import Certificate, KeptMetric, Target
from jaxrank.towers import CANDIDATE_TILES, CANDIDATE_TOWER
from mlir_pipeline.precision.bounds import as_bounds
from mlir_pipeline.precision.choice import bounded_examples, check_bounds, check_scores
from serving.engines.batches import MAX_REQUESTS


def check(bundle: Path, target: Target) -> tuple[Certificate, tuple[KeptMetric, ...]]:
    """Runs every program of a compiled target, as the server would, on the bundle's recorded requests.

    Returns the certificate, which holds the worst of them, and the worst of the bounds that lower precision
    was held to. Raises `CertificateError` for scores beyond the tolerance or a bound.
    """
    # The certificate is about the code that will serve: the server's own. What was written just now is not
    # verified once more, and the tables are opened once for all programs.
    from serving.engines import load_engine
    from serving.host import HostProgramRunner
    from serving.model import Model

    manifest = files.read_manifest(bundle)
    host = HostProgramRunner(bundle, manifest)

    def scores(model: Model, examples: Sequence[Example]) -> list[dict[str, np.ndarray]]:
        if only != CANDIDATE_TILES:
            return [model.predict(e.features) for e in examples]
        found: list[dict[str, np.ndarray]] = []
        for start in range(0, len(examples), MAX_REQUESTS):
            found += model.predict_batch([e.features for e in examples[start : start + MAX_REQUESTS]])
        return found

    examples = load_examples(bundle)
    constants = {o.output for o in host.program.outputs if o.constant}
    iree = target.engine == "iree"
    stage = target.name if iree or not target.module else f"{target.name} ({target.engine})"
    certificates, kept = [], []
    programs: list[str | None]
    programs = [CANDIDATE_TOWER, *(p.function for p in target.programs)] if iree else [None]
    if target.batch is not None:
        programs.append(CANDIDATE_TILES)
    for only in programs:
        engine = load_engine(bundle, manifest, target, only=only) if target.module else None
        model = Model(manifest, host, engine, target)
        try:
            found = scores(model, examples)
            if not manifest.precision:
                tolerance = manifest.certificate.tolerance
                certificates.append(certify(stage, examples, found, tolerance, constants))
                continue
            bounds = as_bounds(manifest.kept)
            certificates.append(check_scores(stage, manifest, bounds, examples, found, constants))
            bounded = bounded_examples(bundle)
            kept.append(check_bounds(stage, bounds, bounded, scores(model, bounded)))
        finally:
            model.close()
    worst = [
        max(each, key=lambda o: o.max_abs_error)
        for each in zip(*(c.outputs for c in certificates), strict=True)
    ]
    return replace(certificates[0], outputs=tuple(worst)), _worst_metrics(kept)


def _worst_metrics(found: list[tuple[KeptMetric, ...]]) -> tuple[KeptMetric, ...]:
    """Of each metric the worst value: the smallest overlap, the largest of anything else."""
    return tuple(
        (min if each[0].metric.startswith("top") else max)(each, key=lambda k: k.value)
        for each in zip(*found, strict=True)
    )
