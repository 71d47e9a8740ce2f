"""What a gRPC call passes before a protocol sees it: room among the calls of its kind, who calls, a message
that comes in time, and room for its bytes.

gRPC's Python server gives a call a thread as soon as it begins, though its message may never come. So there
are more threads than may work at once: a call waits for its message on one of the others, for so many seconds
at most. Calls of every kind are bounded, so that none keeps others out: streams of health checking and
reflection have threads of their own, and whoever asks whether the server is ready always finds one.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any, NoReturn

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from serving.auth import CALLER, Access
from serving.errors import InvalidRequestError, OverloadedError, ServingError
from serving.message_bytes import MessageBytes
from serving.monitoring.ended import Ended
from serving.monitoring.timeline import UNROUTED, Timeline
from serving.protocols.grpc_calls import abort
from serving.protocols.ranking_service import MAX_STREAM_SECONDS
from serving.wire.reflection import INFERENCE_SERVICE, MODEL_SERVICE

MESSAGE_SECONDS = 10.0
"""In which the message of a call must come, of a stream of slices the first one."""

IDLE_CALLS = 128
"""Of a server, beside those whose requests are answered or wait: calls whose message has not come, and those
that do not run a model."""
PROBES = 16
"""Calls that ask how the server is while all others are there. As many again may be told that there is no
room."""
WATCHES, REFLECTIONS = 64, 16
"""Streams that are open at once; each holds a thread that sleeps."""

_OPEN = {f"/{INFERENCE_SERVICE}/{name}" for name in ("ServerLive", "ServerReady")}
"""Calls that need no token, as health checking and reflection do not."""
_PROBES = {*_OPEN, f"/{INFERENCE_SERVICE}/ModelReady", f"/{MODEL_SERVICE}/GetModelStatus"}

Continuation = Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None]


class Admission(grpc.ServerInterceptor):
    """Wraps every method of a server.

    Attributes:
        threads: that its calls may hold, beside those of streams.
        most_calls: of all kinds, at once; what gRPC itself refuses beyond them is seen nowhere.
    """

    def __init__(
        self,
        calls: int,
        access: Access | None,
        ended: Ended,
        messages: MessageBytes,
        message_seconds: float = MESSAGE_SECONDS,
    ):
        """So many `calls` are taken at once, beside probes and the streams of health checking and reflection.
        `access` is None where everybody may do everything. `ended` is told of calls that are refused."""
        self._access, self._ended, self._messages = access, ended, messages
        self._arrivals = _Arrivals(message_seconds)
        self._calls, self._probes = _Room(calls, "calls"), _Room(PROBES, "calls of this kind")
        self._watches = _Room(WATCHES, "Watches of health")
        self._reflections = _Room(REFLECTIONS, "streams of reflection")
        self.threads = calls + 2 * PROBES
        self.most_calls = self.threads + WATCHES + REFLECTIONS
        self._streams = ThreadPoolExecutor(WATCHES + REFLECTIONS + PROBES, thread_name_prefix="streams")
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
        # Health checking and reflection would have gRPC parse: `_parsed`.
        coding = (None, handler.response_serializer)
        if service == reflection.SERVICE_NAME:
            return grpc.stream_stream_rpc_method_handler(self._talking(handler), *coding)
        if service != health.SERVICE_NAME and handler.request_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streaming(handler.stream_stream), *coding)
        if service != health.SERVICE_NAME:
            room = self._probes if method in _PROBES else self._calls
            work = self._working(handler.unary_unary, room, method in _OPEN)
            return grpc.stream_unary_rpc_method_handler(work, *coding)
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(self._watching(handler), *coding)
        return grpc.stream_unary_rpc_method_handler(self._checking(handler), *coding)

    def _working(self, behavior: Any, room: "_Room", is_open: bool) -> Any:
        def work(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with self._entered(room, context):
                try:
                    if self._access is not None and not is_open:
                        CALLER.set(self._access.caller_of_call(context))
                except ServingError as error:
                    self._refuse(context, error)
                with self._first(messages, context) as message:
                    return behavior(message, context)

        return work

    def _streaming(self, behavior: Any) -> Any:
        """Messages and answers one by one. Whoever answers bounds how many are open, and their deadlines:
        a client may think until then before it sends another message."""

        def work(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._entered(self._calls, context):
                try:
                    if self._access is not None:
                        CALLER.set(self._access.caller_of_call(context))
                except ServingError as error:
                    self._refuse(context, error)
                with closing(self._each(messages, context, MAX_STREAM_SECONDS)) as each:
                    yield from behavior(each, context)

        return work

    @contextmanager
    def _entered(self, room: "_Room", context: grpc.ServicerContext) -> Iterator[None]:
        """One of the calls in a room, while it holds a thread."""
        try:
            room.enter()
        except ServingError as error:
            self._refuse(context, error)
        try:
            yield
        finally:
            room.leave()

    @contextmanager
    def _first(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """A call's message, whose bytes are held inside."""
        held = self._messages.hold()
        try:
            try:
                message = self._arrivals.first(messages, context)
                held.add(len(message))
            except ServingError as error:
                self._refuse(context, error)
            yield message
        finally:
            held.end()

    def _each(
        self, messages: Iterator[Any], context: grpc.ServicerContext, later_seconds: float | None = None
    ) -> Generator[Any, None, None]:
        """All messages of a stream; `later_seconds` are for each but the first, as many as for that by
        default. What the first one asks is needed until the end, each other one until the next."""
        first, other = held = self._messages.hold(), self._messages.hold()
        try:
            for number, message in enumerate(self._arrivals.each(messages, context, later_seconds)):
                other.end()
                held[min(number, 1)].add(len(message))
                yield message
        except ServingError as error:
            self._refuse(context, error)
        finally:
            first.end()
            other.end()

    def _refuse(self, context: grpc.ServicerContext, error: ServingError) -> NoReturn:
        timeline = Timeline("GRPC", UNROUTED)
        timeline.refused(error.code, error.reason)
        self._ended(timeline)
        abort(context, error)

    def _parsed(self, handler: Any, data: bytes, context: grpc.ServicerContext) -> Any:
        """The message that a handler of gRPC's own takes. Where it does not parse gRPC would answer INTERNAL,
        with a traceback in the log."""
        try:
            return handler.request_deserializer(data)
        except DecodeError:
            self._refuse(context, InvalidRequestError(f"the request's {len(data)} bytes do not parse"))

    def _checking(self, handler: Any) -> Any:
        def check(messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
            with self._entered(self._probes, context), self._first(messages, context) as data:
                return handler.unary_unary(self._parsed(handler, data, context), context)

        return check

    def _watching(self, handler: Any) -> Any:
        """A health Watch, which ends when its client does."""

        def watch(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            with self._entered(self._watches, context), self._first(messages, context) as data:
                answers = handler.unary_stream(self._parsed(handler, data, context), context)
                if not context.is_active():  # it ended before the servicer asked to be told
                    answers.close()
                yield from answers

        watch.experimental_thread_pool = self._streams  # type: ignore[attr-defined]
        return watch

    def _talking(self, handler: Any) -> Any:
        """Reflection: its thread is free again when a message does not come in time."""

        def talk(messages: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            each = self._each(messages, context)
            with self._entered(self._reflections, context), closing(each):
                parsed = (self._parsed(handler, data, context) for data in each)
                yield from handler.stream_stream(parsed, context)

        talk.experimental_thread_pool = self._streams  # type: ignore[attr-defined]
        return talk


class _Room:
    """So many calls of a kind."""

    def __init__(self, most: int, what: str):
        self._free = threading.BoundedSemaphore(most)
        self._refusal = f"{most} {what} are open, which is as many as there may be; try again later"

    def enter(self) -> None:
        """Raises `OverloadedError`."""
        if not self._free.acquire(blocking=False):
            raise OverloadedError(self._refusal)

    def leave(self) -> None:
        self._free.release()


class _Arrivals:
    """Calls that wait for a message; those that wait too long are cancelled."""

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._waiting: dict[int, tuple[float, grpc.ServicerContext]] = {}
        """By call, until when it waits."""
        self._stop = threading.Event()
        self._sweeper = threading.Thread(target=self._sweep, name="arrivals", daemon=True)
        self._sweeper.start()

    def first(self, messages: Iterator[Any], context: grpc.ServicerContext) -> Any:
        """The next message. Raises `InvalidRequestError` where the client ends without one."""
        self._waiting[id(context)] = (time.monotonic() + self._seconds, context)
        try:
            return next(messages)
        except StopIteration:
            raise InvalidRequestError("the call has no message; send exactly one") from None
        finally:
            del self._waiting[id(context)]

    def each(
        self, messages: Iterator[Any], context: grpc.ServicerContext, later_seconds: float | None
    ) -> Iterator[Any]:
        """All messages, of which each but the first may take `later_seconds`."""
        seconds = self._seconds
        while True:
            self._waiting[id(context)] = (time.monotonic() + seconds, context)
            try:
                message = next(messages)
            except StopIteration:
                return
            finally:
                del self._waiting[id(context)]
            yield message
            seconds = self._seconds if later_seconds is None else later_seconds

    def close(self) -> None:
        self._stop.set()
        self._sweeper.join()

    def _sweep(self) -> None:
        while not self._stop.wait(min(1.0, self._seconds)):
            now = time.monotonic()
            for until, context in list(self._waiting.values()):
                if until < now:
                    context.cancel()
