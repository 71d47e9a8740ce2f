"""Requests recorded in production or written by a team: `.npz` files, TFRecord files of `tf.Example`, and
TensorFlow Serving's warm-up files of `PredictionLog`."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from converters.errors import ConversionError
from converters.examples.composites import rows_of
from converters.examples.fitting import check_names, fit
from converters.examples.labels import is_label, read_labels
from converters.examples.messages_pb2 import Example
from jaxrank.manifest import Signature, TensorSpec
from jaxrank.tfrecord import RecordError, looks_like_records, read_records
from serving.errors import InvalidRequestError
from serving.wire import codec
from serving.wire.example_pb2 import Feature
from serving.wire.prediction_log_pb2 import PredictionLog

Request = dict[str, np.ndarray]

ROWS_PER_REQUEST = 50
"""Serialized examples that make one request: a page of results, enough for a ranking."""


def read_examples(
    path: Path,
    signature: Signature,
    *,
    rows_per_request: int | None = None,
    rename: Mapping[str, str] | None = None,
    notice: Callable[[str], object] = warnings.warn,
) -> list[Request]:
    """Reads recorded requests, in the file's order, as raw features that fit the signature.

    What the file is shows in its first bytes:

    - An `.npz` with arrays `<request>/<input>`, `<request>` counting from 0. Strings are NumPy byte strings
      (`S`), which must not end in a zero byte. Labels (`labels.py`) are left out.
    - A TFRecord file of `PredictionLog`, as in `assets.extra/tf_serving_warmup_requests`: every `predict_log`
      of this signature is a request. Logs of other calls and signatures are counted in a `notice`.
    - A TFRecord file of `tf.Example` for a signature whose only input takes serialized examples, a string
      `[None]` whose name no record uses as a feature: every record is one candidate row, `rows_per_request`
      (50) of them are one request.
    - A TFRecord file of `tf.Example` otherwise: every record is one request, its features are the inputs, and
      a feature's list holds the input's rows one after the other, row-major. With `rows_per_request`, each
      record is one candidate row, and consecutive rows with equal request-scope inputs are one request of at
      most so many.

    Args:
        rename: new name of inputs by the name that the file has for them.
        notice: is told what was skipped.

    Raises:
        ConversionError: the file is damaged, has no requests, or does not fit the signature.
    """
    renamed = dict(rename or {})
    if rows_per_request is not None and rows_per_request < 1:
        raise ConversionError(f"{rows_per_request} rows per request: give at least 1")
    if not path.is_file():
        raise ConversionError(f"{path} is not a file of example requests")
    if path.stat().st_size == 0:
        raise ConversionError(f"{path} is empty; it has no requests")
    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    if is_zip:
        return _from_npz(path, signature, renamed)
    try:
        if not looks_like_records(path):
            raise ConversionError(
                f"{path} is neither an .npz nor a TFRecord file: its first bytes are no record header with a "
                "right checksum"
            )
        records = list(read_records(path))
    except RecordError as error:
        raise ConversionError(str(error)) from error
    if not records:
        raise ConversionError(f"{path} has no requests: no record is in it")
    kinds = {_is_prediction_log(data, f"{path}: record {i}") for i, data in enumerate(records) if data}
    if len(kinds) > 1:
        raise ConversionError(f"{path} holds both PredictionLog and tf.Example records; separate them")
    if True in kinds:
        return _from_logs(path, records, signature, renamed, notice)
    examples = [_parsed(data, f"{path}: record {i}") for i, data in enumerate(records)]
    if _takes_serialized(signature, renamed, examples):
        return _serialized(records, signature.inputs[0].name, rows_per_request or ROWS_PER_REQUEST)
    requests = [
        fit(_values(e, signature, renamed, where), signature, where)
        for i, e in enumerate(examples)
        for where in [f"{path}: record {i}"]
    ]
    return (
        requests if rows_per_request is None else list(_stacked(requests, signature, rows_per_request, path))
    )


def read_labelled(path: Path, signature: Signature) -> list[tuple[Request, Mapping[str, np.ndarray]]]:
    """`read_examples`, with the labels of each request by output; only an `.npz` has any.

    Raises `ConversionError`: see `read_examples`; labels that do not fit their request's rows.
    """
    requests = read_examples(path, signature)
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return [(request, {}) for request in requests]
    labels = read_labels(path, signature)
    with np.load(path, allow_pickle=False) as stored:
        names = sorted(
            {
                request
                for request, _, feature in (key.partition("/") for key in stored.files)
                if not is_label(feature, signature)
            },
            key=_request_order,
        )
    odd = sorted(labels.keys() - set(names))
    if odd:
        raise ConversionError(f"{path}: there are labels of the requests {', '.join(odd)}, but no inputs")
    for name, request in zip(names, requests, strict=True):
        rows = set(rows_of(signature, request).values())
        for output, value in labels.get(name, {}).items():
            if len(value) not in rows:
                raise ConversionError(
                    f"{path}: {name}/labels/{output} has {len(value)} rows, its request has {max(rows)}"
                )
    return [(request, labels.get(name, {})) for name, request in zip(names, requests, strict=True)]


def _request_order(name: str) -> tuple[int, str]:
    return len(name), name


def _from_npz(path: Path, signature: Signature, rename: Mapping[str, str]) -> list[Request]:
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
    except Exception as error:  # zipfile, zlib and NumPy each raise their own for a damaged file
        raise ConversionError(f"{path} is not an .npz of example requests: {error}") from error
    requests: dict[str, Request] = {}
    for key, value in arrays.items():
        request, _, feature = key.partition("/")
        if is_label(feature, signature):
            continue
        requests.setdefault(request, {})[rename.get(feature, feature)] = value
    if not requests:
        raise ConversionError(f"{path} has no requests; write arrays named <request>/<feature>")
    return [
        fit(requests[key], signature, f"{path}: request {key}")
        for key in sorted(requests, key=_request_order)
    ]


# --- PredictionLog ---


def _is_prediction_log(data: bytes, where: str) -> bool:
    """A serialized Example also parses as a PredictionLog, one that has no log."""
    log = PredictionLog()
    try:
        log.ParseFromString(data)
    except DecodeError as error:
        raise ConversionError(f"{where} is neither a tf.Example nor a PredictionLog: {error}") from error
    return log.WhichOneof("log_type") is not None


def _from_logs(
    path: Path,
    records: Sequence[bytes],
    signature: Signature,
    rename: Mapping[str, str],
    notice: Callable[[str], object],
) -> list[Request]:
    requests: list[Request] = []
    skipped: Counter[str] = Counter()
    for i, data in enumerate(records):
        log = PredictionLog.FromString(data)
        kind = log.WhichOneof("log_type")
        if kind != "predict_log":
            skipped[kind or "empty record"] += 1
            continue
        name = log.predict_log.request.model_spec.signature_name or "serving_default"
        if name != signature.name:
            skipped[f"predict_log of signature {name!r}"] += 1
            continue
        where = f"{path}: record {i}"
        inputs = log.predict_log.request.inputs
        try:
            features = {rename.get(n, n): codec.decode(n, inputs[n]) for n in sorted(inputs)}
        except InvalidRequestError as error:
            raise ConversionError(f"{where}: {error}") from error
        requests.append(fit(features, signature, where))
    counts = ", ".join(f"{count} {what}" for what, count in sorted(skipped.items()))
    if not requests:
        raise ConversionError(
            f"{path} has no predict_log of signature {signature.name!r}, only {counts}; "
            "log Predict calls, or choose the signature with --signature"
        )
    if skipped:
        notice(
            f"{path}: {sum(skipped.values())} of {len(records)} records are not Predict calls of signature "
            f"{signature.name!r} and are not compared: {counts}"
        )
    return requests


# --- tf.Example ---


def _parsed(data: bytes, where: str) -> Example:
    try:
        return Example.FromString(data)
    except DecodeError as error:
        raise ConversionError(f"{where} is not a tf.Example: {error}") from error


def _takes_serialized(signature: Signature, rename: Mapping[str, str], examples: Sequence[Example]) -> bool:
    if len(signature.inputs) != 1:
        return False
    spec = signature.inputs[0]
    named = any(rename.get(feature, feature) == spec.name for e in examples for feature in e.features.feature)
    return spec.dtype == "string" and len(spec.shape) == 1 and spec.part == "rows" and not named


def _serialized(records: Sequence[bytes], name: str, rows: int) -> list[Request]:
    requests = []
    for start in range(0, len(records), rows):
        page = records[start : start + rows]
        value = np.empty(len(page), object)
        value[:] = page
        requests.append({name: value})
    return requests


_LISTS = {"bytes_list": "bytes", "float_list": "floats", "int64_list": "integers"}


def _values(example: Example, signature: Signature, rename: Mapping[str, str], where: str) -> Request:
    """The inputs of one request from the flat lists of an Example."""
    features = {rename.get(name, name): value for name, value in example.features.feature.items()}
    check_names(features, signature, where)
    flat = {t.name: _flat(features[t.name], t, where) for t in signature.inputs}
    rows = _rows(flat, signature)
    return {t.name: _shaped(flat[t.name], t, rows, where) for t in signature.inputs}


def _flat(feature: Feature, spec: TensorSpec, where: str) -> np.ndarray:
    kind = feature.WhichOneof("kind")
    wanted = {"string": "bytes_list", "bool": "int64_list"}.get(spec.dtype)
    if wanted is None:
        wanted = "int64_list" if np.dtype(spec.dtype).kind in "iu" else "float_list"
    if kind is None:
        values: Any = []
    elif kind != wanted:
        raise ConversionError(
            f"{where}: {spec.name} has {_LISTS[kind]}, the signature's {spec.dtype} needs {_LISTS[wanted]} "
            f"({wanted})"
        )
    else:
        values = getattr(feature, kind).value
    if spec.dtype == "string":
        strings = np.empty(len(values), object)
        strings[:] = list(values)
        return strings
    wide = np.asarray(values, np.int64 if wanted == "int64_list" else np.float32)
    narrow = wide.astype(spec.dtype)
    if wanted == "int64_list" and (narrow.astype(np.int64) != wide).any():
        raise ConversionError(f"{where}: {spec.name} has a value outside of {spec.dtype}")
    return narrow


def _rows(flat: Mapping[str, np.ndarray], signature: Signature) -> dict[str, int | None]:
    """Rows by scope, as far as inputs whose rows have a fixed size tell."""
    rows: dict[str, int | None] = {"request": None, "candidate": None}
    for t in signature.inputs:
        if t.part == "rows" and None not in t.shape[1:] and rows[t.scope] is None:
            rows[t.scope] = len(flat[t.name]) // max(_size(t.shape[1:]), 1)
    if rows["request"] is None:
        rows["request"] = 1
    return rows


def _shaped(value: np.ndarray, spec: TensorSpec, rows: Mapping[str, int | None], where: str) -> np.ndarray:
    """The flat values in the shape of the signature. One open inner dimension follows from the rows."""
    inner = list(spec.shape[1:])
    if None in inner:
        count = rows[spec.scope]
        known = _size(tuple(d for d in inner if d is not None))
        if inner.count(None) > 1 or not count or not known or len(value) % (count * known):
            raise ConversionError(
                f"{where}: {spec.name} has {len(value)} values, from which its shape {list(spec.shape)} does "
                "not follow; record it as .npz or PredictionLog, which keep shapes"
            )
        inner[inner.index(None)] = len(value) // (count * known)
    size = _size(tuple(d or 0 for d in inner))
    if size and len(value) % size:
        raise ConversionError(
            f"{where}: {spec.name} has {len(value)} values, which are no whole rows of shape {inner}"
        )
    return value.reshape(len(value) // size if size else rows[spec.scope] or 0, *(d or 0 for d in inner))


def _size(shape: Sequence[int | None]) -> int:
    size = 1
    for dim in shape:
        size *= dim or 0
    return size


def _stacked(requests: Sequence[Request], signature: Signature, rows: int, path: Path) -> Iterator[Request]:
    """One-row requests with equal request-scope inputs, `rows` at a time."""
    if any(t.part != "rows" for t in signature.inputs):
        raise ConversionError(
            f"{path}: single rows of sparse and ragged inputs are not stacked; record whole requests"
        )
    candidate = [t.name for t in signature.inputs if t.scope == "candidate"]
    request = [t.name for t in signature.inputs if t.scope == "request"]
    page: list[Request] = []

    def stacked() -> Request:
        return {
            **{name: page[0][name] for name in request},
            **{name: np.concatenate([r[name] for r in page]) for name in candidate},
        }

    for i, features in enumerate(requests):
        for name in candidate:
            if len(features[name]) != 1:
                raise ConversionError(
                    f"{path}: record {i}: {name} has {len(features[name])} rows, but with rows_per_request "
                    "every record is one row"
                )
        same = page and all(np.array_equal(features[n], page[0][n]) for n in request)
        if page and (not same or len(page) == rows):
            yield stacked()
            page = []
        page.append(features)
    if page:
        yield stacked()
