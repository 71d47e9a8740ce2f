"""Functions from request bytes to response bytes as gRPC methods; here errors become statuses, nowhere else.

Messages arrive as bytes and are parsed by the function, so that a damaged one gets a status of its own.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from serving.auth import charge_request
from serving.errors import InvalidRequestError, ServingError, refusal
from serving.lifecycle.trials import ROUTING_KEY
from serving.monitoring.ended import Ended
from serving.monitoring.timeline import MODEL_CALLS, TRACEPARENT, Timeline
from serving.scheduling import PRIORITY, Urgency, priority_of
from serving.workers import Workers

M = TypeVar("M", bound=Message)

Method = Callable[[bytes, Urgency], bytes]


StreamMethod = Callable[[Urgency], AbstractContextManager[Method]]
"""Opens a stream; what it gives answers each of its messages."""


def handler(
    service: str,
    methods: Mapping[str, Method],
    workers: Workers,
    ended: Ended,
    streams: Mapping[str, StreamMethod] | None = None,
) -> grpc.GenericRpcHandler:
    """A gRPC service of unary methods, and of `streams` with an answer for each message, for
    `grpc.Server.add_generic_rpc_handlers`. An answer counts as the workers' work until the client has it.
    `ended` is told of every message that was answered or refused."""
    unary = {
        name: grpc.unary_unary_rpc_method_handler(_answer(name, method, workers, ended))
        for name, method in methods.items()
    }
    both = {
        name: grpc.stream_stream_rpc_method_handler(_answers(name, method, workers, ended))
        for name, method in (streams or {}).items()
    }
    return grpc.method_handlers_generic_handler(service, {**unary, **both})


def parse(kind: type[M], data: bytes) -> M:
    """The message in `data`. Raises `InvalidRequestError`."""
    try:
        return kind.FromString(data)
    except DecodeError as error:
        raise InvalidRequestError(
            f"the request is not a {kind.__name__}: {len(data)} bytes do not parse"
        ) from error


def _answer(
    name: str, method: Method, workers: Workers, ended: Ended
) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    api = name if name in MODEL_CALLS else ""

    def run(data: bytes, context: grpc.ServicerContext) -> bytes:
        client = _Client(context, workers)
        with _accounted(context, Timeline("GRPC", api), ended) as timeline:
            urgency = _urgency(context, client, timeline, data)
            urgency.check()
            answer = method(data, urgency)
            if urgency.afterwards:
                client.on_leave(urgency.answered)
            if urgency.remarks:
                context.set_trailing_metadata(tuple(urgency.remarks.items()))
            return answer

    return run


def _answers(
    name: str, method: StreamMethod, workers: Workers, ended: Ended
) -> Callable[[Iterator[bytes], grpc.ServicerContext], Iterator[bytes]]:
    def run(messages: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        client = _Client(context, workers)
        answer: Method | None = None
        remarks: dict[str, str] = {}
        with ExitStack() as stack:
            while (data := _next_or_none(messages)) is not None:
                with _accounted(context, Timeline("GRPC", name), ended) as timeline:
                    urgency = _urgency(context, client, timeline, data)
                    urgency.check()
                    if answer is None:  # the call was charged when it began
                        answer = stack.enter_context(method(urgency))
                    else:
                        charge_request()
                    message = answer(data, urgency)
                remarks |= urgency.remarks
                context.set_trailing_metadata(tuple(remarks.items()))
                yield message
                urgency.answered()

    return run


def _next_or_none(messages: Iterator[bytes]) -> bytes | None:
    try:
        return next(messages, None)
    except grpc.RpcError:
        return None  # the client is gone, or its deadline has passed: gRPC ends its messages with this


class _Client:
    """Whoever waits for a call's answers. The call counts as the workers' work until they have them."""

    def __init__(self, context: grpc.ServicerContext, workers: Workers):
        self._workers, self._told = workers, list[Callable[[], None]]()
        self._over = False
        workers.begin()
        if not context.add_callback(self._end):  # it is over already
            self._end()

    def left(self) -> bool:
        """Whether the call is over: what asks is still at work on an answer. `grpc.ServicerContext.is_active`
        takes the call's lock to say so."""
        return self._over

    def on_leave(self, callback: Callable[[], None]) -> None:
        """Has something called once the call is over."""
        self._told.append(callback)
        if self._over:
            self._tell()

    def _end(self) -> None:
        self._over = True
        self._workers.end()
        self._tell()

    def _tell(self) -> None:
        while True:
            try:
                callback = self._told.pop(0)  # by one thread, where a call ends just now
            except IndexError:
                return
            callback()


@contextmanager
def _accounted(context: grpc.ServicerContext, timeline: Timeline, ended: Ended) -> Iterator[Timeline]:
    """An exception is the call's status."""
    try:
        yield timeline
    except Exception as error:
        told = refusal(error)
        timeline.refused(told.code, told.reason)
        abort(context, told)
    finally:
        ended(timeline)


def _urgency(context: grpc.ServicerContext, client: _Client, timeline: Timeline, data: bytes) -> Urgency:
    """Of a request of these bytes, which are its routing key where the client gives none."""
    metadata = dict(context.invocation_metadata())
    key = metadata.get(ROUTING_KEY)
    timeline.traceparent = str(metadata.get(TRACEPARENT, ""))
    urgency = Urgency.within(
        context.time_remaining(),
        priority_of(metadata.get(PRIORITY)),
        client.left,
        client.on_leave,
        timeline,
        data if key is None else key if isinstance(key, bytes) else key.encode(),
    )
    timeline.remarks = urgency.remarks
    return urgency


def abort(context: grpc.ServicerContext, told: ServingError) -> NoReturn:
    """Ends the call with a refusal's status."""
    context.abort(told.code, str(told))
    raise AssertionError("abort raises")
