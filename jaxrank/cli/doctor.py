"""`jaxrank doctor`."""

import sys
from pathlib import Path
from typing import Annotated

import msgspec
import typer
from rich.console import Console
from rich.markup import escape

_MARKS = {"ok": "[green]✓[/]", "advice": "[cyan]i[/]", "warning": "[yellow]![/]", "error": "[bold red]✗[/]"}


def doctor(
    bundle: Annotated[Path | None, typer.Argument(help="A bundle that is to be served here.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
    root: Annotated[
        Path, typer.Option(help="Root of the file system to examine: a recorded machine's.")
    ] = Path("/"),
    record: Annotated[
        Path | None, typer.Option(help="Write what was read to this new directory, for --root elsewhere.")
    ] = None,
) -> None:
    """Explain this machine to the one who serves on it: each finding with what to change, and why.

    Allocator, huge pages, NUMA, swap, CPU features and the module that a bundle runs, cores, governor,
    network interrupts, hypervisor, GPU, driver, MPS, and limits. Nothing is changed. Exit code: 0 all is well
    or there is only advice, 3 a warning, 4 an error.
    """
    from jaxrank.errors import DestinationError
    from serving.doctor import EXIT_CODES, System, examine, worst

    if not root.is_dir():
        raise typer.BadParameter(f"{root} is not a directory", param_hint="--root")
    if record is not None and record.exists():
        raise DestinationError(f"{record} exists; --record takes the name of a new directory")
    system = System(root)
    findings = examine(system, bundle)
    severity = worst(findings)
    if record is not None:
        system.record(record)
    if json:
        report = {
            "severity": severity.name.lower(),
            "exit_code": EXIT_CODES[severity],
            "findings": [
                {**msgspec.structs.asdict(f), "severity": f.severity.name.lower()} for f in findings
            ],
        }
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
    else:
        console = Console(highlight=False)
        for finding in findings:
            mark = _MARKS[finding.severity.name.lower()]
            source = f"[dim]({escape(finding.source)})[/]"
            console.print(
                f"{mark} [bold]{finding.check}[/]: {escape(finding.found)} {source}", soft_wrap=True
            )
            if finding.change:
                console.print(f"    change: {escape(finding.change)}", soft_wrap=True)
                console.print(f"    why: {escape(finding.why)}", soft_wrap=True)
    raise typer.Exit(EXIT_CODES[severity])
