"""`jaxrank serve`."""

import importlib.metadata
import logging
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from jaxrank.cli.serve_flags import NOTES

LogFormat = Literal["text", "json"]
TableMemory = Literal["mapped", "prefault", "locked", "huge"]


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"jaxrank {importlib.metadata.version('jaxrank')}")
        raise typer.Exit


def serve(
    context: typer.Context,
    models_dir: Annotated[
        Path | None,
        typer.Argument(help="Directory of <model>/<version>/ bundles, watched for new models and versions."),
    ] = None,
    model_name: Annotated[str, typer.Option(help="Name of the model in --model-base-path.")] = "default",
    model_base_path: Annotated[
        Path | None, typer.Option(help="Directory of one model's versions, instead of MODELS_DIR.")
    ] = None,
    model_config_file: Annotated[
        Path | None,
        typer.Option(help="TensorFlow Serving's ModelServerConfig as text, instead of MODELS_DIR."),
    ] = None,
    model_config_file_poll_wait_seconds: Annotated[
        float, typer.Option(help="Seconds between looks at that file; 0: it is read once.")
    ] = 0.0,
    allow_version_labels_for_unavailable_models: Annotated[
        bool,
        typer.Option(
            "--allow-version-labels-for-unavailable-models",
            help="A new label may name a version that is not loaded.",
        ),
    ] = False,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; TensorFlow Serving's gRPC default. 0: any free.")
    ] = 8500,
    rest_api_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port for HTTP; without it HTTP is off.")
    ] = None,
    rest_api_timeout_in_ms: Annotated[
        int, typer.Option(min=1, help="Milliseconds that an HTTP request may take.")
    ] = 30_000,
    rest_api_enable_cors_support: Annotated[
        bool, typer.Option("--rest-api-enable-cors-support", help="Pages of other origins may ask.")
    ] = False,
    grpc_socket_path: Annotated[
        str, typer.Option(help="Unix socket on which gRPC is answered, too; not secured by TLS.")
    ] = "",
    grpc_channel_arguments: Annotated[
        str, typer.Option(help="gRPC server arguments: grpc.max_connection_age_ms=2000,...")
    ] = "",
    ssl_config_file: Annotated[
        Path | None, typer.Option(help="TensorFlow Serving's SSLConfig as text: TLS on both ports.")
    ] = None,
    rest_api_plaintext: Annotated[
        bool,
        typer.Option(
            "--rest-api-plaintext",
            help="HTTP stays in the clear where --ssl-config-file gives gRPC TLS, as in TensorFlow Serving.",
        ),
    ] = False,
    enable_signature_method_name_check: Annotated[
        bool,
        typer.Option(
            "--enable-signature-method-name-check",
            help="Classify and Regress take only signatures with their method name.",
        ),
    ] = False,
    enable_serialization_as_tensor_content: Annotated[
        bool,
        typer.Option(
            "--enable-serialization-as-tensor-content",
            help="Predict answers in tensor_content, which is smaller.",
        ),
    ] = False,
    target: Annotated[
        str, typer.Option(help="Which compiled target of the bundles runs: cpu, cuda:sm_80, vulkan.")
    ] = "cpu",
    engine: Annotated[
        str | None,
        typer.Option(
            help="Which engine of that target runs: iree, xla, onnxruntime; default: each bundle's choice."
        ),
    ] = None,
    streams: Annotated[
        int | None,
        typer.Option(
            min=1, help="Calls that run at once on the device; default: all cores, or one on a GPU."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that share the ports and divide the cores.")
    ] = 1,
    numa: Annotated[
        bool,
        typer.Option(
            help="Divide the workers over the machine's NUMA nodes, each with cores, memory and a copy of "
            "the tables of its own node; needs --table-memory huge."
        ),
    ] = False,
    threads: Annotated[
        int, typer.Option(min=1, help="Requests of a process that are decoded and looked up at once.")
    ] = 8,
    max_message_mib: Annotated[int, typer.Option(min=1, max=1024, help="Largest message, MiB.")] = 64,
    max_in_flight_mib: Annotated[
        int,
        typer.Option(
            min=1,
            help="MiB of the messages of all requests that wait or are answered; one that does not fit is "
            "refused at once.",
        ),
    ] = 1024,
    poll_seconds: Annotated[
        float,
        typer.Option(
            "--poll-seconds",
            "--file-system-poll-wait-seconds",
            help="Seconds between looks for new versions; 0: one look, at the start.",
        ),
    ] = 1.0,
    max_num_load_retries: Annotated[
        int, typer.Option(min=0, help="How often a version that does not load is tried again.")
    ] = 5,
    load_retry_interval_micros: Annotated[
        int, typer.Option(help="Microseconds until then; 0 or less: at the next look.")
    ] = 60_000_000,
    grace_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds that requests in flight get at the end.")
    ] = 10.0,
    max_waiting: Annotated[
        int,
        typer.Option(
            min=1,
            max=4096,
            help="Requests that may wait, to be decoded or for the device; more are refused at once.",
        ),
    ] = 64,
    batch_delay_ms: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1000.0,
            help="Milliseconds that a small request waits for others to share its call. Those that wait "
            "anyway share calls whatever this is.",
        ),
    ] = 0.0,
    batch_rows: Annotated[int, typer.Option(min=1, max=5000, help="Candidates of a shared call.")] = 512,
    enable_batching: Annotated[
        bool, typer.Option(help="Take --batching-parameters-file; requests share calls in any case.")
    ] = False,
    batching_parameters_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TensorFlow Serving's BatchingParameters, in place of --max-waiting, --batch-delay-ms and "
            "--batch-rows.",
        ),
    ] = None,
    enable_model_warmup: Annotated[
        bool,
        typer.Option(help="A new version answers its recorded and warm-up requests before it is served."),
    ] = True,
    num_request_iterations_for_warmup: Annotated[
        int,
        typer.Option(
            help="How often each request of assets.extra/tf_serving_warmup_requests is answered; 0 or less: "
            "once."
        ),
    ] = 0,
    self_check: Annotated[
        bool, typer.Option(help="A new version must give the scores that its bundle recorded.")
    ] = True,
    rollback_requests: Annotated[
        int,
        typer.Option(
            min=0,
            max=100_000,
            help="The first requests of a new version that decide whether the one before it comes back; 0: "
            "it never does.",
        ),
    ] = 100,
    rollback_share: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Of them, the share that may fail or give a score that is not finite."
        ),
    ] = 0.05,
    canary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=SHARE",
            help="Share of a model's requests that its newest version answers, the version before it the "
            "others. For each model once.",
        ),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODEL=SHARE",
            help="Share of a model's requests that its newest version scores too, after the version before "
            "it answered. For each model once.",
        ),
    ] = None,
    memory_limit_mb: Annotated[
        int | None,
        typer.Option(min=1, help="MiB of all loaded versions; one that would exceed it is not loaded."),
    ] = None,
    table_memory: Annotated[
        TableMemory,
        typer.Option(
            help="How the rows of embedding tables come into memory: mapped, a page of the file when it is "
            "needed; prefault, all of them while a version loads; locked, and they stay (`ulimit -l`); huge, "
            "copied into huge pages, which is the fastest lookup and takes the memory once for each process."
        ),
    ] = "mapped",
    tables_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Which embedding tables are in RocksDB or a Redis Cluster, TOML or JSON (`jaxrank tables "
            "--help`); without it all tables are in memory.",
        ),
    ] = None,
    monitoring_config_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="TensorFlow Serving's MonitoringConfig as text: the path of Prometheus' metrics on the HTTP "
            "port, or that there are none.",
        ),
    ] = None,
    log_format: Annotated[LogFormat, typer.Option(help="Lines of text, or a JSON object for each.")] = "text",
    access_log_sample: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the requests that get a line in the log.")
    ] = 0.0,
    trace_endpoint: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenTelemetry collector (OTLP over gRPC), http://host:4317."),
    ] = None,
    trace_sample: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the requests without a trace context that are traced."),
    ] = 0.01,
    record: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Record requests and scores as TFRecord of TensorFlow Serving's PredictionLog.",
        ),
    ] = None,
    record_sample: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the answered requests that are recorded.")
    ] = 0.01,
    record_max_mb: Annotated[
        int, typer.Option(min=1, help="Megabytes of that file; then FILE becomes FILE.1, and begins anew.")
    ] = 1024,
    state_cache_mb: Annotated[
        float,
        typer.Option(
            min=0.0,
            help="MB of request sides that are kept for the next slice of the same request (docs/state.md); "
            "0: none are.",
        ),
    ] = 256.0,
    state_ttl_ms: Annotated[
        float, typer.Option(min=1.0, max=3_600_000.0, help="Milliseconds that one is kept.")
    ] = 5000.0,
    cpu_target: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            max=1.0,
            metavar="FRACTION",
            help="Share of the CPUs of this process (affinity, control group) that the server stays under: "
            "beyond it, models give up quality as their --degradation-config allows, then requests are "
            "refused. Without it the server uses all.",
        ),
    ] = None,
    degradation_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What each model may leave out under overload, TOML or JSON (docs/overload.md).",
        ),
    ] = None,
    auth_config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Who may do what, by token or client certificate, JSON; without it everybody may do "
            "everything. Read again when it changes.",
        ),
    ] = None,
    jemalloc: Annotated[
        str,
        typer.Option(
            metavar="PATH|auto|off",
            help="The allocator: auto looks for libjemalloc and starts the server under it, off leaves it as "
            "it is, PATH names the library. Your own LD_PRELOAD and MALLOC_CONF win.",
        ),
    ] = "auto",
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Serve bundles over gRPC and HTTP, in TensorFlow Serving's protocols and KServe v2's.

    tensorflow_model_server's flags are taken as they are: --rest_api_port=8501 is --rest-api-port 8501, and a
    flag without a meaning here says so. New versions are picked up while serving. Health checking and
    reflection are on the gRPC port. Ctrl-C finishes the requests in flight and exits 0.
    """
    from serving.monitoring.logs import start_logging
    from serving.processes import Member, Supervisor, shares_of

    member = Member.from_environment(os.environ)
    start_logging(log_format, None if member is None else member.place.index + 1)
    log = logging.getLogger("jaxrank")
    if member is None:  # a worker runs under the allocator of its supervisor
        _choose_allocator(jemalloc)
        for note in context.meta.get(NOTES, ()):
            log.info("%s", note)
        if hasattr(os, "geteuid") and os.geteuid() == 0:
            log.warning(
                "running as root, which a server of models never needs: start it as a user that can read the "
                "models (systemd: DynamicUser=yes; docker run --user; setpriv --reuid)"
            )

    from serving.batching_config import read_batching_parameters
    from serving.cores import usable_core_numbers
    from serving.grpc_server import ServerOptions
    from serving.grpc_server import serve as run
    from serving.lifecycle import LifecycleOptions
    from serving.lifecycle.trials import read_trials
    from serving.model_config import ModelConfig, channel_arguments, read_model_config
    from serving.monitoring.options import METRICS_PATH, MonitoringOptions, read_metrics_path
    from serving.numa import nodes_of
    from serving.scheduling import SchedulingOptions
    from serving.tls import read_tls

    given = [v for v in (models_dir, model_base_path, model_config_file) if v is not None]
    if not given or (models_dir is not None and len(given) > 1):
        raise typer.BadParameter("give MODELS_DIR, or --model-base-path, or --model-config-file")
    trials = read_trials(canary or (), shadow or ())
    if trials and model_config_file is not None:
        raise typer.BadParameter("with --model-config-file, a trial is a field of the model in that file")
    if model_config_file is not None:  # as in TensorFlow Serving, it wins over --model-base-path
        models = read_model_config(model_config_file)
    elif model_base_path is not None:
        if others := sorted(trials.keys() - {model_name}):
            raise typer.BadParameter(
                f"--canary or --shadow names {', '.join(others)}; there is {model_name} (--model-name)"
            )
        models = (ModelConfig(model_name, model_base_path.absolute(), trial=trials.get(model_name)),)
    else:
        models = given[0]
    if batching_parameters_file is not None and not enable_batching:
        raise typer.BadParameter(
            "--batching-parameters-file needs --enable-batching, as in TensorFlow Serving"
        )
    scheduling = SchedulingOptions(max_waiting, batch_delay_ms / 1e3, batch_rows)
    if batching_parameters_file is not None:
        batching = read_batching_parameters(batching_parameters_file, scheduling)
        scheduling = batching.options
        for note in batching.ignored:
            log.info("%s: %s", batching_parameters_file, note)
        for note in batching.bounded:
            log.warning("%s: %s", batching_parameters_file, note)
    lifecycle = LifecycleOptions(
        self_check=self_check,
        warmup=enable_model_warmup,
        warmup_iterations=max(num_request_iterations_for_warmup, 1),
        rollback_requests=rollback_requests,
        rollback_share=rollback_share,
        memory_limit=None if memory_limit_mb is None else memory_limit_mb << 20,
        table_memory=table_memory,
        trials=trials,
    )
    if workers > 1 and grpc_socket_path:
        raise typer.BadParameter(
            "--grpc-socket-path needs --workers 1: one process at a time can listen on a Unix socket"
        )
    if numa and table_memory != "huge":
        raise typer.BadParameter(
            "--numa needs --table-memory huge: mapped files are in memory once, on whatever node"
        )
    nodes = nodes_of(usable_core_numbers()) if numa and member is None else {}
    if workers > 1 and member is None or len(nodes) > 1:
        supervisor = Supervisor(
            shares_of(usable_core_numbers(), workers, nodes),
            host=host,
            port=port,
            rest_port=rest_api_port or None,
            grace_seconds=grace_seconds,
        )
        if rest_api_port:
            log.warning(
                "metrics and the status page show the one of %d workers that a connection reaches", workers
            )
        raise typer.Exit(supervisor.run())
    if member is not None:
        port, rest_api_port = member.place.port, member.place.rest_port
        if record is not None:  # a file is one process's
            record = record.with_name(f"{record.name}.worker{member.place.index + 1}")
        streams = member.place.share(streams)
    polls_config = model_config_file is not None and model_config_file_poll_wait_seconds > 0
    finished = run(
        ServerOptions(
            models=models,
            config_file=model_config_file if polls_config else None,
            config_poll_seconds=model_config_file_poll_wait_seconds,
            labels_of_unavailable=allow_version_labels_for_unavailable_models,
            host=host,
            port=port,
            rest_port=rest_api_port or None,
            rest_timeout_seconds=rest_api_timeout_in_ms / 1000,
            cors=rest_api_enable_cors_support,
            socket_path=grpc_socket_path or None,
            channel_arguments=channel_arguments(grpc_channel_arguments),
            tls=None if ssl_config_file is None else read_tls(ssl_config_file),
            rest_plaintext=rest_api_plaintext,
            check_method=enable_signature_method_name_check,
            tensor_content=enable_serialization_as_tensor_content,
            target=target,
            engine=engine,
            streams=streams,
            scheduling=scheduling,
            workers=threads,
            max_message_mib=max_message_mib,
            max_in_flight_mib=max_in_flight_mib,
            poll_seconds=poll_seconds,
            load_retries=max_num_load_retries,
            retry_seconds=max(load_retry_interval_micros, 0) / 1e6,
            grace_seconds=grace_seconds,
            tables_config=tables_config,
            monitoring=MonitoringOptions(
                metrics_path=(
                    METRICS_PATH
                    if monitoring_config_file is None
                    else read_metrics_path(monitoring_config_file)
                ),
                access_log_sample=access_log_sample,
                trace_endpoint=trace_endpoint,
                trace_sample=trace_sample,
                record=record,
                record_sample=record_sample,
                record_max_mb=record_max_mb,
            ),
            state_cache_mb=state_cache_mb,
            state_ttl_ms=state_ttl_ms,
            lifecycle=lifecycle,
            cpu_target=cpu_target,
            degradation_config=degradation_config,
            auth_config=auth_config,
            member=member,
        )
    )
    # Python would wait for threads that are still at work, such as one that loads a version: the grace period
    # is a limit.
    logging.shutdown()
    os._exit(0 if finished else 1)


def _choose_allocator(wanted: str) -> None:
    """Starts this process again under jemalloc where that is asked for and possible; says what runs."""
    from serving.allocator import MARK, decide, running_allocator, start_again

    log = logging.getLogger("jaxrank")
    decision = decide(wanted, os.environ, running_allocator())
    os.environ.pop(MARK, None)
    if decision.environment is not None:
        refused = start_again(decision.environment)
        log.warning(
            "allocator: %s; %s cannot be preloaded: %s",
            running_allocator(),
            decision.environment[MARK],
            refused,
        )
        return
    log.log(logging.WARNING if decision.advice else logging.INFO, "%s", decision.message)
