"""Why a request is refused, and what its client sees: this is the one place that maps errors to gRPC's status
codes and to HTTP's."""

import logging
import uuid
from urllib.parse import quote

import grpc

from jaxrank.errors import JaxrankError

log = logging.getLogger("jaxrank")

# A status message travels in a trailer, percent-encoded. Above 8 KiB of trailers gRPC may drop the
# whole status and report RESOURCE_EXHAUSTED in its place; above 16 KiB it always does
# (seen with grpcio 1.85).
_MAX_MESSAGE = 6000

HTTP_STATUS: dict[grpc.StatusCode, int] = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.CANCELLED: 499,
    grpc.StatusCode.UNKNOWN: 500,
    grpc.StatusCode.INVALID_ARGUMENT: 400,
    grpc.StatusCode.DEADLINE_EXCEEDED: 504,
    grpc.StatusCode.NOT_FOUND: 404,
    grpc.StatusCode.ALREADY_EXISTS: 409,
    grpc.StatusCode.PERMISSION_DENIED: 403,
    grpc.StatusCode.RESOURCE_EXHAUSTED: 429,
    grpc.StatusCode.FAILED_PRECONDITION: 400,
    grpc.StatusCode.ABORTED: 409,
    grpc.StatusCode.OUT_OF_RANGE: 400,
    grpc.StatusCode.UNIMPLEMENTED: 501,
    grpc.StatusCode.INTERNAL: 500,
    grpc.StatusCode.UNAVAILABLE: 503,
    grpc.StatusCode.DATA_LOSS: 500,
    grpc.StatusCode.UNAUTHENTICATED: 401,
}
"""TensorFlow Serving's own table (its `ToHTTPStatusCode`)."""


class ServingError(JaxrankError):
    """Base of every refusal; `code` is what the client sees, `reason` the word under which it is counted
    (docs/monitoring.md). The message is cut to what gRPC can carry."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = "internal"

    def __init__(self, message: str, reason: str | None = None):
        super().__init__(_fit(message))
        if reason is not None:
            self.reason = reason


class InvalidRequestError(ServingError):
    """The request does not fit the signature: the message names the feature."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "invalid_request"


class SignatureNotFoundError(ServingError):
    """The model has no signature of that name; TensorFlow Serving's Predict answers with the same code."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "no_signature"


class ModelNotFoundError(ServingError):
    """No such model or version is loaded."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "no_model"


class ModelUnavailableError(ServingError):
    """The model exists but cannot answer now: still loading, or the server is draining."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "unavailable"


class ModelsNotLoadedError(ServingError):
    """A new configuration names models that do not load; TensorFlow Serving answers with the same code."""

    code = grpc.StatusCode.UNKNOWN
    reason = "not_loaded"


class LabelError(ServingError):
    """A label is given to a version that is not available."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "label"


class StateNotFoundError(ServingError):
    """No request of that handle is held: it must be prepared again."""

    code = grpc.StatusCode.NOT_FOUND
    reason = "no_state"


class StateVersionError(ServingError):
    """A handle is of another version of the model than the one that answers."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "state_version"


class UnsupportedError(ServingError):
    """A call that this server knows and does not answer."""

    code = grpc.StatusCode.UNIMPLEMENTED
    reason = "unsupported"


class OverloadedError(ServingError):
    """More requests at once than the server takes, or than it can answer in time; the same request may be
    answered later."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "overloaded"


QUOTA, STOPPING = "quota", "stopping"
"""`OverloadedError.reason` of a caller that sends more than it may, and of a server that ends."""


class DeadlineError(ServingError):
    """The deadline passed before the answer was there."""

    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "deadline"


class CancelledError(ServingError):
    """The client no longer waits."""

    code = grpc.StatusCode.CANCELLED
    reason = "cancelled"


class UnauthenticatedError(ServingError):
    """The request does not say who sends it, or with a token that is not known."""

    code = grpc.StatusCode.UNAUTHENTICATED
    reason = "unauthenticated"


class PermissionDeniedError(ServingError):
    """The caller is known and may not do this."""

    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "permission"


def refusal(error: Exception) -> ServingError:
    """What the client is told: a refusal as it is, anything else as a fault of ours whose number is in the
    log."""
    if isinstance(error, ServingError):
        return error
    number = uuid.uuid4().hex[:8]
    log.error("request failed, error %s", number, exc_info=error)
    return ServingError(f"internal error {number}; the server's log has the details")


def _fit(message: str) -> str:
    if len(message) <= _MAX_MESSAGE and message.isascii() and message.isprintable() and "%" not in message:
        return message
    size = 0
    for end, character in enumerate(message):
        size += 1 if " " <= character <= "~" and character != "%" else len(quote(character, errors="replace"))
        if size > _MAX_MESSAGE:
            return f"{message[:end]}... ({len(message) - end} more characters)"
    return message
