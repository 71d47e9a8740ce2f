"""Bounds on what lower precision may do to a ranking:
`auc:1e-4,gauc:1e-4,top50:0.999,inversions:1e-3,abs:1e-3`."""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from jaxrank import ranking
from jaxrank.certificate import TOLERANCE, Example
from jaxrank.manifest import KeptMetric
from mlir_pipeline.errors import CompileError

Outputs = Mapping[str, np.ndarray]

METRICS = "auc, gauc, top<k> (such as top50), inversions, abs"
_TOP_SHARE = 0.1


@dataclass(frozen=True)
class Bound:
    """A metric and how far it may go."""

    metric: str
    limit: float
    """The largest change; of top<k>, the smallest overlap."""

    @property
    def k(self) -> int | None:
        """Of top<k>, the k."""
        return int(self.metric[3:]) if self.metric.startswith("top") else None

    def used(self, value: float) -> float:
        """Share of what is allowed that a value uses up; more than 1 breaks the bound. A NaN breaks it."""
        loss, allowed = (1 - value, 1 - self.limit) if self.k is not None else (value, self.limit)
        if math.isnan(loss):
            return math.inf
        if loss <= 0:
            return 0.0
        return loss / allowed if allowed > 0 else math.inf


def parse_bounds(text: str) -> tuple[Bound, ...]:
    """Reads `metric:limit` pairs, separated by commas.

    Raises `CompileError` for a metric that does not exist (all are listed) and for a limit that is no limit.
    """
    found: dict[str, Bound] = {}
    for part in filter(None, (p.strip() for p in text.split(","))):
        metric, colon, number = part.partition(":")
        if metric not in ("auc", "gauc", "inversions", "abs") and not re.fullmatch(r"top[1-9]\d*", metric):
            raise CompileError(f"--keep {part}: there is no metric {metric!r}; metrics are: {METRICS}")
        try:
            limit = float(number) if colon else math.nan
        except ValueError:
            limit = math.nan
        is_top = metric.startswith("top")
        if not (0 < limit <= 1 if is_top else 0 <= limit < math.inf):
            wanted = (
                "a share from 0 to 1, such as 0.999" if is_top else "a number of at least 0, such as 1e-4"
            )
            raise CompileError(f"--keep {part}: {metric} needs {wanted}, as in {metric}:{wanted.split()[-1]}")
        if metric in found:
            raise CompileError(f"--keep {text}: {metric} is given twice")
        found[metric] = Bound(metric, limit)
    if not found:
        raise CompileError(
            f"--keep {text!r} names no bound; give some of {METRICS}, as in abs:1e-3,top50:0.999"
        )
    return tuple(found.values())


def as_bounds(kept: Sequence[KeptMetric]) -> tuple[Bound, ...]:
    """The bounds that a bundle was held to."""
    return tuple(Bound(k.metric, k.bound) for k in kept)


def measure(
    bounds: Sequence[Bound], examples: Sequence[Example], found: Sequence[Outputs]
) -> dict[str, float]:
    """The value of each bound's metric, the worst of all outputs and columns. Only float outputs are
    compared.

    - `auc`: change of the AUC over the rows of all requests. Labels are those recorded; a column without any
      takes the best tenth of each request's rows by TensorFlow's scores.
    - `gauc`: change of the AUC within each request, averaged with the rows as weights; requests of which all
      rows have one label are left out.
    - `top<k>`: overlap of the k best rows, averaged over the requests that have more than k (1 without any).
    - `inversions`: share of the pairs that TensorFlow orders by more than 1e-5 and that are ordered
    differently.
    - `abs`: largest absolute error.
    """
    columns = [list(_columns(name, examples, found)) for name in _float_outputs(examples)]
    rankings = [column for output in columns for column in output]
    return {bound.metric: _worst(bound, [_value(bound, column) for column in rankings]) for bound in bounds}


def kept(bounds: Sequence[Bound], values: Mapping[str, float]) -> tuple[KeptMetric, ...]:
    """Bounds and values as the manifest has them."""
    return tuple(KeptMetric(metric=b.metric, bound=b.limit, value=values[b.metric]) for b in bounds)


def used(bounds: Sequence[Bound], values: Mapping[str, float]) -> float:
    """Share of the tightest bound that is used up; more than 1 breaks it."""
    return max((bound.used(values[bound.metric]) for bound in bounds), default=0.0)


def described(bounds: Sequence[Bound], values: Mapping[str, float]) -> str:
    """`abs 2.1e-03 (bound 1e-03, broken), top50 1 (bound 0.999)`."""
    return ", ".join(
        f"{b.metric} {values[b.metric]:.4g} (bound "
        f"{b.limit:g}{', broken' if b.used(values[b.metric]) > 1 else ''})"
        for b in bounds
    )


@dataclass(frozen=True)
class _Rows:
    """One request's scores of one column."""

    expected: np.ndarray
    found: np.ndarray
    labels: np.ndarray


def _float_outputs(examples: Sequence[Example]) -> list[str]:
    return [name for name, value in examples[0].outputs.items() if value.dtype.kind == "f"]


def _columns(name: str, examples: Sequence[Example], found: Sequence[Outputs]) -> Iterator[list[_Rows]]:
    """For each column of an output, its rows request by request."""
    pairs = [
        (e.outputs[name].reshape(e.rows, -1), f[name].reshape(e.rows, -1), e)
        for e, f in zip(examples, found, strict=True)
    ]
    for i in range(min(expected.shape[1] for expected, _, _ in pairs)):
        column = []
        for expected, actual, example in pairs:
            scores = expected[:, i].astype(np.float64)
            recorded = example.labels.get(name)
            labels = _top_rows(scores) if recorded is None else recorded.reshape(example.rows, -1)[:, i]
            column.append(_Rows(scores, actual[:, i].astype(np.float64), labels.astype(bool)))
        yield column


def _top_rows(scores: np.ndarray) -> np.ndarray:
    k = max(round(len(scores) * _TOP_SHARE), 1)
    return scores >= np.sort(scores)[-k]


def _value(bound: Bound, column: Sequence[_Rows]) -> float:
    if bound.metric == "abs":
        return max(_abs_error(r.expected, r.found) for r in column)
    if bound.metric == "inversions":
        counts = [ranking.inversions(r.expected, r.found, TOLERANCE) for r in column]
        lost = any(not np.array_equal(np.isnan(r.expected), np.isnan(r.found)) for r in column)
        return math.nan if lost else sum(i for i, _ in counts) / max(sum(o for _, o in counts), 1)
    if bound.k is not None:
        shares = [
            ranking.top_overlap(r.expected, r.found, bound.k) for r in column if len(r.labels) > bound.k
        ]
        return sum(shares) / len(shares) if shares else 1.0
    score = _auc if bound.metric == "auc" else _gauc
    before, after = score(column, lambda r: r.expected), score(column, lambda r: r.found)
    return 0.0 if math.isnan(before) else abs(before - after)


def _auc(column: Sequence[_Rows], scores: Callable[[_Rows], np.ndarray]) -> float:
    return ranking.auc(
        np.concatenate([r.labels for r in column]), np.concatenate([scores(r) for r in column])
    )


def _gauc(column: Sequence[_Rows], scores: Callable[[_Rows], np.ndarray]) -> float:
    parts = [(ranking.auc(r.labels, scores(r)), len(r.labels)) for r in column]
    parts = [(value, rows) for value, rows in parts if not math.isnan(value)]
    total = sum(rows for _, rows in parts)
    return sum(value * rows for value, rows in parts) / total if total else math.nan


def _worst(bound: Bound, values: Sequence[float]) -> float:
    if not values:
        return 1.0 if bound.k is not None else 0.0
    if any(map(math.isnan, values)):
        return math.nan
    return min(values) if bound.k is not None else max(values)


def _abs_error(expected: np.ndarray, found: np.ndarray) -> float:
    same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    errors = np.abs(np.subtract(expected, found, where=~same, out=np.zeros_like(expected)))
    return float(np.max(np.where(np.isnan(errors), np.inf, errors), initial=0.0))
