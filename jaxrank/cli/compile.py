"""`jaxrank compile`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from jaxrank.cli.console import results_console
from jaxrank.cli.progress import stages
from jaxrank.cli.report import certificate_table, engine_table
from jaxrank.manifest import MAX_CANDIDATES


class DataTilingChoice(StrEnum):
    auto = "auto"
    on = "on"
    off = "off"


def compile_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `jaxrank convert`.")],
    target: Annotated[
        str,
        typer.Option(
            help="Comma-separated targets: cpu (this machine's), cpu:x86-64-v2 (or v3, v4: any CPU of that "
            "level), cuda:sm_80 (or 75, 86, 89), vulkan."
        ),
    ] = "cpu",
    engine: Annotated[
        str,
        typer.Option(
            help="Comma-separated engines: iree, xla, onnxruntime; the first one serves. auto: all that are "
            "installed, timed here, and the fastest serves."
        ),
    ] = "iree",
    max_candidates: Annotated[
        int | None,
        typer.Option(
            min=1, max=MAX_CANDIDATES, help="Change the largest number of candidates of one request."
        ),
    ] = None,
    data_tiling: Annotated[
        DataTilingChoice,
        typer.Option(
            help="Pack matrices into tiles in CPU modules; auto measures both and keeps the faster."
        ),
    ] = DataTilingChoice.auto,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            help="Compile candidate towers for fixed numbers of rows too, measure every program, and let the "
            "server plan each request by the measured costs.",
        ),
    ] = False,
    batch_tile: Annotated[
        int,
        typer.Option(
            min=0,
            max=1024,
            help="Compile a program for many requests at once too, with candidates in tiles of this many "
            "rows, such as 16; 0 makes none.",
        ),
    ] = 0,
    dump_ir: Annotated[
        Path | None,
        typer.Option(help="Write every stage of the compilation into this new directory, weights left out."),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATTERN=FORMAT",
            help="Number format of the matrix products of Flax modules, such as 'experts.*=f16': f32, "
            "f16, bf16, "
            "f16_storage or bf16_storage. Repeat it; a later rule wins. A FORMAT alone is for all modules; "
            "auto chooses for each.",
        ),
    ] = None,
    keep: Annotated[
        str | None,
        typer.Option(
            metavar="METRIC:BOUND,..",
            help="How far lower precision may move scores: "
            "auc:1e-4,gauc:1e-4,top50:0.999,inversions:1e-3,abs:1e-3 "
            "(which auto keeps by default). Without it rules must stay within the certificate's tolerance.",
        ),
    ] = None,
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Requests to check --keep on, a file as `jaxrank convert --examples` takes it; an .npz "
            "may hold "
            "labels as <request>/labels/<output>. Without it: those of the bundle's certificate."
        ),
    ] = None,
    prefer: Annotated[
        Literal["time", "bytes"] | None,
        typer.Option(help="What --precision auto saves: time, or bytes of weights.", show_default="time"),
    ] = None,
) -> None:
    """Compile a bundle's Flax module to a program for each target and engine, for any number of candidates.

    What depends on the request only is computed once per request. Targets other than the CPU compile without
    the device. A target that runs here is checked against TensorFlow's recorded outputs before the bundle is
    changed.
    """
    from jaxrank.cli.precision import precision_table, read_precision, read_search, search_table
    from mlir_pipeline.compile import compile_bundle
    from mlir_pipeline.engines import AUTO, parse_engines

    wanted = read_precision(bundle, precision or [], keep, examples, prefer)
    with stages() as progress:
        manifest = compile_bundle(
            bundle,
            [t.strip() for t in target.split(",") if t.strip()],
            engines=parse_engines(engine),
            compare=engine == AUTO,
            max_candidates=max_candidates,
            data_tiling={"auto": None, "on": True, "off": False}[data_tiling.value],
            tune=tune,
            batch_tile=batch_tile,
            precision=wanted,
            progress=progress,
            dump_ir=dump_ir,
        )
    console = results_console()
    searched = read_search(bundle) if wanted is not None else None
    if searched is not None:
        console.print(search_table(searched))
    if manifest.precision:
        console.print(precision_table(manifest))
    for compiled in manifest.targets:
        for note in compiled.notes:
            console.print(f"{compiled.name}: {note}", highlight=False)
        if compiled.certificate is not None:
            console.print(certificate_table(compiled.certificate, manifest))
    if manifest.engine_times:
        console.print(engine_table(manifest))
    names = dict.fromkeys(t.name for t in manifest.targets)
    chosen = (f"{name} ({manifest.chosen_engines.get(name, 'host')})" for name in names)
    console.print(f"{bundle} is compiled for: {', '.join(chosen)}", highlight=False)
