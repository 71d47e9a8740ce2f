"""Checks a request's features against the signature, before any of them is used."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import numpy as np

from jaxrank.manifest import Scope, Signature, TensorSpec
from serving.composites import Composites, check_contents, check_sizes, composites
from serving.errors import InvalidRequestError
from serving.repeated_rows import one_row, one_row_of_parts
from serving.wire import tensor_pb2
from serving.wire.codec import Content, declared_shape, decode, dtype_name, dtype_number

MAX_STRING_BYTES = 1 << 20
"""Bytes of one string of a feature. Operators on strings take time that grows with it."""

Tensors = Mapping[str, tensor_pb2.TensorProto | Content]


def validate(
    inputs: Mapping[str, np.ndarray], signature: Signature, max_candidates: int
) -> dict[str, np.ndarray]:
    """Features that fit the signature: request-scope arrays with one row, candidate-scope arrays with as many
    rows as there are candidates. Sparse and ragged features are checked as a whole (`serving.composites`).

    A request-scope feature may come once, or repeated on every row where the signature leaves its rows open,
    as it does of every sparse and ragged one: then all rows must be equal, and one is kept.

    Raises:
        InvalidRequestError: a missing or unknown feature, another dtype, rank or size, a string of more than
            `MAX_STRING_BYTES`, row counts that differ, no candidates or too many, parts of a sparse or ragged
            feature that do not fit. The message names the feature.
    """
    _check_names(inputs, signature)
    forms = {name: (_dtype(value), value.shape) for name, value in inputs.items()}
    rows = _check_forms(forms, signature, max_candidates)
    for spec in signature.inputs:
        if spec.dtype == "string":
            _check_strings(spec.name, inputs[spec.name].ravel().tolist())
    return _checked(inputs, signature, rows, max_candidates)


def decode_inputs(tensors: Tensors, signature: Signature, max_candidates: int) -> dict[str, np.ndarray]:
    """Decodes and validates a request's tensors.

    What the tensors say of themselves is checked first: nothing that the signature does not allow is decoded,
    and the refusal is the same as `validate`'s.
    """
    found = _plain_inputs(tensors, signature, max_candidates)
    if found is not None:
        return found
    _check_names(tensors, signature)
    forms = {name: (dtype_name(t.dtype), declared_shape(name, t)) for name, t in tensors.items()}
    rows = _check_forms(forms, signature, max_candidates)
    _check_sent_strings(tensors, signature)
    inputs = {name: decode(name, tensor) for name, tensor in tensors.items()}
    return _checked(inputs, signature, rows, max_candidates)


def _plain_inputs(
    tensors: Tensors, signature: Signature, max_candidates: int
) -> dict[str, np.ndarray] | None:
    """The inputs of a request as most are: every one a number in `tensor_content` that fits the signature as
    it is, the request's features on one row. None for all others, which the other checks know to name."""
    if len(tensors) != len(signature.inputs):
        return None
    found: dict[str, np.ndarray] = {}
    candidates = 0
    for spec in signature.inputs:
        tensor = tensors.get(spec.name)
        if type(tensor) is not Content or spec.part != "rows" or not spec.shape or spec.dtype == "bool":
            return None
        shape = tensor.shape
        if tensor.dtype != dtype_number(spec.dtype) or shape[1:] != spec.shape[1:] or not shape:
            return None
        rows = shape[0]
        if spec.scope == "candidate":
            if not 0 < rows <= max_candidates or rows != (candidates or rows):
                return None
            candidates = rows
        elif rows != 1:
            return None
        found[spec.name] = decode(spec.name, tensor)
    return found if candidates else None


def decode_request(tensors: Tensors, signature: Signature) -> dict[str, np.ndarray]:
    """Decodes and checks the features of a request that has no candidates yet, one row of each. Raises as
    `validate` does, and for a feature of the candidates."""
    own = _of_scope(tensors, signature, "request")
    _check_names(tensors, own)
    forms = {name: (dtype_name(t.dtype), declared_shape(name, t)) for name, t in tensors.items()}
    features, rows = composites(own), _check_each(forms, own)
    _check_sent_strings(tensors, own)
    inputs = {name: decode(name, tensor) for name, tensor in tensors.items()}
    rows |= check_contents(features, inputs)
    for spec in own.inputs:
        if (found := rows.get(spec.feature or spec.name)) is not None:
            _check_request_rows(spec, found, 1)
    return {spec.name: inputs[spec.name] for spec in own.inputs}


def decode_candidates(tensors: Tensors, signature: Signature, max_candidates: int) -> dict[str, np.ndarray]:
    """Decodes and checks the candidates of a request whose own features are known. Raises as `validate` does,
    and for a feature of the request."""
    return decode_inputs(tensors, _of_scope(tensors, signature, "candidate"), max_candidates)


def _of_scope(tensors: Iterable[str], signature: Signature, scope: Scope) -> Signature:
    """The signature with the inputs of one scope. Raises `InvalidRequestError` for an input of the other."""
    fields = {"request": "the request's features", "candidate": "candidates"}
    others = {spec.name for spec in signature.inputs if spec.scope != scope}
    wrong = sorted(others.intersection(tensors))
    if wrong:
        other: Scope = "candidate" if scope == "request" else "request"
        raise InvalidRequestError(
            f"feature {wrong[0]!r} belongs to the {other}; send it with {fields[other]}, not with "
            f"{fields[scope]}"
        )
    return msgspec.structs.replace(
        signature, inputs=tuple(spec for spec in signature.inputs if spec.scope == scope)
    )


def _check_names(inputs: Mapping[str, Any], signature: Signature) -> None:
    specs = {spec.name for spec in signature.inputs}
    missing = sorted(specs - inputs.keys())
    unknown = sorted(inputs.keys() - specs)
    problems = []
    if missing:
        problems.append(f"missing features: {', '.join(map(repr, missing))}")
    for name in unknown[:10]:
        close = difflib.get_close_matches(name[:200], missing or specs, n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        problems.append(f"unknown feature {name[:200]!r}{hint}")
    if problems:
        raise InvalidRequestError(f"{'; '.join(problems)}; the signature takes: {', '.join(sorted(specs))}")


def _dtype(value: np.ndarray) -> str:
    return "string" if value.dtype == object else value.dtype.name


def _check_forms(
    forms: Mapping[str, tuple[str, tuple[int, ...]]], signature: Signature, max_candidates: int
) -> dict[str, int]:
    """Checks dtypes, ranks, sizes and row counts. `forms` are the dtype and shape of each input.

    Returns the rows of every feature that tells them in a shape: a sparse one does not.
    """
    rows = _check_each(forms, signature)
    _check_rows(rows, signature, max_candidates)
    return rows


def _check_each(forms: Mapping[str, tuple[str, tuple[int, ...]]], signature: Signature) -> dict[str, int]:
    """What can be checked of each feature for itself, with the same result."""
    for spec in signature.inputs:
        _check_form(spec, *forms[spec.name])
    shapes = {name: shape for name, (_, shape) in forms.items()}
    rows = {s.name: shapes[s.name][0] for s in signature.inputs if s.part == "rows" and s.shape}
    return rows | check_sizes(composites(signature), shapes)


def _checked(
    inputs: Mapping[str, np.ndarray], signature: Signature, rows: dict[str, int], max_candidates: int
) -> dict[str, np.ndarray]:
    """The inputs after what their values tell; request-scope ones with one row."""
    features = composites(signature)
    if features:
        _check_rows(rows | check_contents(features, inputs), signature, max_candidates)
    return _with_one_request_row(inputs, signature, features)


def _check_rows(rows: Mapping[str, int], signature: Signature, max_candidates: int) -> None:
    """Checks the row counts that are known: by input name, of composite features by their own."""
    scopes = {spec.feature or spec.name: spec.scope for spec in signature.inputs}
    if "candidate" not in scopes.values():
        raise InvalidRequestError(
            "no input of this model has one row for each candidate, so there is nothing to rank; convert it "
            "again with a candidate feature"
        )
    counts = {name: rows[name] for name, scope in scopes.items() if scope == "candidate" and name in rows}
    if not counts:
        return
    first, candidates = next(iter(counts.items()))
    for name, count in counts.items():
        if count != candidates:
            raise InvalidRequestError(
                f"feature {name!r} has {count} rows but {first!r} has {candidates}; every candidate feature "
                "must have one row for each candidate"
            )
    if not candidates:
        raise InvalidRequestError(f"feature {first!r} has no rows; at least one candidate is needed")
    if candidates > max_candidates:
        raise InvalidRequestError(
            f"feature {first!r} has {candidates} candidates; this model takes at most {max_candidates} in "
            f"one request"
        )
    for spec in signature.inputs:
        if spec.scope == "request" and (found := rows.get(spec.feature or spec.name)) is not None:
            _check_request_rows(spec, found, candidates)


def _check_form(spec: TensorSpec, dtype: str, shape: tuple[int, ...]) -> None:
    if dtype != spec.dtype:
        raise InvalidRequestError(f"feature {spec.name!r} has dtype {dtype}; the signature says {spec.dtype}")
    wanted = ["N" if d is None else d for d in spec.shape]
    if len(shape) != len(spec.shape):
        raise InvalidRequestError(
            f"feature {spec.name!r} has {len(shape)} dimensions, shape {list(shape)}; the signature says "
            f"{wanted}"
        )
    if any(want is not None and got != want for got, want in zip(shape[1:], spec.shape[1:], strict=True)):
        raise InvalidRequestError(
            f"feature {spec.name!r} has shape {list(shape)}; the signature says {wanted}"
        )


def _check_sent_strings(tensors: Tensors, signature: Signature) -> None:
    """Before they are decoded. A tensor that is small enough needs no loop over its strings, which would take
    half as long as decoding them."""
    for spec in signature.inputs:
        tensor = tensors[spec.name]
        if spec.dtype != "string" or isinstance(tensor, Content):
            continue
        if tensor.ByteSize() > MAX_STRING_BYTES:
            _check_strings(spec.name, tensor.string_val)


def _check_strings(feature: str, texts: Iterable[bytes]) -> None:
    longest = max(map(len, texts), default=0)
    if longest > MAX_STRING_BYTES:
        raise InvalidRequestError(
            f"feature {feature!r} has a string of {longest} bytes; at most {MAX_STRING_BYTES} are taken"
        )


def _check_request_rows(spec: TensorSpec, found: int, rows: int) -> None:
    is_open = spec.part != "rows" or spec.shape[0] is None
    if found == 1 or (found == rows and is_open):
        return
    several = f"one row or {rows}, as many as there are candidates"
    raise InvalidRequestError(
        f"feature {spec.feature or spec.name!r} has {found} rows; it is the same for all candidates: send "
        f"{several if is_open and rows > 1 else 'one row'}"
    )


def _with_one_request_row(
    inputs: Mapping[str, np.ndarray], signature: Signature, features: Composites
) -> dict[str, np.ndarray]:
    found = {
        spec.name: one_row(spec, inputs[spec.name])
        if spec.scope == "request" and spec.part == "rows"
        else inputs[spec.name]
        for spec in signature.inputs
    }
    for feature, parts in features.items():
        if next(iter(parts.values()))[0].scope == "request":
            found |= one_row_of_parts(feature, parts, inputs)
    return found
