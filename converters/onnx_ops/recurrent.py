"""Recurrent layers over a whole sequence."""

from typing import Any

from converters.onnx_ops.registry import Operand, call, changed, op, short

_PARAMETRIC = (b"affine", b"hardsigmoid", b"leakyrelu", b"elu", b"scaledtanh", b"thresholdedrelu")


def _shared(
    defaults: tuple[bytes, ...],
    activations: list[bytes] | None,
    activation_alpha: list[float] | None,
    activation_beta: list[float] | None,
    clip: float | None,
    direction: bytes,
    layout: int,
) -> dict[str, Any]:
    """The keyword arguments that the three layers share; an activation is a name, or a tuple with its alpha
    and beta."""
    directions = 2 if direction == b"bidirectional" else 1
    names = activations or list(defaults) * directions
    alphas, betas = list(activation_alpha or ()), list(activation_beta or ())
    written: list[Any] = []
    for name in names:
        text = name.decode().lower()
        numbers = [values.pop(0) for values in (alphas, betas) if name.lower() in _PARAMETRIC and values]
        written.append((text, *(short(v) for v in numbers)) if numbers else text)
    usual = [name.decode().lower() for name in defaults] * directions
    return {
        "direction": changed(direction.decode(), "forward"),
        "activations": None if written == usual else repr(tuple(written)),
        "clip": None if clip is None else repr(clip),
        "batch_first": changed(bool(layout), False),
    }


@op("RNN", outputs=2)
def rnn(
    x: Operand,
    w: Operand,
    r: Operand,
    b: Operand | None = None,
    lengths: Operand | None = None,
    initial_h: Operand | None = None,
    *,
    hidden_size: int | None = None,
    direction: bytes = b"forward",
    activations: list[bytes] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    layout: int = 0,
) -> str:
    shared = _shared((b"Tanh",), activations, activation_alpha, activation_beta, clip, direction, layout)
    return call("layers.rnn", x, w, r, b, lengths, initial_h, **shared)


@op("GRU", outputs=2)
def gru(
    x: Operand,
    w: Operand,
    r: Operand,
    b: Operand | None = None,
    lengths: Operand | None = None,
    initial_h: Operand | None = None,
    *,
    hidden_size: int | None = None,
    direction: bytes = b"forward",
    activations: list[bytes] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
) -> str:
    shared = _shared(
        (b"Sigmoid", b"Tanh"), activations, activation_alpha, activation_beta, clip, direction, layout
    )
    reset_after = changed(bool(linear_before_reset), False)
    return call("layers.gru", x, w, r, b, lengths, initial_h, **shared, reset_after=reset_after)


@op("LSTM", outputs=3)
def lstm(
    x: Operand,
    w: Operand,
    r: Operand,
    b: Operand | None = None,
    lengths: Operand | None = None,
    initial_h: Operand | None = None,
    initial_c: Operand | None = None,
    peepholes: Operand | None = None,
    *,
    hidden_size: int | None = None,
    direction: bytes = b"forward",
    activations: list[bytes] | None = None,
    activation_alpha: list[float] | None = None,
    activation_beta: list[float] | None = None,
    clip: float | None = None,
    layout: int = 0,
    input_forget: int = 0,
) -> str:
    shared = _shared(
        (b"Sigmoid", b"Tanh", b"Tanh"),
        activations,
        activation_alpha,
        activation_beta,
        clip,
        direction,
        layout,
    )
    return call(
        "layers.lstm",
        x,
        w,
        r,
        b,
        lengths,
        initial_h,
        initial_c,
        peepholes,
        **shared,
        coupled_input_forget=changed(bool(input_forget), False),
    )
