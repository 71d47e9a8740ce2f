"""Losses of classifiers: scores `[N, C, d...]`, labels `[N, d...]`, weights `[C]`."""

import jax
import jax.numpy as jnp


def negative_log_likelihood(
    log_probabilities: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> jax.Array:
    """The negative log probability of each label, weighted by its class: `none`, their `sum`, or their `mean`
    by weight. Labels equal to `ignore_index` count nothing."""
    kept = jnp.ones(labels.shape, bool) if ignore_index is None else labels != ignore_index
    index = jnp.where(kept, labels, 0)
    found = jnp.take_along_axis(log_probabilities, jnp.expand_dims(index, 1), axis=1)
    dtype = log_probabilities.dtype
    weight = jnp.ones(labels.shape, dtype) if weights is None else weights[index]
    weight = jnp.where(kept, weight, 0).astype(dtype)
    loss = jnp.where(kept, -jnp.squeeze(found, 1) * weight, 0)
    if reduction == "none":
        return loss
    return jnp.sum(loss) if reduction == "sum" else jnp.sum(loss) / jnp.sum(weight)


def softmax_cross_entropy(
    scores: jax.Array,
    labels: jax.Array,
    weights: jax.Array | None = None,
    *,
    ignore_index: int | None = None,
    reduction: str = "mean",
) -> tuple[jax.Array, jax.Array]:
    """The loss, and the log probabilities `[N, C, d...]` it is of."""
    log_probabilities = jax.nn.log_softmax(scores, axis=1)
    loss = negative_log_likelihood(
        log_probabilities, labels, weights, ignore_index=ignore_index, reduction=reduction
    )
    return loss, log_probabilities
