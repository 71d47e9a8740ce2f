"""`jaxrank convert`."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from jaxrank.certificate import TOLERANCE
from jaxrank.cli.console import results_console
from jaxrank.cli.progress import stages
from jaxrank.cli.report import certificate_table, placement_table, scope_table, unsupported_table
from jaxrank.manifest import DEFAULT_MAX_CANDIDATES, MAX_CANDIDATES

if TYPE_CHECKING:
    from converters.report import ConversionReport

_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
}

CONVERT_EXAMPLES = """Examples:

jaxrank convert saved_model -o models/ranker/1 --request-inputs 'user_*,history_*'

jaxrank convert saved_model --dry-run --report coverage.html

jaxrank convert frozen.pb -o models/ranker/1 --inputs user:0,item:0 --outputs scores:0

jaxrank convert saved_model -o models/ranker/1 --examples saved_model/assets.extra/tf_serving_warmup_requests
"""


def parse_bytes(text: str) -> int:
    """A size such as "4096", "64MiB" or "1.5 GB" in bytes. Raises `typer.BadParameter`."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    if found is None or found[2].upper() not in _UNITS:
        raise typer.BadParameter(
            f"{text!r} is not a size; write bytes, or a unit as in 64MiB or 1.5GB",
            param_hint="--device-table-limit",
        )
    return int(float(found[1]) * _UNITS[found[2].upper()])


def convert_command(
    source: Annotated[
        Path,
        typer.Argument(
            help="SavedModel directory; a frozen graph (.pb) or a meta graph (.meta, its checkpoint beside "
            "it) with --inputs and --outputs; or a Keras file (.keras, .h5)."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Bundle directory to write, e.g. models/ranker/1.")
    ] = None,
    signature: Annotated[str, typer.Option(help="Serving signature to convert.")] = "serving_default",
    inputs: Annotated[
        str,
        typer.Option(help="Frozen and meta graphs: comma-separated input tensors, e.g. 'user:0,item:0'."),
    ] = "",
    outputs: Annotated[
        str, typer.Option(help="Frozen and meta graphs: comma-separated output tensors, e.g. 'scores:0'.")
    ] = "",
    rename: Annotated[
        list[str] | None,
        typer.Option(
            help="Name of an input or output in the bundle, as old=new; repeatable. E.g. inputs_1=item_id."
        ),
    ] = None,
    request_inputs: Annotated[
        str,
        typer.Option(
            help="Comma-separated shell patterns of inputs that are the same for all candidates, "
            "e.g. 'user_*,history_*'. Inputs that the signature declares with one row are found without this."
        ),
    ] = "",
    examples: Annotated[
        Path | None,
        typer.Option(
            help="Recorded requests for the certificate: .npz, a TFRecord of tf.Example, or TensorFlow "
            "Serving's warm-up file (see docs/convert.md). Without it, requests are drawn at random."
        ),
    ] = None,
    max_candidates: Annotated[
        int, typer.Option(min=1, max=MAX_CANDIDATES, help="Largest number of candidates of one request.")
    ] = DEFAULT_MAX_CANDIDATES,
    tolerance: Annotated[
        float,
        typer.Option(help="Largest difference from TensorFlow's outputs: absolute up to 1, relative beyond."),
    ] = TOLERANCE,
    device_table_limit: Annotated[
        str,
        typer.Option(
            metavar="BYTES",
            help="Embedding tables up to this size may stay in the dense program, e.g. 64MiB; larger ones "
            "are read on the host.",
        ),
    ] = "0",
    op_plugin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE", help="Python module with lowerings for ops that we do not know; repeatable."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only report what became of every op; write no bundle.")
    ] = False,
    debug_numerics: Annotated[
        bool,
        typer.Option(
            "--debug-numerics", help="If scores differ, search for the first tensor that does, and name it."
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write the report here too: .html for people, .json for programs."),
    ] = None,
) -> None:
    """Convert a TensorFlow model to a bundle: host program, tables, Flax module, and a certificate of equal
    scores.

    The graph is cut at the lookups. Strings, hashing, vocabularies and embedding tables become the host
    program; the dense rest becomes a readable Flax module (model.py). Nothing is written unless every op has
    a place and every score fits. report.html in the bundle says what became of each op. With --dry-run the
    exit code is 2 if an op is unsupported.
    """
    if output is None and not dry_run:
        raise typer.BadParameter(
            "give the bundle to write with --output, or --dry-run", param_hint="--output"
        )
    if dry_run and debug_numerics:
        raise typer.BadParameter("a dry run compares no scores: leave --debug-numerics out")
    if report is not None and not report.absolute().parent.is_dir():
        raise typer.BadParameter(f"{report.parent} is not a directory", param_hint="--report")
    options: dict[str, Any] = {
        "signature": signature,
        "inputs": _names(inputs),
        "outputs": _names(outputs),
        "request_inputs": _names(request_inputs),
        "device_table_limit": parse_bytes(device_table_limit),
        "op_plugins": op_plugin or [],
        "rename": _renamed(rename or []),
    }
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    from converters import convert as converter
    from converters.report import REPORT_HTML, REPORT_JSON, check_report_path, read_report, write_report_file

    suffix = check_report_path(report) if report is not None else ""
    console = results_console()
    if output is None or dry_run:
        with stages() as progress:
            found = converter.dry_run(source, **options, examples=examples, progress=progress)
        if report is not None:
            write_report_file(report, found)
        _print_dry_run(console, found, report)
        raise typer.Exit(2 if found.unsupported else 0)
    with stages() as progress:
        converter.convert(
            source,
            output,
            **options,
            examples=examples,
            max_candidates=max_candidates,
            tolerance=tolerance,
            debug_numerics=debug_numerics,
            progress=progress,
        )
    if report is not None:
        shutil.copyfile(output / (REPORT_JSON if suffix == ".json" else REPORT_HTML), report)
    _print_report(console, read_report(output))
    console.print(
        f"wrote {output}, its report is {output / REPORT_HTML}; next: jaxrank compile {output} --target cpu",
        highlight=False,
        soft_wrap=True,
    )


def _print_report(console: Console, report: "ConversionReport") -> None:
    console.print(scope_table(report.signature, report.scope_reasons))
    console.print(placement_table(report.counts))
    removed = report.removed
    console.print(
        f"{removed.folded:,} ops were folded away, {removed.frozen:,} of them frozen weights; "
        f"{removed.training:,} that act in training only were dropped",
        highlight=False,
    )
    for note in report.notes:
        console.print(note, highlight=False, markup=False)
    if report.certificate is not None:
        console.print(certificate_table(report.certificate))


def _print_dry_run(console: Console, report: "ConversionReport", path: Path | None) -> None:
    from msgspec.structs import replace

    from converters.report import op_counts

    _print_report(console, replace(report, counts=op_counts(report)))
    if report.unsupported:
        console.print(unsupported_table([(u.op, u.name, u.advice) for u in report.unsupported]))
    if path is not None:
        console.print(f"wrote {path}", highlight=False)
    ops = sum(sum(kinds.values()) for kinds in op_counts(report).values())
    console.print(
        f"{len(report.unsupported)} of {ops} ops have no place; no bundle was written"
        if report.unsupported
        else f"all {ops} ops have a place; no bundle was written. Next: the same command with --output",
        highlight=False,
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _renamed(pairs: Sequence[str]) -> dict[str, str]:
    renamed: dict[str, str] = {}
    for pair in pairs:
        old, equals, new = (part.strip() for part in pair.partition("="))
        if not (old and equals and new):
            raise typer.BadParameter(f"{pair!r} is not old=new", param_hint="--rename")
        if old in renamed:
            raise typer.BadParameter(f"{old!r} is renamed twice", param_hint="--rename")
        renamed[old] = new
    if len(set(renamed.values())) < len(renamed):
        raise typer.BadParameter("two names become the same", param_hint="--rename")
    return renamed
