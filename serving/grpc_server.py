"""The server: its gRPC services, health checking and reflection on one port, REST on another, with a clean
end."""

import gc
import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from jaxrank.errors import JaxrankError
from serving.admission import IDLE_CALLS, MESSAGE_SECONDS, PROBES, Admission
from serving.auth import Access
from serving.config_watch import ConfigWatch
from serving.cores import capacity
from serving.cpu_target import CpuTarget
from serving.data_plane import DataPlane
from serving.degradation import Degradation, DegradationError, load_degradation_config
from serving.errors import LabelError
from serving.lifecycle import LifecycleOptions
from serving.lifecycle.shadow import Shadow
from serving.message_bytes import MessageBytes
from serving.model_config import ModelConfig
from serving.monitoring.monitor import Monitor
from serving.monitoring.options import MonitoringOptions
from serving.processes import Member
from serving.protocols.kserve import KServe
from serving.protocols.kserve_grpc import InferenceService
from serving.protocols.kserve_rest import KServeRest
from serving.protocols.lifecycle_rest import LifecycleRest
from serving.protocols.model_service import ModelService
from serving.protocols.prediction_service import PredictionService
from serving.protocols.ranking_service import RankingService
from serving.protocols.rest_tensorflow import TensorFlowRest
from serving.repository import ModelRepository
from serving.rest_server import RestOptions, RestServer, Routes
from serving.scheduling import SchedulingOptions, Turns
from serving.state import StateCache
from serving.tiers.config import load_config
from serving.tiers.placement import Tiers
from serving.tls import Tls
from serving.wire.reflection import (
    INFERENCE_SERVICE,
    MODEL_SERVICE,
    PREDICTION_SERVICE,
    RANKING_SERVICE,
    public_pool,
)
from serving.workers import Workers

log = logging.getLogger("jaxrank")

_ARRIVAL_SECONDS = 0.2
_SERVICES = (PREDICTION_SERVICE, MODEL_SERVICE, INFERENCE_SERVICE, RANKING_SERVICE)


class StartError(JaxrankError):
    """The server cannot start: a directory or port is not usable."""


@dataclass(frozen=True)
class ServerOptions:
    """How a server runs. Sizes in MiB, times in seconds.

    Attributes:
        models: a directory of `<name>/<version>/` bundles, or the models by name.
        poll_seconds: between looks for new versions; 0: only one look, at the start.
        config_file: looked at every `config_poll_seconds` for other models than those; None: never.
        socket_path: a Unix socket on which gRPC is answered, too.
        channel_arguments: gRPC's own; they win over ours.
        tls: of the gRPC port and, without `rest_plaintext`, of HTTP; None: in the clear.
        rest_port: where HTTP is answered; None: nowhere.
    """

    models: Path | Sequence[ModelConfig]
    host: str = "0.0.0.0"
    port: int = 8500
    target: str = "cpu"
    engine: str | None = None
    streams: int | None = None
    workers: int = 8
    max_message_mib: int = 64
    max_in_flight_mib: int = 1024
    """Of the messages of all requests that wait or are answered."""
    poll_seconds: float = 1.0
    grace_seconds: float = 10.0
    scheduling: SchedulingOptions = SchedulingOptions()
    load_retries: int = 5
    retry_seconds: float = 60.0
    labels_of_unavailable: bool = False
    check_method: bool = False
    tensor_content: bool = False
    config_file: Path | None = None
    config_poll_seconds: float = 0.0
    socket_path: str | None = None
    channel_arguments: Sequence[tuple[str, int | str]] = ()
    tls: Tls | None = None
    rest_port: int | None = None
    rest_plaintext: bool = False
    rest_timeout_seconds: float = 30.0
    cors: bool = False
    tables_config: Path | None = None
    """Which tables are in stores instead of memory; docs/tiers.md."""
    monitoring: MonitoringOptions = MonitoringOptions()
    state_cache_mb: float = 256.0
    """Of request sides that are kept for the next slice of the same request; 0: none are. docs/state.md."""
    state_ttl_ms: float = 5000.0
    lifecycle: LifecycleOptions = LifecycleOptions()
    cpu_target: float | None = None
    """Share of its CPUs that the server stays under; None for all. docs/overload.md."""
    degradation_config: Path | None = None
    """What models may leave out under overload; docs/overload.md."""
    auth_config: Path | None = None
    """Who may do what; None: everybody everything. docs/security.md."""
    message_seconds: float = MESSAGE_SECONDS
    """In which the message of a gRPC call must come."""
    member: Member | None = None
    """Of several processes that share the ports; None: this one is alone."""


class Server:
    """A running server. `address` is where gRPC is answered, `rest_address` where HTTP is; with port 0 the
    system chooses one."""

    def __init__(self, options: ServerOptions, stopping: Future[None] | None = None):
        """Loads the models and starts to answer. Where `stopping` is done before all are loaded, returns
        without the others: all that is left to do is `stop`. Raises `StartError`, and `TierConfigError` for
        the tables config."""
        if isinstance(options.models, Path) and not options.models.is_dir():
            raise StartError(f"{options.models} is not a directory; it must hold <model>/<version>/ bundles")
        if options.max_in_flight_mib < options.max_message_mib:
            raise StartError(
                f"--max-in-flight-mib {options.max_in_flight_mib} is less than --max-message-mib "
                f"{options.max_message_mib}: the largest message could never be taken"
            )
        self._options, self._stopping = options, stopping or Future()
        self._rest: RestServer | None = None
        self._health_watch: threading.Thread | None = None
        self._config_watch: ConfigWatch | None = None
        self._stopped = threading.Event()
        self._tiers = None if options.tables_config is None else Tiers(load_config(options.tables_config))
        self.states = (
            StateCache(int(options.state_cache_mb * 1e6), options.state_ttl_ms / 1e3)
            if options.state_cache_mb > 0
            else None
        )
        self.repository = ModelRepository(
            options.models,
            target=options.target,
            engine=options.engine,
            streams=options.streams,
            load_retries=options.load_retries,
            retry_seconds=options.retry_seconds,
            labels_of_unavailable=options.labels_of_unavailable,
            tiers=self._tiers,
            scheduling=options.scheduling,
            states=self.states,
            lifecycle=options.lifecycle,
            one_of_many=options.member is not None,
        )
        messages = MessageBytes(options.max_in_flight_mib << 20)
        self._turns = turns = Turns(options.workers, options.scheduling.max_waiting)
        processes = 1 if options.member is None else options.member.place.count
        cpu = CpuTarget(capacity(processes=processes), options.cpu_target)
        self._shadow = Shadow(self.repository.lend)
        self.degradation = (
            None
            if options.degradation_config is None
            else Degradation(
                load_degradation_config(options.degradation_config), self.repository.lend, turns.waits, cpu
            )
        )
        self._monitor = Monitor(options.monitoring, self.repository, cpu, messages, self.degradation)
        ended = self._monitor.ended
        data_plane = DataPlane(
            self.repository,
            self._tiers,
            self._monitor.counts,
            self._monitor.keeps,
            self._shadow,
            self.degradation,
            cpu,
            turns,
        )
        kserve = KServe(data_plane)
        size = options.max_message_mib << 20
        self._access = None if options.auth_config is None else Access(options.auth_config)
        self._admission = Admission(
            turns.most + IDLE_CALLS, self._access, ended, messages, options.message_seconds
        )
        # Threads come when they are needed: for gRPC's calls, and for HTTP's requests.
        self._workers = Workers(self._admission.threads + turns.most + PROBES)
        self._server = grpc.server(
            self._workers,
            interceptors=[self._admission],
            maximum_concurrent_rpcs=self._admission.most_calls,
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", int(options.member is not None)),
                *options.channel_arguments,
            ],
        )
        # Answers of a Watch wait on its own thread, not under the servicer's lock on whoever tells.
        self._health = health.HealthServicer(experimental_non_blocking=False)
        self._reported: int | None = None
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        self._server.add_generic_rpc_handlers(
            (
                PredictionService(data_plane, options.check_method, options.tensor_content).handler(
                    self._workers, ended
                ),
                ModelService(self.repository).handler(self._workers, ended),
                InferenceService(kserve).handler(self._workers, ended),
                RankingService(data_plane, max(options.workers // 2, 1)).handler(self._workers, ended),
            )
        )
        reflection.enable_server_reflection(
            (*_SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server, pool=public_pool()
        )
        # Whoever listens on a shared port is given connections: first the models, everywhere.
        if options.member is not None and not (
            self._finished(self.repository.scan) and self._finished(options.member.wait_for_others)
        ):
            return
        host = f"[{options.host}]" if ":" in options.host else options.host  # an IPv6 address
        credentials = None if options.tls is None else options.tls.credentials()
        port = self._listen(f"{host}:{options.port}", credentials)
        if options.socket_path is not None:
            self._listen(f"unix:{options.socket_path}", None)
        self.address = f"{host}:{port}"
        self._rest = self._start_rest(
            [
                LifecycleRest(data_plane).routes,
                TensorFlowRest(data_plane, options.check_method).routes,
                KServeRest(kserve).routes,
            ],
            turns.most,
            messages,
        )
        self.rest_address = f"{host}:{self._rest.port}" if self._rest is not None else None
        self._report_health()
        self._server.start()
        if not self._finished(self.repository.scan):
            return
        try:
            self.repository.assign_labels()
            if self.degradation is not None:
                self.degradation.check()
        except (LabelError, DegradationError) as error:
            self._server.stop(0)
            if self._rest is not None:
                self._rest.stop(0)
            self._monitor.close()
            self._shadow.close()
            if self.degradation is not None:
                self.degradation.close()
            self.repository.close()
            raise StartError(str(error)) from error
        self._health_watch = threading.Thread(target=self._watch, name="health", daemon=True)
        self._health_watch.start()
        if options.poll_seconds > 0:
            self.repository.watch(options.poll_seconds)
        if options.config_file is not None:
            self._config_watch = ConfigWatch(
                options.config_file, options.config_poll_seconds, self.repository, options.models
            )

    def stop(self) -> bool:
        """Reports NOT_SERVING, refuses new requests a moment later, lets those in flight finish within the
        grace period, and closes every model that no request uses. Returns whether all had finished."""
        self._stopped.set()
        if self._config_watch is not None:
            self._config_watch.stop()
        if self._health_watch is not None:
            self._health_watch.join(_ARRIVAL_SECONDS)
        self._health.enter_graceful_shutdown()
        ends = time.monotonic() + self._options.grace_seconds
        # gRPC answers CANCELLED, which clients do not retry, to a request that arrives just as it stops.
        # Requests already on their way are still answered.
        time.sleep(min(_ARRIVAL_SECONDS, self._options.grace_seconds))
        self._server.stop(max(0.0, ends - time.monotonic()))
        if self._rest is not None:
            self._rest.drain()
        # A health Watch never ends on its own: what is waited for is work, not streams.
        finished = self._workers.wait_until_idle(max(0.0, ends - time.monotonic()))
        if self._rest is not None:
            self._rest.stop(max(0.0, ends - time.monotonic()))
        self._server.stop(0).wait()
        self._monitor.close()
        self._shadow.close()
        if self.degradation is not None:
            self.degradation.close()
        self._admission.close()
        if self._access is not None:
            self._access.close()
        self.repository.close()
        if self._config_watch is not None:
            self._config_watch.close(_ARRIVAL_SECONDS)
        if self._tiers is not None:
            self._tiers.close()
        return finished

    def _finished(self, work: Callable[[], None]) -> bool:
        """Has the work done on a thread. Returns whether it has ended: before that only where the server is
        stopping, and nobody waits for it any more. Raises what it raises."""
        if self._stopping.done():
            return False
        done: Future[None] = Future()

        def run() -> None:
            try:
                done.set_result(work())
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=run, name="first-load", daemon=True).start()
        wait((done, self._stopping), return_when=FIRST_COMPLETED)
        if done.done():
            done.result()
        return done.done()

    def _listen(self, address: str, credentials: grpc.ServerCredentials | None) -> int:
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise StartError(
                f"cannot listen on {address}: {error}; is another server there? (--port, --grpc_socket_path; "
                "with TLS: are --ssl_config_file's texts PEM?)"
            ) from error

    def _start_rest(
        self, protocols: Sequence[Routes], max_requests: int, messages: MessageBytes
    ) -> RestServer | None:
        options = self._options
        if options.rest_port is None:
            return None
        rest = RestOptions(
            host=options.host,
            port=options.rest_port,
            timeout_seconds=options.rest_timeout_seconds,
            max_body_mib=options.max_message_mib,
            max_requests=max_requests,
            cors=options.cors,
            share_port=options.member is not None,
            tls=None if options.tls is None or options.rest_plaintext else options.tls.context(),
        )
        try:
            return RestServer(
                rest,
                protocols,
                self._workers,
                self._monitor.ended,
                messages,
                self._monitor.routes,
                self._access,
            )
        except OSError as error:
            raise StartError(
                f"cannot listen on {options.host}:{options.rest_port}: {error}; is another server on that "
                "port? (--rest_api_port)"
            ) from error

    def _watch(self) -> None:
        self._report_health()
        seconds = self._options.poll_seconds
        while not self._stopped.wait(min(seconds, 1.0) if seconds > 0 else 1.0):
            self._report_health()

    def _report_health(self) -> None:
        serving = health_pb2.HealthCheckResponse.ServingStatus
        status = serving.SERVING if self.repository.loaded() else serving.NOT_SERVING
        if status == self._reported:
            return
        self._reported = status
        for service in ("", *_SERVICES):
            self._health.set(service, status)


def serve(options: ServerOptions) -> bool:
    """Serves until SIGINT or SIGTERM, also while the first models load, then drains. Returns whether every
    request finished within the grace period. Raises `StartError`."""
    stopping, alone = Future[None](), Future[None]()

    def stop(*_: object) -> None:
        # A second signal does not wait: not for requests in flight, nor for models that load.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        stopping.set_result(None)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    # The garbage collector need not look at the program's own modules again and again.
    gc.collect()
    gc.freeze()
    server = Server(options, stopping)
    if not stopping.done():
        if options.member is not None:
            options.member.serving(when_alone=lambda: alone.set_result(None))
        loaded = server.repository.loaded().items()
        if server.rest_address is not None:
            clear = options.tls is None or options.rest_plaintext
            log.info("HTTP on %s%s", server.rest_address, "" if clear else ", with TLS")
        models = ", ".join(f"{name} version {version}" for name, version in loaded)
        log.info("serving on %s: %s", server.address, models or "no models yet")
        wait((stopping, alone), return_when=FIRST_COMPLETED)
    log.info("stopping: finishing requests in flight (at most %g s)", options.grace_seconds)
    finished = server.stop()
    log.info("stopped" if finished else "stopped with requests that did not finish in time")
    return finished
