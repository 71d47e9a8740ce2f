"""Classify and Regress: which signatures answer them, and what their outputs become.

The rules are TensorFlow Serving's (`PreProcessClassification`, `PostProcessClassificationResult` and their
namesakes for regression). It reads outputs by the names that `tf.saved_model` gives them, and looks at a
signature's method name only if it is told to (`--enable_signature_method_name_check`).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from jaxrank.manifest import Manifest, Signature
from serving.data_plane import Prediction, Work
from serving.errors import InvalidRequestError
from serving.protocols.examples import decode_examples
from serving.wire import inference_pb2 as pb

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"
DEFAULT_SIGNATURE = "serving_default"

CLASSES, SCORES, OUTPUTS = "classes", "scores", "outputs"
_KINDS = {CLASSIFY: "classification", REGRESS: "regression"}


def has_signature(name: str, signature: Signature) -> bool:
    """Whether a bundle answers a signature name: its own, or the default one, which TensorFlow Serving takes
    for none."""
    return name in ("", DEFAULT_SIGNATURE, signature.name)


def outputs_of(method: str, signature: Signature, *, check_method: bool = False) -> list[str]:
    """The outputs that make a classification or a regression.

    Raises `InvalidRequestError` where the signature is not one for `method`.
    """
    kind = _KINDS[method]
    if check_method and signature.method_name != method:
        raise InvalidRequestError(
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}"
        )
    found = [spec.name for spec in signature.outputs]
    if method == REGRESS and found != [OUTPUTS]:
        raise InvalidRequestError(
            f"Expected {kind} signature to have one output, {OUTPUTS!r}; signature {signature.name!r} has: "
            f"{', '.join(found)}; use Predict"
        )
    if method == CLASSIFY and not (set(found) <= {CLASSES, SCORES}):
        raise InvalidRequestError(
            f"Expected {kind} signature outputs to contain at least one of {CLASSES!r} or {SCORES!r} and no "
            f"other; signature {signature.name!r} has: {', '.join(found)}; use Predict"
        )
    return found


def work_on_examples(
    manifest: Manifest,
    examples: Sequence[bytes],
    signature_name: str,
    method: str,
    *,
    check_method: bool = False,
) -> Work:
    """What the data plane runs for Classify or Regress (`method`). Raises `InvalidRequestError`."""
    signature = manifest.signature
    if not has_signature(signature_name, signature):
        raise InvalidRequestError(
            f"No signature was found with the name: {signature_name[:200]}; this model has {signature.name!r}"
        )
    wanted = outputs_of(method, signature, check_method=check_method)
    return Work(decode_examples(examples, signature, manifest.max_candidates), wanted)


def classification(prediction: Prediction) -> pb.ClassificationResult:
    """One `Classifications` for each candidate, its classes in the model's order."""
    labels, scores = _classes(prediction.outputs)
    result = pb.ClassificationResult()
    for row in range(len(scores if scores is not None else labels)):  # type: ignore[arg-type]
        classes = result.classifications.add().classes
        for column in range((scores if scores is not None else labels).shape[1]):  # type: ignore[union-attr]
            classes.add(
                label="" if labels is None else _text(labels[row, column]),
                score=0.0 if scores is None else scores[row, column],
            )
    return result


def _classes(outputs: Mapping[str, np.ndarray]) -> tuple[np.ndarray | None, np.ndarray | None]:
    labels, scores = outputs.get(CLASSES), outputs.get(SCORES)
    for name, value, dtype in ((CLASSES, labels, "object"), (SCORES, scores, "float32")):
        if value is None:
            continue
        if value.ndim != 2 or value.dtype.name != dtype:
            raise InvalidRequestError(
                f"Expected {name} of {'strings' if dtype == 'object' else dtype} and shape [batch_size, "
                f"num_classes], found {value.dtype.name}{list(value.shape)}; use Predict"
            )
    if labels is not None and scores is not None and labels.shape != scores.shape:
        raise InvalidRequestError(
            f"Expected {CLASSES} and {SCORES} of one shape, found {list(labels.shape)} and "
            f"{list(scores.shape)}; use Predict"
        )
    return labels, scores


def regression(prediction: Prediction) -> pb.RegressionResult:
    """One value for each candidate."""
    value = prediction.outputs[OUTPUTS]
    if value.dtype.name != "float32" or not (value.ndim == 1 or (value.ndim == 2 and value.shape[1] == 1)):
        raise InvalidRequestError(
            f"Expected output of float32 and shape [batch_size] or [batch_size, 1], found {value.dtype.name}"
            f"{list(value.shape)}; use Predict"
        )
    return pb.RegressionResult(regressions=[pb.Regression(value=v) for v in value.ravel().tolist()])


def _text(label: bytes) -> str:
    try:
        return label.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f"the class label {label[:100]!r} is no UTF-8, which a Classification's label must be; "
            "use Predict"
        ) from error
