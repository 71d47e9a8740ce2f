"""`jaxrank convert`."""

from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from jaxrank.certificate import TOLERANCE
from jaxrank.cli.progress import stages
from jaxrank.cli.report import certificate_table
from jaxrank.manifest import DEFAULT_MAX_CANDIDATES, Manifest


def convert_command(
    saved_model: Annotated[Path, typer.Argument(help="TensorFlow SavedModel directory.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Bundle directory to write, e.g. models/ranker/1.")
    ],
    signature: Annotated[str, typer.Option(help="Serving signature to convert.")] = "serving_default",
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
            help="Recorded requests for the certificate (.npz, see docs/convert.md); random ones otherwise."
        ),
    ] = None,
    max_candidates: Annotated[
        int, typer.Option(min=1, help="Largest number of candidates of one request.")
    ] = (DEFAULT_MAX_CANDIDATES),
    tolerance: Annotated[
        float, typer.Option(help="Largest absolute difference from TensorFlow's outputs that is accepted.")
    ] = TOLERANCE,
) -> None:
    """Convert a SavedModel to a bundle: host program, tables, Flax module, and a certificate of equal scores.

    The graph is cut at the lookups. Strings, hashing, vocabularies and embedding tables become the host
    program; the dense rest becomes a readable Flax module (model.py). Nothing is written unless every op has
    a place and every score fits.
    """
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    from converters.convert import convert

    with stages() as progress:
        manifest = convert(
            saved_model,
            output,
            signature=signature,
            request_inputs=[p.strip() for p in request_inputs.split(",") if p.strip()],
            examples=examples,
            max_candidates=max_candidates,
            tolerance=tolerance,
            progress=progress,
        )
    console = Console()
    console.print(_placement_table(manifest))
    console.print(certificate_table(manifest.certificate))
    console.print(f"wrote {output}; next: jaxrank compile {output} --target cpu", highlight=False)


def _placement_table(manifest: Manifest) -> Table:
    table = Table(title="Where each op went", title_justify="left")
    table.add_column("place")
    table.add_column("ops", justify="right")
    table.add_column("what")
    for place in ("host", "dense", "folded"):
        counts = Counter(op.op for op in manifest.ops if op.place == place)
        what = ", ".join(f"{op} {n}" if n > 1 else op for op, n in counts.most_common())
        table.add_row(place, str(sum(counts.values())), what)
    return table
