"""Cheaper requests: histories cut short, fewer candidates. Functions of features that were checked
(`serving.validation`), and still fit the signature afterwards."""

from collections.abc import Mapping

import numpy as np

from jaxrank.manifest import Manifest, Signature, TensorSpec
from serving.composites import composites
from serving.degradation.config import CandidatesStep, DegradationError, History, Reductions

Inputs = Mapping[str, np.ndarray]


def check_reductions(reductions: Reductions, manifest: Manifest) -> None:
    """Raises `DegradationError` for steps that a model does not allow; the message names the feature."""
    for feature in reductions.history:
        _check_history(feature, manifest.signature)
    if reductions.candidates is not None:
        _check_candidates(reductions.candidates, manifest)


def check_replacement(other: Manifest, of: Manifest) -> None:
    """Raises `DegradationError` unless `other` answers a model's requests: with some of its inputs and all of
    its outputs, of the same dtypes and shapes."""
    for kind in ("inputs", "outputs"):
        theirs = {s.name: s for s in getattr(other.signature, kind)}
        ours = {s.name: s for s in getattr(of.signature, kind)}
        missing = sorted(theirs.keys() - ours.keys() if kind == "inputs" else ours.keys() - theirs.keys())
        if missing:
            raise DegradationError(f"the {kind} of the two models differ in {', '.join(missing)}")
        for name in theirs.keys() & ours.keys():
            a, b = theirs[name], ours[name]
            if (a.dtype, a.shape, a.scope, a.part) != (b.dtype, b.shape, b.scope, b.part):
                raise DegradationError(
                    f"{name!r} is {a.scope} {a.dtype} {_shown(a)} of the other model and {b.scope} {b.dtype} "
                    f"{_shown(b)} of this one"
                )
    if not other.row_wise and of.row_wise:
        raise DegradationError("the other model mixes the candidates of a request, and this one does not")


def _check_history(feature: str, signature: Signature) -> None:
    found = [s for s in signature.inputs if feature in (s.feature, s.name)]
    if not found:
        known = sorted({s.feature or s.name for s in signature.inputs})
        raise DegradationError(f"there is no feature {feature!r}; the model takes: {', '.join(known)}")
    spec = found[0]
    if spec.part == "rows" and (len(spec.shape) < 2 or spec.shape[1] is not None):
        raise DegradationError(
            f"feature {feature!r} has the fixed shape {_shown(spec)}: cutting it saves nothing; name a model "
            "with a shorter history in a step of kind 'model'"
        )
    if spec.part == "sparse_shape" or (spec.part != "rows" and feature != spec.feature):
        raise DegradationError(f"{feature!r} is a part of {spec.feature!r}; name the feature")


def _check_candidates(step: CandidatesStep, manifest: Manifest) -> None:
    if not manifest.row_wise:
        raise DegradationError(
            "this model's scores depend on all candidates of a request, so none of them can be left out"
        )
    spec = next((s for s in manifest.signature.inputs if s.name == step.prior), None)
    if spec is None or spec.scope != "candidate" or spec.part != "rows" or len(spec.shape) not in (1, 2):
        raise DegradationError(
            f"the prior {step.prior!r} is no candidate input of shape [N] or [N, columns]"
            + ("" if spec is None else f", it is {spec.scope} {_shown(spec)}")
        )
    columns = 1 if len(spec.shape) == 1 else spec.shape[1]
    if spec.dtype in ("string", "bool") or columns is None or step.column >= columns:
        raise DegradationError(
            f"the prior {step.prior!r} is {spec.dtype} {_shown(spec)}; it has no numbers in column "
            f"{step.column}"
        )
    for output in manifest.signature.outputs:
        if not output.dtype.startswith("float") or output.shape not in ((None,), (None, 1)):
            raise DegradationError(
                f"output {output.name!r} is {output.dtype} {_shown(output)}: what is not one score for each "
                "candidate has no value for candidates that are not scored"
            )


def _shown(spec: TensorSpec) -> str:
    return f"[{', '.join('N' if d is None else str(d) for d in spec.shape)}]"


def of_candidates(history: History, signature: Signature) -> History:
    """Without the request's own features."""
    own = {spec.feature or spec.name for spec in signature.inputs if spec.scope == "request"}
    return {feature: cut for feature, cut in history.items() if feature not in own}


def shorten(inputs: Inputs, signature: Signature, history: History) -> tuple[dict[str, np.ndarray], int]:
    """Features whose rows have at most the given number of values, and how many values were dropped.

    A sparse feature keeps the first or last of a row's stored values where they are, and its shape.
    """
    features = composites(signature)
    found, dropped = dict(inputs), 0
    for feature, (length, keep) in history.items():
        parts = features.get(feature)
        if parts is None:
            value = inputs[feature]
            found[feature] = (
                value[:, :length] if keep == "first" else value[:, max(value.shape[1] - length, 0) :]
            )
            dropped += value.size - found[feature].size
        elif "sparse_indices" in parts:
            indices, values = parts["sparse_indices"][0].name, parts["sparse_values"][0].name
            rows = inputs[indices][:, 0]
            counts = np.bincount(rows, minlength=int(rows.max(initial=-1)) + 1)
            mask = _ends(counts, length, keep)
            found[indices], found[values] = inputs[indices][mask], inputs[values][mask]
            dropped += int(mask.size - mask.sum())
        else:
            outer, *inner = parts["row_splits"]
            counts = np.diff(inputs[outer.name])
            mask = _ends(counts, length, keep)
            found[outer.name] = _splits(np.minimum(counts, length), inputs[outer.name].dtype)
            for spec in inner:
                found[spec.name], mask = _chosen_splits(inputs[spec.name], mask)
            values = parts["flat_values"][0].name
            found[values] = inputs[values][mask]
            dropped += int(mask.size - mask.sum())
    return found, dropped


def choose(inputs: Inputs, step: CandidatesStep) -> np.ndarray:
    """`[N]` bools: the `exact` candidates with the highest prior. Of equal ones the earlier are first; a NaN
    is below everything."""
    prior = priors(inputs, step)
    chosen = np.zeros(len(prior), bool)
    chosen[np.argsort(-prior, kind="stable")[: step.exact]] = True
    return chosen


def priors(inputs: Inputs, step: CandidatesStep) -> np.ndarray:
    """`[N]` float64."""
    value = inputs[step.prior]
    column = value if value.ndim == 1 else value[:, step.column]
    return np.nan_to_num(column.astype(np.float64), nan=-np.inf, posinf=np.inf, neginf=-np.inf)


def take_candidates(inputs: Inputs, signature: Signature, chosen: np.ndarray) -> dict[str, np.ndarray]:
    """The features of the chosen candidates (`[N]` bools), in their order."""
    found = dict(inputs)
    for spec in signature.inputs:
        if spec.scope == "candidate" and spec.part == "rows":
            found[spec.name] = inputs[spec.name][chosen]
    for parts in composites(signature).values():
        specs = next(iter(parts.values()))
        if specs[0].scope != "candidate":
            continue
        if "sparse_indices" in parts:
            indices, values, shape = (
                parts[kind][0].name for kind in ("sparse_indices", "sparse_values", "sparse_shape")
            )
            mask = chosen[inputs[indices][:, 0]]
            moved = inputs[indices][mask].copy()
            moved[:, 0] = (np.cumsum(chosen) - 1)[moved[:, 0]]
            found[indices], found[values] = moved, inputs[values][mask]
            found[shape] = np.concatenate([[int(chosen.sum())], inputs[shape][1:]]).astype(np.int64)
        else:
            mask = chosen
            for split in parts["row_splits"]:
                found[split.name], mask = _chosen_splits(inputs[split.name], mask)
            values = parts["flat_values"][0].name
            found[values] = inputs[values][mask]
    return found


def rank_below(exact: np.ndarray, chosen: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Scores of all candidates: those that were computed, and below the least finite one the others by
    `order`.

    Args:
        exact: `[K]` or `[K, 1]` float scores of the chosen candidates, in their order.
        chosen: `[N]` bools, K of them true.
        order: `[N]` numbers, of which those of candidates that are not chosen are read; higher is better.

    Returns:
        `[N]` or `[N, 1]` of `exact`'s dtype. Below a positive score the others are positive, too, so that a
        probability stays one; equal ones of `order` get scores in the order in which they were sent.
    """
    scores = np.empty((len(chosen), *exact.shape[1:]), exact.dtype)
    scores[chosen] = exact
    others = np.flatnonzero(~chosen)
    ranks = np.empty(len(others), np.float64)
    ranks[np.argsort(-order[others], kind="stable")] = np.arange(1, len(others) + 1)
    finite = exact[np.isfinite(exact)]
    floor = float(finite.min()) if finite.size else 0.0
    depth = floor if floor > 0 else max(abs(floor), 1.0)
    below = floor - depth * ranks / (len(others) + 1)
    scores[others] = below.reshape(-1, *([1] * (exact.ndim - 1)))
    return scores


def _ends(counts: np.ndarray, length: int, keep: str) -> np.ndarray:
    """For rows of so many values that lie end to end: which values stay."""
    starts = np.cumsum(counts) - counts
    place = np.arange(int(counts.sum())) - np.repeat(starts, counts)
    return place < length if keep == "first" else place >= np.repeat(counts, counts) - length


def _chosen_splits(splits: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Row splits of the rows in `mask`, and the mask of what lies below them."""
    counts = np.diff(splits)
    return _splits(counts[mask], splits.dtype), np.repeat(mask, counts)


def _splits(counts: np.ndarray, dtype: np.dtype) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(counts)]).astype(dtype)
