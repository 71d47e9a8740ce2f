"""Attention and its position encoding."""

from converters.onnx_ops.registry import Operand, Result, call, changed, dtype_name, onnx_dtype, op, short


@op("Attention", outputs=None)
def attention(
    q: Operand,
    k: Operand,
    v: Operand,
    mask: Operand | None = None,
    past_key: Operand | None = None,
    past_value: Operand | None = None,
    valid_lengths: Operand | None = None,
    *,
    is_causal: int = 0,
    scale: float | None = None,
    softcap: float = 0.0,
    q_num_heads: int | None = None,
    kv_num_heads: int | None = None,
    softmax_precision: int | None = None,
    qk_matmul_output_mode: int = 0,
    left_window_size: int = -1,
    right_window_size: int = -1,
    results: tuple[Result, ...],
) -> str:
    """Outputs: the attended values, the keys and values with their past, and the scores of a chosen stage."""
    if q.rank == 4 and (q_num_heads or kv_num_heads):
        raise ValueError("q_num_heads or kv_num_heads beside operands of rank 4, which have a head axis")
    scores = ("product", "softcap", "biased", "softmax")[qk_matmul_output_mode] if len(results) > 3 else None
    text = call(
        "layers.attention",
        q,
        k,
        v,
        mask=mask,
        past_key=past_key,
        past_value=past_value,
        valid_lengths=valid_lengths,
        query_heads=q_num_heads if q.rank == 3 else None,
        key_heads=kv_num_heads if q.rank == 3 else None,
        causal=changed(bool(is_causal), False),
        window=changed((left_window_size, right_window_size), (-1, -1)),
        scale=scale and short(scale),
        softcap=changed(short(softcap), 0.0),
        softmax_dtype=None if softmax_precision is None else dtype_name(onnx_dtype(softmax_precision)),
        scores=scores and repr(scores),
    )
    count = len(results)
    return f"{text}[0]" if count == 1 else (text if count == 4 else f"{text}[:{count}]")


@op("RotaryEmbedding")
def rotary_embedding(
    x: Operand,
    cos: Operand,
    sin: Operand,
    positions: Operand | None = None,
    *,
    interleaved: int = 0,
    num_heads: int = 0,
    rotary_embedding_dim: int = 0,
) -> str:
    return call(
        "layers.rotary_embedding",
        x,
        cos,
        sin,
        positions,
        heads=num_heads if x.rank == 3 else None,
        rotated=changed(rotary_embedding_dim, 0),
        interleaved=changed(bool(interleaved), False),
    )
