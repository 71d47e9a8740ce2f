"""`jaxrank serve`."""

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer


def serve(
    models_dir: Annotated[
        Path, typer.Argument(help="Directory of <model>/<version>/ bundles, watched for new versions.")
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port; TensorFlow Serving's gRPC default. 0: any free.")
    ] = 8500,
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
    workers: Annotated[int, typer.Option(min=1, help="Threads that decode requests and run lookups.")] = 8,
    max_message_mib: Annotated[int, typer.Option(min=1, max=1024, help="Largest message, MiB.")] = 64,
    poll_seconds: Annotated[
        float, typer.Option(min=0.05, help="Seconds between looks for new versions.")
    ] = 1.0,
    grace_seconds: Annotated[
        float, typer.Option(min=0.0, help="Seconds that requests in flight get at the end.")
    ] = 10.0,
) -> None:
    """Serve bundles over gRPC, as tensorflow.serving.PredictionService: Predict and GetModelMetadata.

    TensorFlow Serving clients work unchanged. The highest version of each model answers; a new version
    directory is picked up while serving. Health checking and reflection are on the same port. Ctrl-C finishes
    the requests in flight and exits 0.
    """
    from serving.grpc_server import ServerOptions
    from serving.grpc_server import serve as run

    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    run(
        ServerOptions(
            models_dir=models_dir,
            host=host,
            port=port,
            target=target,
            engine=engine,
            streams=streams,
            workers=workers,
            max_message_mib=max_message_mib,
            poll_seconds=poll_seconds,
            grace_seconds=grace_seconds,
        )
    )
