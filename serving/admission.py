"""What a gRPC call passes before a protocol sees it: who calls, a message that comes in time, a turn to work.

gRPC's Python server gives a call a thread as soon as it begins, though its message may never come. So there
are more threads than may work at once: a call waits for its message on one of the others, for so many seconds
at most. Health checking and reflection take no turns; their streams have threads of their own.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from serving.auth import CALLER, Access
from serving.errors import InvalidRequestError, ServingError
from serving.monitoring.ended import Ended
from serving.monitoring.timeline import UNROUTED, Timeline
from serving.protocols.grpc_calls import abort
from serving.wire.reflection import INFERENCE_SERVICE
from serving.workers import Workers

MESSAGE_SECONDS = 10.0
"""In which the message of a call must come."""

_STREAM_THREADS = 16
_OPEN = {f"/{INFERENCE_SERVICE}/{name}" for name in ("ServerLive", "ServerReady")}
"""Calls that need no token, as health checking and reflection do not."""

Continuation = Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None]


class Admission(grpc.ServerInterceptor):
    """Wraps every method of a server."""

    def __init__(
        self, workers: Workers, access: Access | None, ended: Ended, message_seconds: float = MESSAGE_SECONDS
    ):
        """`access` is None where everybody may do everything. `ended` is told of calls that are refused."""
        self._workers, self._access, self._ended = workers, access, ended
        self._arrivals = _Arrivals(message_seconds)
        self._streams = ThreadPoolExecutor(_STREAM_THREADS, thread_name_prefix="streams")
        self._wrapped: dict[str, grpc.RpcMethodHandler] = {}

    def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> grpc.RpcMethodHandler | None:
        """The wrapped method; None where there is none of that name."""
        method = handler_call_details.method
        if method not in self._wrapped:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            self._wrapped[method] = self._wrap(method, handler)
        return self._wrapped[method]

    def close(self) -> None:
        """Ends the threads; after the server has stopped."""
        self._arrivals.close()
        self._streams.shutdown(wait=False)

    def _wrap(self, method: str, handler: grpc.RpcMethodHandler) -> grpc.RpcMethodHandler:
        service = method[1:].partition("/")[0]
        coding = (handler.request_deserializer, handler.response_serializer)
        if service == reflection.SERVICE_NAME:
            return grpc.stream_stream_rpc_method_handler(self._talking(handler.stream_stream), *coding)
        if service != health.SERVICE_NAME and handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(handler.stream_stream), *coding)
        if service != health.SERVICE_NAME:
            work = self._working(handler.unary_unary, method in _OPEN)
            return grpc.stream_unary_rpc_method_handler(work, *coding)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._watching(handler.unary_stream), *coding)
        return grpc.stream_unary_rpc_method_handler(self._checking(handler.unary_unary), *coding)

    def _working(self, behavior: Any, is_open: bool) -> Any:
        def work(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            try:
                if self._access is not None and not is_open:
                    CALLER.set(self._access.caller_of_call(context))
                message = self._arrivals.first(messages, context)
                turn = self._workers.turn()
            except ServingError as error:
                self._refuse(context, error)
            with turn:
                return behavior(message, context)

        return work

    def _streaming(self, behavior: Any) -> Any:
        """Messages and answers one by one. Whoever answers takes turns, and bounds how many are open."""

        def work(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            try:
                if self._access is not None:
                    CALLER.set(self._access.caller_of_call(context))
            except ServingError as error:
                self._refuse(context, error)
            yield from behavior(self._arrivals.each(messages, context), context)

        return work

    def _refuse(self, context: grpc.ServicerContext, error: ServingError) -> NoReturn:
        timeline = Timeline("GRPC", UNROUTED)
        timeline.refused(error.code, error.reason)
        self._ended(timeline)
        abort(context, error)

    def _checking(self, behavior: Any) -> Any:
        def check(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            return behavior(self._first_or_abort(messages, context), context)

        return check

    def _watching(self, behavior: Any) -> Any:
        """A health Watch: a thread for its message, none for its answers."""

        def watch(messages: Iterator[Any], context: grpc.ServicerContext, send: Callable) -> None:
            behavior(self._first_or_abort(messages, context), context, send)

        watch.experimental_non_blocking = True  # type: ignore[attr-defined]
        watch.experimental_thread_pool = self._streams  # type: ignore[attr-defined]
        return watch

    def _talking(self, behavior: Any) -> Any:
        """Reflection: its thread is free again when a message does not come in time."""

        def talk(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            return behavior(self._arrivals.each(messages, context), context)

        talk.experimental_thread_pool = self._streams  # type: ignore[attr-defined]
        return talk

    def _first_or_abort(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        try:
            return self._arrivals.first(messages, context)
        except ServingError as error:
            abort(context, error)


class _Arrivals:
    """Calls that wait for a message; those that wait too long are cancelled."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._waiting: dict[int, tuple[float, grpc.ServicerContext]] = {}
        self._stop = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="arrivals", daemon=True)
        self._sweeper.start()

    def first(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The next message. Raises `InvalidRequestError` where the client ends without one."""
        self._waiting[id(context)] = (time.monotonic(), context)
        try:
            return next(messages)
        except StopIteration:
            raise InvalidRequestError("the call has no message; send exactly one") from None
        finally:
            del self._waiting[id(context)]

    def each(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """All messages."""
        while True:
            self._waiting[id(context)] = (time.monotonic(), context)
            try:
                message = next(messages)
            except StopIteration:
                return
            finally:
                del self._waiting[id(context)]
            yield message

    def close(self) -> None:
        self._stop.set()
        self._sweeper.join()

    def _sweep(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds)):
            late = time.monotonic() - self._seconds
            for since, context in list(self._waiting.values()):
                if since < late:
                    context.cancel()
