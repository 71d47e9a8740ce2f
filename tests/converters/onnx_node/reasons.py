"""Why a node test of ONNX is out of scope, or is expected to fail: data, one line for each."""

import fnmatch
from typing import Any

from onnx import TensorProto

XFAIL: dict[str, str] = {
    "test_ai_onnx_ml_*": "the domain ai.onnx.ml, which tf2onnx never writes",
    "test_basic_deform_conv_*": "DeformConv, which no TensorFlow op becomes",
    "test_bernoulli*": "random numbers: the expected ones are those of one generator",
    "test_deform_conv_*": "DeformConv, which no TensorFlow op becomes",
    "test_dft_inverse": "tolerance 1e-7 around zeros that are float32 rounding errors",
    "test_dft_inverse_opset19": "tolerance 1e-7 around zeros that are float32 rounding errors",
    "test_image_decoder_*": "decodes image files, which is the client's work",
    "test_loop11": "a slice whose length grows with the trip: no static shape",
    "test_melweightmatrix": "MelWeightMatrix, which no TensorFlow op becomes",
    "test_scan_sum": "Scan of opset 8, which has a batch axis of its own; later versions do not",
    "test_tfidfvectorizer_*": "counts n-grams, which belongs to the host program",
    "test_unique_[!b]*": "the number of unique values depends on them: no static shape",
}
"""Pattern of test names: the reason. A test that passes in spite of it fails the run."""


def xfail_reason(name: str) -> str | None:
    return next((reason for pattern, reason in XFAIL.items() if fnmatch.fnmatch(name, pattern)), None)


def out_of_scope(case: Any) -> str | None:
    """The reason, None for a test whose inputs and outputs are plain tensors."""
    graph = case.model.graph
    values = (*graph.input, *graph.output)
    if any(node.domain == "ai.onnx.preview.training" for node in graph.node):
        return "an optimizer step of training"
    if any(node.op_type == "Dropout" and len(node.input) > 2 for node in graph.node):
        return "dropout that draws random numbers while training"
    if any(node.op_type.startswith("Optional") for node in graph.node):
        return "optional values"
    kinds = {value.type.WhichOneof("value") for value in values}
    if "optional_type" in kinds:
        return "optional values"
    if "sequence_type" in kinds:
        return "sequences"
    if any(value.type.tensor_type.elem_type == TensorProto.STRING for value in values):
        return "strings"
    return None
