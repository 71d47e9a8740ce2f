"""Losses of classifiers; `labels` are class ids, and `ignore_index` leaves rows out."""

from converters.onnx_ops.registry import Operand, Result, call, changed, op


@op("NegativeLogLikelihoodLoss")
def negative_log_likelihood(
    log_probabilities: Operand,
    labels: Operand,
    weights: Operand | None = None,
    *,
    ignore_index: int | None = None,
    reduction: bytes = b"mean",
) -> str:
    return call(
        "layers.negative_log_likelihood",
        log_probabilities,
        labels,
        weights,
        ignore_index=ignore_index,
        reduction=changed(reduction.decode(), "mean"),
    )


@op("SoftmaxCrossEntropyLoss", outputs=None)
def softmax_cross_entropy(
    scores: Operand,
    labels: Operand,
    weights: Operand | None = None,
    *,
    ignore_index: int | None = None,
    reduction: bytes = b"mean",
    results: tuple[Result, ...],
) -> str:
    """The second output is the logarithm of the softmax over classes (axis 1)."""
    text = call(
        "layers.softmax_cross_entropy",
        scores,
        labels,
        weights,
        ignore_index=ignore_index,
        reduction=changed(reduction.decode(), "mean"),
    )
    return f"{text}[0]" if len(results) == 1 else text
