"""HTTP for the REST protocols: aiohttp on a thread of its own reads and writes, the shared workers do the
work.

Everything that a client decides is bounded: connections, requests at once, bytes of a header, of a body
(after decompression) and of all bodies, the time that either may take.
"""

import asyncio
import errno
import logging
import math
import ssl
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
from aiohttp import web
from aiohttp.web_protocol import RequestHandler

from serving.auth import ALL_MODELS, Access, Caller, calling, require
from serving.errors import (
    HTTP_STATUS,
    DeadlineError,
    InvalidRequestError,
    OverloadedError,
    UnauthenticatedError,
    refusal,
)
from serving.lifecycle.trials import ROUTING_KEY
from serving.message_bytes import Held, MessageBytes
from serving.monitoring.ended import Ended
from serving.monitoring.timeline import TRACEPARENT, UNROUTED, Timeline
from serving.protocols.json_tensors import dumps
from serving.scheduling import ANY_TIME, PRIORITY, Urgency, priority_of
from serving.tls import subject_of
from serving.workers import Workers

log = logging.getLogger("jaxrank")

# aiohttp logs what malformed requests raise in its parser, with tracebacks; faults of ours are in `refusal`.
_protocol_log = logging.getLogger("jaxrank.http")
_protocol_log.setLevel(logging.CRITICAL)

_COMPRESS_FROM = 1024
"""Bytes of an answer below which compression costs more than it saves."""
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
_SAY_SECONDS = 10.0
_SECONDS_OF_HEADERS = 10.0
_SECONDS_OF_IDLENESS = 75.0
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
    "Access-Control-Allow-Headers": "Authorization, Content-Type",
}
_OPEN = ("/v2/health/live", "/v2/health/ready")
"""Paths that need no token."""


@dataclass(frozen=True)
class HttpRequest:
    """A request with its whole body, decompressed."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True)
class HttpAnswer:
    """What goes back."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


Route = Callable[[HttpRequest, Urgency], HttpAnswer]
Routes = Callable[[str, str], Route | None]
"""From a method and a path to what answers them; None where it is not this protocol's."""


@dataclass(frozen=True)
class RestOptions:
    """How the HTTP side runs. Times in seconds."""

    host: str = "0.0.0.0"
    port: int = 8501
    timeout_seconds: float = 30.0
    max_body_mib: int = 64
    max_requests: int = 64
    """That want something done, at once, waiting ones included; more are refused. Questions (GET) are not."""
    max_connections: int = 1024
    cors: bool = False
    header_seconds: float = _SECONDS_OF_HEADERS
    """In which the headers of a request must come: from its first byte, or where it is the first one of a
    connection, from the beginning of that."""
    idle_seconds: float = _SECONDS_OF_IDLENESS
    """In which the first byte of the next request must come."""
    share_port: bool = False
    """Whether other processes listen on the port, too."""
    tls: ssl.SSLContext | None = None


class RestServer:
    """A running HTTP server; `port` is where it listens."""

    def __init__(
        self,
        options: RestOptions,
        protocols: Sequence[Routes],
        workers: Workers,
        ended: Ended,
        messages: MessageBytes,
        operations: Routes = lambda method, path: None,
        access: Access | None = None,
    ):
        """Starts to answer; to everybody where `access` is None. `ended` is told of every request of a
        protocol. `operations` are answered on a thread of their own, also by a server that is busy or refuses
        requests. Raises `OSError` for a port that cannot be used."""
        self._options, self._protocols, self._workers, self._ended = options, protocols, workers, ended
        self._operations, self._access, self._messages = operations, access, messages
        self._operator = ThreadPoolExecutor(1, thread_name_prefix="operations")
        self._requests = self._posts = 0
        self._draining = False
        self._loop = asyncio.new_event_loop()
        self._loop.set_exception_handler(_Faults())
        self._thread = threading.Thread(target=self._loop.run_forever, name="rest", daemon=True)
        self._thread.start()
        try:
            self._listener, self.port = self._on_loop(self._start())
        except OSError:
            self._close_loop()
            raise

    def drain(self) -> None:
        """Closes the port, and each connection with its next answer: what comes goes to other servers."""
        self._loop.call_soon_threadsafe(self._drain)

    def stop(self, seconds: float) -> None:
        """Closes the port, lets requests in flight finish within `seconds`, and ends."""
        self._on_loop(self._finish(seconds))
        self._close_loop()

    def _on_loop(self, work):  # noqa: ANN001, ANN202
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _close_loop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._operator.shutdown()

    async def _start(self) -> tuple[asyncio.Server, int]:
        self._http = _BoundedServer(
            self._respond,
            self._options,
            handler_cancellation=True,
            access_log=None,
            # `_BoundedServer` ends idle connections; aiohttp would end those, too, on which headers come.
            keepalive_timeout=self._options.idle_seconds + self._options.header_seconds,
            logger=_protocol_log,
        )
        tls = self._options.tls
        listener = await self._loop.create_server(
            self._http,
            self._options.host,
            self._options.port,
            reuse_port=self._options.share_port or None,
            ssl=tls,
            # A connection counts, and its headers are waited for, from the end of its handshake.
            ssl_handshake_timeout=None if tls is None else self._options.header_seconds,
        )
        return listener, listener.sockets[0].getsockname()[1]

    def _drain(self) -> None:
        self._draining = True
        self._listener.close()
        self._http.close_idle()

    async def _finish(self, seconds: float) -> None:
        self._drain()
        ends = time.monotonic() + seconds
        while self._requests and time.monotonic() < ends:
            await asyncio.sleep(0.01)
        self._http.close_idle()
        await self._http.shutdown(0.1)

    async def _respond(self, request: web.BaseRequest) -> web.StreamResponse:
        self._http.busy(request)
        self._requests += 1
        self._workers.begin()
        try:
            answer = await self._answer(request)
        except Exception as error:
            answer = _told(error)
        finally:
            self._workers.end()
            self._requests -= 1
            self._http.idle(request)
        headers = {**answer.headers, **(_CORS if self._options.cors else {})}
        headers.setdefault("Content-Type", answer.content_type)
        response = web.Response(body=answer.body, status=answer.status, headers=headers)
        if len(answer.body) >= _COMPRESS_FROM and "gzip" in request.headers.get("Accept-Encoding", ""):
            response.enable_compression(web.ContentCoding.gzip)
        if self._draining or not request.content.is_eof():
            response.force_close()  # what is left of the body is not read
        return response

    async def _answer(self, request: web.BaseRequest) -> HttpAnswer:
        if self._options.cors and request.method == "OPTIONS":
            return HttpAnswer(b"")
        operation = self._operations(request.method, request.path)
        if operation is not None:
            with calling(self._caller(request)):
                require("status", ALL_MODELS)
            asked = HttpRequest(request.method, request.path, request.headers, b"")
            return await self._loop.run_in_executor(self._operator, operation, asked, ANY_TIME)
        route = next(filter(None, (p(request.method, request.path) for p in self._protocols)), None)
        if route is None:
            return HttpAnswer(dumps({"error": f"Not Found: {request.method} {request.path[:200]}"}), 404)
        if request.method != "POST":
            return await self._within_time(request, route)
        if self._posts >= self._options.max_requests:
            self._refused("overloaded", grpc.StatusCode.RESOURCE_EXHAUSTED)
            raise OverloadedError("too many requests at once; try again later, or another replica")
        self._posts += 1
        try:
            return await self._within_time(request, route)
        finally:
            self._posts -= 1

    async def _within_time(self, request: web.BaseRequest, route: Route) -> HttpAnswer:
        caller = self._caller(request)  # before the body is read
        deadline = time.monotonic() + self._options.timeout_seconds
        try:
            async with asyncio.timeout(self._options.timeout_seconds):
                with ExitStack() as stack:
                    held = self._messages.hold()
                    stack.callback(held.end)
                    body = await self._body(request, held)
                    if body is None:
                        limit = self._options.max_body_mib
                        return HttpAnswer(dumps({"error": f"the body is larger than {limit} MiB"}), 413)
                    asked = HttpRequest(request.method, request.path, request.headers, body)
                    return await self._work(route, asked, deadline, caller, stack)
        except TimeoutError:
            raise DeadlineError(
                f"no answer within {self._options.timeout_seconds:g} s (--rest_api_timeout_in_ms)"
            ) from None

    def _caller(self, request: web.BaseRequest) -> Caller | None:
        if self._access is None or request.path in _OPEN:
            return None
        certificate = request.transport.get_extra_info("peercert") if request.transport else None
        subject = subject_of(certificate) if certificate else None
        return self._access.caller(request.headers.get("Authorization"), [subject] if subject else [])

    async def _body(self, request: web.BaseRequest, held: Held) -> bytes | None:
        """The body, or None for one that is too large. Raises `OverloadedError` for one that does not fit
        beside those of other requests."""
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        limit = self._options.max_body_mib << 20
        if (request.content_length or 0) > limit:
            return None
        parts, size = [], 0
        try:
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > limit:
                    return None
                held.add(len(chunk))
                parts.append(chunk)
        except OverloadedError as error:
            self._refused(error.reason, error.code)
            raise
        except web.RequestPayloadError as error:
            raise InvalidRequestError(f"the body cannot be read: {error}") from error
        return b"".join(parts)

    @staticmethod
    def _urgency(
        request: HttpRequest, deadline: float
    ) -> tuple[Urgency, threading.Event, list[Callable[[], None]]]:
        """Also what says that the client left, and what is called then. Raises `InvalidRequestError`."""
        left, told = threading.Event(), list[Callable[[], None]]()

        def on_leave(callback: Callable[[], None]) -> None:
            told.append(callback)
            if left.is_set():
                callback()

        timeline = Timeline("REST", traceparent=request.headers.get(TRACEPARENT, ""))
        key = request.headers.get(ROUTING_KEY)
        urgency = Urgency(
            deadline,
            priority_of(request.headers.get(PRIORITY)),
            left.is_set,
            on_leave,
            timeline=timeline,
            routing_key=request.body if key is None else key.encode(errors="surrogateescape"),
        )
        timeline.remarks = urgency.remarks
        return urgency, left, told

    async def _work(
        self,
        route: Route,
        request: HttpRequest,
        deadline: float,
        caller: Caller | None,
        held: ExitStack,
    ) -> HttpAnswer:
        """What the route answers on a worker, which has what is `held` until it ends, also where nobody waits
        for it any more."""
        urgency, left, told = self._urgency(request, deadline)
        future = self._workers.submit(self._run, route, request, caller, urgency)
        kept = held.pop_all()
        future.add_done_callback(lambda _: kept.close())
        try:
            answer = await asyncio.wrap_future(future)
            if urgency.afterwards:
                # This task writes the answer before the loop does anything else.
                self._loop.call_soon(urgency.answered)
            return answer
        finally:
            left.set()  # the client went away or the time is over, unless there is an answer
            for callback in list(told):
                callback()
            if future.cancel():  # it had not begun
                late = time.monotonic() >= deadline
                code = grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
                self._refused("deadline" if late else "cancelled", code)

    def _run(self, route: Route, request: HttpRequest, caller: Caller | None, urgency: Urgency) -> HttpAnswer:
        """On a worker."""
        timeline = urgency.timeline
        try:
            timeline.api = UNROUTED
            with calling(caller):
                urgency.check()
                timeline.api = ""  # the route knows it
                answer = route(request, urgency)
            return replace(answer, headers={**answer.headers, **urgency.remarks})
        except Exception as error:
            told = refusal(error)
            timeline.refused(told.code, told.reason)
            raise told from None  # `refusal` has logged what it was
        finally:
            self._ended(timeline)

    def _refused(self, reason: str, code: grpc.StatusCode) -> None:
        """Counts a request that no protocol has seen."""
        timeline = Timeline("REST", UNROUTED)
        timeline.refused(code, reason)
        self._ended(timeline)


class _Connection(RequestHandler):
    """Tells its server what comes."""

    def __init__(self, server: "_BoundedServer", **kwargs: Any):
        super().__init__(server, **kwargs)
        self._began = server.began

    def data_received(self, data: bytes) -> None:
        self._began(self)
        super().data_received(data)


class _BoundedServer(web.Server):
    """Bounds connections, how long one may rest, and the time in which it must send the headers of a
    request."""

    def __init__(
        self,
        handler: Callable,
        options: RestOptions,
        **kwargs: object,
    ):
        super().__init__(handler, **kwargs)  # type: ignore[arg-type]
        self._options = options
        self._timers: dict[RequestHandler, asyncio.TimerHandle] = {}
        self._open: dict[RequestHandler, asyncio.Transport] = {}
        self._idle: set[RequestHandler] = set()

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        super().connection_made(handler, transport)
        if len(self._open) >= self._options.max_connections:
            transport.abort()
            return
        self._open[handler] = transport
        self._arm(handler, self._options.header_seconds)

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        super().connection_lost(handler, exc)
        self._open.pop(handler, None)
        self._disarm(handler)

    def busy(self, request: web.BaseRequest) -> None:
        """The headers of a request are there."""
        self._disarm(request.protocol)

    def idle(self, request: web.BaseRequest) -> None:
        """A request was answered: the next one may take its time to begin, not to come."""
        if request.protocol in self._open:
            self._arm(request.protocol, self._options.idle_seconds)
            self._idle.add(request.protocol)

    def began(self, handler: RequestHandler) -> None:
        """Bytes came. The beginning of headers that came with the request before is not seen: what follows
        it is."""
        if handler in self._idle:
            self._arm(handler, self._options.header_seconds)

    def close_idle(self) -> None:
        """Closes connections on which no request is."""
        for handler in list(self._timers):
            self._open[handler].close()

    def _arm(self, handler: RequestHandler, seconds: float) -> None:
        self._disarm(handler)
        loop = asyncio.get_running_loop()
        self._timers[handler] = loop.call_later(seconds, self._open[handler].abort)

    def _disarm(self, handler: RequestHandler) -> None:
        self._idle.discard(handler)
        timer = self._timers.pop(handler, None)
        if timer is not None:
            timer.cancel()


class _Faults:
    """asyncio's exception handler. Without file descriptors asyncio reports every connection that waits, with
    a traceback, and tries again in a second: one line now and then says as much."""

    def __init__(self) -> None:
        self._said_at = -math.inf

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict) -> None:
        error = context.get("exception")
        if not isinstance(error, OSError) or error.errno not in _NO_ROOM:
            loop.default_exception_handler(context)
        elif time.monotonic() - self._said_at > _SAY_SECONDS:
            self._said_at = time.monotonic()
            log.error(
                "HTTP connections wait, because none can be accepted: %s; raise the limit of open files "
                "(systemd: LimitNOFILE=, ulimit -n)",
                error,
            )


def _told(error: Exception) -> HttpAnswer:
    told = refusal(error)
    headers = {"WWW-Authenticate": "Bearer"} if isinstance(told, UnauthenticatedError) else {}
    # It may quote what is no text.
    text = str(told).encode(errors="replace").decode()
    return HttpAnswer(dumps({"error": text}), HTTP_STATUS[told.code], headers=headers)
