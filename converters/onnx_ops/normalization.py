"""Normalizations. Channels are axis 1 where ONNX says so."""

from converters.onnx_ops.registry import Operand, Result, axis_of, call, changed, op, short


@op("LayerNormalization", outputs=None)
def layer_normalization(
    x: Operand,
    scale: Operand,
    bias: Operand | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    results: tuple[Result, ...],
) -> str:
    """`stash_type` 1: statistics in float32 whatever the input is, which is what the layer does."""
    _float32_statistics(stash_type)
    first = axis_of(axis, x)
    text = call(
        "layers.layer_normalization",
        x,
        scale,
        bias,
        axis=changed(first - x.rank, -1),
        epsilon=_epsilon(epsilon),
    )
    if len(results) == 1:
        return f"{text}[0]"
    return f"{text}[:2]" if len(results) == 2 else text


@op("RMSNormalization")
def rms_normalization(
    x: Operand, scale: Operand, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> str:
    _float32_statistics(stash_type)
    return call(
        "layers.rms_normalization",
        x,
        scale,
        axis=changed(axis_of(axis, x) - x.rank, -1),
        epsilon=_epsilon(epsilon),
    )


@op("BatchNormalization", outputs=None)
def batch_normalization(
    x: Operand,
    scale: Operand,
    bias: Operand,
    mean: Operand,
    variance: Operand,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
    results: tuple[Result, ...],
) -> str:
    operands = (x, scale, bias, mean, variance)
    if training_mode:
        text = call(
            "layers.batch_normalization_training",
            *operands,
            epsilon=_epsilon(epsilon),
            momentum=changed(short(momentum), 0.9),
        )
        return f"{text}[0]" if len(results) == 1 else text
    return call("layers.batch_normalization", *operands, epsilon=_epsilon(epsilon))


@op("InstanceNormalization")
def instance_normalization(x: Operand, scale: Operand, bias: Operand, *, epsilon: float = 1e-5) -> str:
    return call("layers.instance_normalization", x, scale, bias, epsilon=_epsilon(epsilon))


@op("GroupNormalization")
def group_normalization(
    x: Operand, scale: Operand, bias: Operand, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> str:
    """Scale and bias are per channel since opset 21; before, per group."""
    _float32_statistics(stash_type)
    if scale.shape[0] != x.shape[1]:
        scale, bias = (
            Operand(f"jnp.repeat({v}, {x.shape[1] // num_groups})", (x.shape[1],), v.known_dtype)
            for v in (scale, bias)
        )
    return call("layers.group_normalization", x, scale, bias, num_groups, epsilon=_epsilon(epsilon))


@op("LRN")
def lrn(x: Operand, *, alpha: float = 0.0001, beta: float = 0.75, bias: float = 1.0, size: int) -> str:
    return call(
        "layers.local_response_normalization",
        x,
        size=size,
        alpha=short(alpha),
        beta=short(beta),
        bias=short(bias),
    )


@op("LpNormalization")
def lp_normalization(x: Operand, *, axis: int = -1, p: int = 2) -> str:
    if p not in (1, 2):
        raise ValueError(f"p = {p}")
    return call("layers.lp_normalization", x, axis=axis_of(axis, x), p=changed(p, 2))


@op("MeanVarianceNormalization")
def mean_variance_normalization(x: Operand, *, axes: list[int] | None = None) -> str:
    return call("layers.mean_variance_normalization", x, axes=tuple(axes or (0, 2, 3)))


def _float32_statistics(stash_type: int) -> None:
    if stash_type not in (1, 11):
        raise ValueError(f"stash_type {stash_type}; statistics are float32")


def _epsilon(value: float) -> str | None:
    return changed(short(value), 1e-5)
