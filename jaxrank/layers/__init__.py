"""Functions that a generated Flax module calls where JAX has no one name for an ONNX operator.

Plain functions of arrays, importing only jax and numpy: readable as the definition of what the model
computes, and differentiable. One file for each family of `converters/onnx_ops`.
"""

from jaxrank.layers.arithmetic import integer_division
from jaxrank.layers.attention import attention, rotary_embedding
from jaxrank.layers.control_flow import counted_loop, masked_loop, scan, while_loop
from jaxrank.layers.convolution import (
    average_pool,
    col2im,
    conv,
    conv_transpose,
    depth_to_space,
    lp_pool,
    max_pool,
    max_pool_with_indices,
    max_unpool,
    space_to_depth,
)
from jaxrank.layers.indexing import (
    cumprod,
    cumsum,
    gather_elements,
    gather_nd,
    non_max_suppression,
    one_hot,
    scatter_elements,
    scatter_nd,
    tensor_scatter,
    top_k,
    unique,
)
from jaxrank.layers.losses import negative_log_likelihood, softmax_cross_entropy
from jaxrank.layers.normalization import (
    batch_normalization,
    batch_normalization_training,
    group_normalization,
    instance_normalization,
    layer_normalization,
    local_response_normalization,
    lp_normalization,
    mean_variance_normalization,
    rms_normalization,
)
from jaxrank.layers.quantization import (
    cast_to_float8,
    cast_to_narrow_int,
    conv_integer,
    dequantize,
    dynamic_quantize,
    matmul_integer,
    quantize,
    quantized_conv,
    quantized_matmul,
)
from jaxrank.layers.recurrent import gru, lstm, reverse_sequence, rnn
from jaxrank.layers.resizing import grid_sample, resize, roi_align
from jaxrank.layers.signal import dft, stft

__all__ = [
    "attention",
    "average_pool",
    "batch_normalization",
    "batch_normalization_training",
    "cast_to_float8",
    "cast_to_narrow_int",
    "col2im",
    "conv",
    "conv_integer",
    "conv_transpose",
    "counted_loop",
    "cumprod",
    "cumsum",
    "depth_to_space",
    "dequantize",
    "dft",
    "dynamic_quantize",
    "gather_elements",
    "gather_nd",
    "grid_sample",
    "group_normalization",
    "gru",
    "instance_normalization",
    "integer_division",
    "layer_normalization",
    "local_response_normalization",
    "lp_normalization",
    "lp_pool",
    "lstm",
    "masked_loop",
    "matmul_integer",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "mean_variance_normalization",
    "negative_log_likelihood",
    "non_max_suppression",
    "one_hot",
    "quantize",
    "quantized_conv",
    "quantized_matmul",
    "resize",
    "reverse_sequence",
    "rms_normalization",
    "rnn",
    "roi_align",
    "rotary_embedding",
    "scan",
    "scatter_elements",
    "scatter_nd",
    "softmax_cross_entropy",
    "space_to_depth",
    "stft",
    "tensor_scatter",
    "top_k",
    "unique",
    "while_loop",
]
