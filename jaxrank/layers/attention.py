"""Scaled dot-product attention and rotary positions, with the options of ONNX's operators."""

import math
from typing import Any

import jax
import jax.numpy as jnp


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    mask: jax.Array | None = None,
    past_key: jax.Array | None = None,
    past_value: jax.Array | None = None,
    valid_lengths: jax.Array | None = None,
    query_heads: int | None = None,
    key_heads: int | None = None,
    causal: bool = False,
    window: tuple[int, int] = (-1, -1),
    scale: float | None = None,
    softcap: float = 0.0,
    softmax_dtype: Any = None,
    scores: str = "product",
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """`softmax(scale * q k^T + bias) v` for each head.

    Args:
        q, k, v: `[B, heads, T, D]`, or `[B, T, heads * D]` with `query_heads` and `key_heads`; several query
            heads may share a key head.
        mask: bool (True: attend) or added, broadcast to `[B, heads, Tq, Tk]`; a shorter last axis masks the
            rest.
        past_key, past_value: `[B, heads, T, D]`, put before `k` and `v`.
        valid_lengths: `[B]` keys that count.
        causal: a query attends keys up to its own position; the last query stands at the last key of the past
            or of `valid_lengths`.
        window: how many keys before and after its position a query attends; -1 is no limit.
        softcap: scores go through `softcap * tanh(scores / softcap)`.
        scores: which scores to return: `product`, `softcap`, `biased` or `softmax`.

    Returns the result in the layout of `q`, the keys and the values with their past, and the scores. A query
    that attends no key gets zeros.
    """
    split = q.ndim == 3
    if split:
        q, k, v = _heads(q, query_heads), _heads(k, key_heads), _heads(v, key_heads)
    if past_key is not None and past_value is not None:
        k, v = jnp.concatenate([past_key, k], axis=2), jnp.concatenate([past_value, v], axis=2)
    keys, values = k, v
    repeats = q.shape[1] // k.shape[1]
    k, v = (jnp.repeat(part, repeats, axis=1) if repeats > 1 else part for part in (k, v))
    # The root on either side, as the operator is defined: it keeps float16 products in range.
    root = jnp.asarray(math.sqrt(1 / math.sqrt(q.shape[-1]) if scale is None else scale), q.dtype)
    product = jnp.matmul(q * root, jnp.swapaxes(k * root, -1, -2))
    capped = softcap * jnp.tanh(product / softcap) if softcap else product

    bias = _bias(q, k, mask, past_key, valid_lengths, causal, window)
    biased = capped + bias
    wide = biased if softmax_dtype is None else biased.astype(softmax_dtype)
    weights = jax.nn.softmax(wide, axis=-1)
    nothing = jnp.isneginf(jnp.max(bias, axis=-1, keepdims=True))
    weights = jnp.where(nothing, 0, weights).astype(q.dtype)
    y = jnp.matmul(weights, v)
    if split:
        y = jnp.reshape(jnp.swapaxes(y, 1, 2), (y.shape[0], y.shape[2], -1))
    stages = {"product": product, "softcap": capped, "biased": biased, "softmax": weights}
    return y, keys, values, stages[scores].astype(q.dtype)


def rotary_embedding(
    x: jax.Array,
    cos: jax.Array,
    sin: jax.Array,
    positions: jax.Array | None = None,
    *,
    heads: int | None = None,
    rotated: int = 0,
    interleaved: bool = False,
) -> jax.Array:
    """Pairs of the first `rotated` (0: all) features of each head, turned by the angle of their position.

    `x` is `[B, heads, T, D]`, or `[B, T, heads * D]` with `heads`. `cos`, `sin` are `[B, T, rotated / 2]`, or
    `[positions, rotated / 2]` looked up at `positions [B, T]`. A pair is a feature of the first half with
    one of the second; `interleaved`: two neighbours.
    """
    y = _heads(x, heads) if x.ndim == 3 else x
    rotated = rotated or y.shape[-1]
    if positions is not None:
        cos, sin = cos[positions], sin[positions]
    cos, sin = cos[:, None], sin[:, None]
    part, rest = y[..., :rotated], y[..., rotated:]
    a, b = (part[..., 0::2], part[..., 1::2]) if interleaved else jnp.split(part, 2, axis=-1)
    turned = (cos * a - sin * b, sin * a + cos * b)
    part = (
        jnp.reshape(jnp.stack(turned, axis=-1), part.shape)
        if interleaved
        else jnp.concatenate(turned, axis=-1)
    )
    y = jnp.concatenate([part, rest], axis=-1)
    return jnp.reshape(jnp.swapaxes(y, 1, 2), x.shape) if x.ndim == 3 else y


def _heads(x: jax.Array, heads: int | None) -> jax.Array:
    if heads is None:
        raise ValueError("operands of rank 3 without a number of heads")
    return jnp.swapaxes(jnp.reshape(x, (*x.shape[:2], heads, -1)), 1, 2)


def _bias(
    q: jax.Array,
    k: jax.Array,
    mask: jax.Array | None,
    past_key: jax.Array | None,
    valid_lengths: jax.Array | None,
    causal: bool,
    window: tuple[int, int],
) -> jax.Array:
    """What is added to the scores: 0 or -inf, or an added mask."""
    queries, keys = q.shape[2], k.shape[2]
    if mask is not None and mask.shape[-1] < keys:
        fill = False if mask.dtype == bool else -jnp.inf
        widths = [(0, 0)] * (mask.ndim - 1) + [(0, keys - mask.shape[-1])]
        mask = jnp.pad(mask, widths, constant_values=fill)
    allowed = jnp.ones((queries, keys), bool)
    offset: Any = 0
    if past_key is not None:
        offset = past_key.shape[2]
    elif valid_lengths is not None:
        offset = jnp.reshape(valid_lengths, (-1, 1, 1, 1)) - queries
    distance = jnp.arange(queries)[:, None] + offset - jnp.arange(keys)
    if causal:
        allowed = allowed & (distance >= 0)
    if window[0] >= 0:
        allowed = allowed & (distance <= window[0])
    if window[1] >= 0:
        allowed = allowed & (-distance <= window[1])
    if valid_lengths is not None:
        allowed = allowed & (jnp.arange(keys) < jnp.reshape(valid_lengths, (-1, 1, 1, 1)))
    if mask is not None and mask.dtype == bool:
        allowed = allowed & mask
    bias = jnp.where(allowed, 0, -jnp.inf).astype(q.dtype)
    return bias if mask is None or mask.dtype == bool else bias + mask
