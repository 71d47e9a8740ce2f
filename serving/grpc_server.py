"""The gRPC server: PredictionService, health checking and reflection on one port, with a clean end."""

import logging
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from jaxrank.errors import JaxrankError
from serving.repository import ModelRepository
from serving.servicer import PredictionServicer
from serving.wire.reflection import SERVICE, public_pool

log = logging.getLogger("jaxrank")

_ARRIVAL_SECONDS = 0.2


class StartError(JaxrankError):
    """The server cannot start: a directory or port is not usable."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server runs. Sizes in MiB, times in seconds."""

    models_dir: Path
    host: str = "0.0.0.0"
    port: int = 8500
    target: str = "cpu"
    engine: str | None = None
    streams: int | None = None
    workers: int = 8
    max_message_mib: int = 64
    poll_seconds: float = 1.0
    grace_seconds: float = 10.0


class Server:
    """A running server. `address` is where it listens; with port 0 the system chooses one."""

    def __init__(self, options: ServerOptions):
        """Loads what is in the models directory and starts to answer. Raises `StartError`."""
        if not options.models_dir.is_dir():
            raise StartError(
                f"{options.models_dir} is not a directory; it must hold <model>/<version>/ bundles"
            )
        self._options = options
        self.repository = ModelRepository(
            options.models_dir, target=options.target, engine=options.engine, streams=options.streams
        )
        size = options.max_message_mib << 20
        # gRPC hands a request to a worker thread as soon as one is free; a few more may wait, the rest is
        # refused at once (RESOURCE_EXHAUSTED) instead of growing a queue.
        self._server = grpc.server(
            ThreadPoolExecutor(options.workers, thread_name_prefix="rpc"),
            maximum_concurrent_rpcs=options.workers * 8,
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", 0),
            ],
        )
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers((PredictionServicer(self.repository).handler(),))
        reflection.enable_server_reflection(
            (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server, pool=public_pool()
        )
        host = f"[{options.host}]" if ":" in options.host else options.host  # an IPv6 address
        try:
            port = self._server.add_insecure_port(f"{host}:{options.port}")
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {host}:{options.port}: {error}; is another server on that port? (--port)"
            ) from error
        self.address = f"{host}:{port}"
        self._report_health()
        self._server.start()
        self.repository.scan()
        self._stopped = threading.Event()
        self._monitor = threading.Thread(target=self._watch, name="health", daemon=True)
        self._monitor.start()
        self.repository.watch(options.poll_seconds)

    def stop(self) -> None:
        """Reports NOT_SERVING, refuses new requests a moment later, lets those in flight finish within the
        grace period, and closes every model."""
        self._stopped.set()
        self._monitor.join()
        self._health.enter_graceful_shutdown()
        # gRPC answers CANCELLED, which clients do not retry, to a request that arrives just as it stops.
        # Requests already on their way are still answered.
        time.sleep(min(_ARRIVAL_SECONDS, self._options.grace_seconds))
        self._server.stop(self._options.grace_seconds).wait()
        self.repository.close()

    def _watch(self) -> None:
        self._report_health()
        while not self._stopped.wait(min(self._options.poll_seconds, 1.0)):
            self._report_health()

    def _report_health(self) -> None:
        serving = health_pb2.HealthCheckResponse.ServingStatus
        status = serving.SERVING if self.repository.loaded() else serving.NOT_SERVING
        for service in ("", SERVICE):
            self._health.set(service, status)


def serve(options: ServerOptions) -> None:
    """Serves until SIGINT or SIGTERM, then drains. Raises `StartError`."""
    done = threading.Event()

    def stop(*_: object) -> None:
        # A second signal does not wait: not for requests in flight, nor for models that load.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        done.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    server = Server(options)
    models = ", ".join(f"{name} version {version}" for name, version in server.repository.loaded().items())
    log.info("serving on %s: %s", server.address, models or f"no models yet in {options.models_dir}")
    done.wait()
    log.info("stopping: finishing requests in flight (at most %g s)", options.grace_seconds)
    server.stop()
    log.info("stopped")
