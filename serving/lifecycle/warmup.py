"""TensorFlow Serving's warm-up requests: `assets.extra/tf_serving_warmup_requests` of a version."""

import itertools
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from google.protobuf.message import DecodeError

from jaxrank.manifest import Manifest
from jaxrank.tfrecord import RecordError, read_records
from serving.errors import DeadlineError, OverloadedError, ServingError
from serving.lifecycle.errors import WarmupError
from serving.lifecycle.scoring import score
from serving.model import Model
from serving.protocols.examples import decode_examples, serialized_examples
from serving.validation import decode_inputs
from serving.wire.prediction_log_pb2 import PredictionLog

log = logging.getLogger("jaxrank")

FILE = "assets.extra/tf_serving_warmup_requests"
MAX_REQUESTS = 1000
"""TensorFlow Serving's own limit; it refuses more, here the first ones are taken."""

_DEFAULT_SIGNATURE = "serving_default"


def warm_up(bundle: Path, model: Model, iterations: int = 1) -> int:
    """Answers the warm-up requests of a version, `iterations` times each, and returns their number; 0 where
    there is no file. Calls of other kinds and signatures are logged and left out.

    Raises `WarmupError` naming the record that is damaged or that the model does not answer: TensorFlow
    Serving does not serve such a version, either.
    """
    path = bundle / FILE
    if not path.is_file():
        return 0
    count = 0
    for where, inputs in _requests(path, model.manifest):
        for _ in range(iterations):
            try:
                score(model, inputs)
            except (DeadlineError, OverloadedError):
                raise  # the server is busy; the version is tried again
            except ServingError as error:
                raise _refused(where, error) from error
        count += 1
    return count


def _requests(path: Path, manifest: Manifest) -> Iterator[tuple[str, Mapping[str, np.ndarray]]]:
    skipped = 0
    try:
        for number, data in enumerate(itertools.islice(read_records(path), MAX_REQUESTS)):
            where = f"{path}: record {number}"
            try:
                inputs = _inputs(PredictionLog.FromString(data), manifest)
            except (DecodeError, ServingError) as error:
                raise _refused(where, error) from error
            if inputs is None:
                skipped += 1
            else:
                yield where, inputs
    except RecordError as error:
        raise _refused(str(path), error) from error
    if skipped:
        log.warning("%s: %d records are no calls of this model's signature and were left out", path, skipped)


def _inputs(record: PredictionLog, manifest: Manifest) -> Mapping[str, np.ndarray] | None:
    """The features of a logged call; None for one of another kind or signature."""
    kind = record.WhichOneof("log_type")
    if kind not in ("predict_log", "classify_log", "regress_log"):
        return None
    request = getattr(record, kind).request
    signature = manifest.signature
    if request.model_spec.signature_name not in ("", _DEFAULT_SIGNATURE, signature.name):
        return None
    if kind == "predict_log":
        return decode_inputs(request.inputs, signature, manifest.max_candidates)
    return decode_examples(serialized_examples(request.input), signature, manifest.max_candidates)


def _refused(where: str, error: Exception) -> WarmupError:
    return WarmupError(
        f"the warm-up failed: {where}: {error}; mend or remove the file, or serve with "
        "--enable_model_warmup=false"
    )
