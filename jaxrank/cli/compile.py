"""`jaxrank compile`."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from jaxrank.cli.progress import stages
from jaxrank.cli.report import certificate_table


def compile_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `jaxrank convert`.")],
    target: Annotated[
        str,
        typer.Option(
            help="Comma-separated targets: cpu (this machine's), cuda:sm_80 (or 75, 86, 89), vulkan."
        ),
    ] = "cpu",
    max_candidates: Annotated[
        int | None, typer.Option(min=1, help="Change the largest number of candidates of one request.")
    ] = None,
) -> None:
    """Compile a bundle's Flax module to IREE modules, one for each target, for any number of candidates.

    What depends on the request only is computed once per request. Targets other than the CPU compile without
    the device. A target that runs here is checked against TensorFlow's recorded outputs before the bundle is
    changed.
    """
    from mlir_pipeline.compile import compile_bundle

    with stages() as progress:
        manifest = compile_bundle(
            bundle,
            [t.strip() for t in target.split(",") if t.strip()],
            max_candidates=max_candidates,
            progress=progress,
        )
    console = Console()
    for compiled in manifest.targets:
        if compiled.certificate is not None:
            console.print(certificate_table(compiled.certificate))
    console.print(f"{bundle} is compiled for: {', '.join(t.name for t in manifest.targets)}", highlight=False)
