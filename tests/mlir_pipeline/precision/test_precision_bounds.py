"""Bounds on rankings, against their definitions written out."""

import math

import numpy as np
import pytest

from jaxrank import ranking
from jaxrank.certificate import Example
from mlir_pipeline.errors import CompileError
from mlir_pipeline.precision.bounds import measure, parse_bounds, used

ALL = parse_bounds("auc:1e-4,gauc:1e-4,top5:0.999,inversions:1e-3,abs:1e-3")


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_share_of_ordered_pairs(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 12, 40).astype(np.float64)  # with ties
    labels = rng.random(40) < 0.3
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    assert ranking.auc(labels, scores) == pytest.approx(np.mean(pairs), abs=1e-12)


def test_auc_of_one_class_is_no_number() -> None:
    assert math.isnan(ranking.auc(np.ones(3, bool), np.arange(3.0)))


def _requests(seed: int, *, labels: bool) -> tuple[list[Example], list[dict[str, np.ndarray]]]:
    """Three requests of 12, 30 and 3 rows, scores moved by noise."""
    rng = np.random.default_rng(seed)
    examples, found = [], []
    for rows in (12, 30, 3):
        scores = rng.random((rows, 1)).astype(np.float32)
        recorded = {"click": rng.random((rows, 1)) < 0.4} if labels else {}
        examples.append(Example({}, {"click": scores}, recorded))
        found.append({"click": scores + rng.normal(0, 0.1, scores.shape).astype(np.float32)})
    return examples, found


def _auc_of(labels: list[np.ndarray], scores: list[np.ndarray]) -> float:
    return ranking.auc(np.concatenate(labels), np.concatenate(scores))


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_recorded_labels(seed: int) -> None:
    examples, found = _requests(seed, labels=True)
    values = measure(ALL, examples, found)
    labels = [e.labels["click"][:, 0] for e in examples]
    before = [e.outputs["click"][:, 0].astype(np.float64) for e in examples]
    after = [f["click"][:, 0].astype(np.float64) for f in found]
    assert values["auc"] == pytest.approx(abs(_auc_of(labels, before) - _auc_of(labels, after)))
    both = [i for i, of in enumerate(labels) if 0 < of.sum() < len(of)]
    rows = [len(labels[i]) for i in both]
    change = [ranking.auc(labels[i], before[i]) - ranking.auc(labels[i], after[i]) for i in both]
    assert values["gauc"] == pytest.approx(abs(np.average(change, weights=rows)))
    # The request of three rows has no more than the five best.
    overlaps = [ranking.top_overlap(b, a, 5) for b, a in zip(before[:2], after[:2], strict=True)]
    assert values["top5"] == pytest.approx(np.mean(overlaps))
    assert values["abs"] == pytest.approx(
        max(np.abs(b - a).max() for b, a in zip(before, after, strict=True))
    )
    assert values["inversions"] > 0
    assert used(ALL, values) > 1


def test_without_labels_the_best_tenth_are_positive() -> None:
    examples, _ = _requests(0, labels=False)
    same = [{"click": e.outputs["click"]} for e in examples]
    assert measure(ALL, examples, same) == {"auc": 0, "gauc": 0, "top5": 1, "inversions": 0, "abs": 0}
    worst = [{"click": -e.outputs["click"]} for e in examples]
    assert measure(ALL, examples, worst)["gauc"] == pytest.approx(1)


def test_a_nan_breaks_every_bound_that_sees_it() -> None:
    examples, found = _requests(1, labels=False)
    found[1]["click"][0] = np.nan
    values = measure(ALL, examples, found)
    assert all(used([b], values) == math.inf for b in ALL if b.metric in ("inversions", "abs"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ndcg:1e-3", "there is no metric 'ndcg'; metrics are: auc, gauc, top<k>"),
        ("abs", "abs needs a number of at least 0"),
        ("abs:x", "abs needs a number of at least 0"),
        ("abs:-1", "abs needs a number of at least 0"),
        ("abs:nan", "abs needs a number of at least 0"),
        ("top50:50", "top50 needs a share from 0 to 1"),
        ("top0:1", "there is no metric 'top0'"),
        ("abs:1,abs:2", "abs is given twice"),
        (" ,", "names no bound"),
    ],
)
def test_bounds_that_are_none(text: str, message: str) -> None:
    with pytest.raises(CompileError, match=message):
        parse_bounds(text)
