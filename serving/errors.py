"""Why a request is refused, and the gRPC status code that says so. This is the one place that maps errors to
codes."""

import grpc

from jaxrank.errors import JaxrankError


class ServingError(JaxrankError):
    """Base of every refusal; `code` is what the client sees."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL


class InvalidRequestError(ServingError):
    """The request does not fit the signature: the message names the feature."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class ModelNotFoundError(ServingError):
    """No such model or version is loaded."""

    code = grpc.StatusCode.NOT_FOUND


class ModelUnavailableError(ServingError):
    """The model exists but cannot answer now: still loading, or the server is draining."""

    code = grpc.StatusCode.UNAVAILABLE
