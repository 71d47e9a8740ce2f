"""Why a request is refused, and the gRPC status code that says so. This is the one place that maps errors to
codes."""

from urllib.parse import quote

import grpc

from jaxrank.errors import JaxrankError

# A status message travels in a trailer, percent-encoded. Above 8 KiB of trailers gRPC may drop the
# whole status and report RESOURCE_EXHAUSTED in its place; above 16 KiB it always does
# (seen with grpcio 1.85).
_MAX_MESSAGE = 6000


class ServingError(JaxrankError):
    """Base of every refusal; `code` is what the client sees. The message is cut to what gRPC can carry."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL

    def __init__(self, message: str):
        super().__init__(_fit(message))


class InvalidRequestError(ServingError):
    """The request does not fit the signature: the message names the feature."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class SignatureNotFoundError(ServingError):
    """The model has no signature of that name; TensorFlow Serving answers with the same code."""

    code = grpc.StatusCode.FAILED_PRECONDITION


class ModelNotFoundError(ServingError):
    """No such model or version is loaded."""

    code = grpc.StatusCode.NOT_FOUND


class ModelUnavailableError(ServingError):
    """The model exists but cannot answer now: still loading, or the server is draining."""

    code = grpc.StatusCode.UNAVAILABLE


def _fit(message: str) -> str:
    size = 0
    for end, character in enumerate(message):
        size += 1 if " " <= character <= "~" and character != "%" else len(quote(character, errors="replace"))
        if size > _MAX_MESSAGE:
            return f"{message[:end]}... ({len(message) - end} more characters)"
    return message
