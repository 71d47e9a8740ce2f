"""`jaxrank explain`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from jaxrank.cli.console import results_console
from jaxrank.cli.progress import stages
from jaxrank.errors import DestinationError

if TYPE_CHECKING:
    from mlir_pipeline.explain.explanation import Explanation, Figures, TowerProfile

PICTURES = (".svg", ".png", ".pdf")
_MOST_MODULES = 15

EXPLAIN_EXAMPLES = """Examples:

jaxrank explain models/ranker/1

jaxrank explain models/ranker/1 --no-profile --candidates 100,400

jaxrank explain models/ranker/1 --plot ranker.svg --json ranker.json
"""


def explain_command(
    bundle: Annotated[Path, typer.Argument(help="Bundle written by `jaxrank convert`, compiled or not.")],
    target: Annotated[
        str | None,
        typer.Option(help="Compiled target to count dispatches of and to profile; the CPU's by default."),
    ] = None,
    candidates: Annotated[
        str | None,
        typer.Option(help="Numbers of candidates to show the work for. Default: 1,50,200,1000,5000."),
    ] = None,
    profile_candidates: Annotated[
        str | None, typer.Option(help="Numbers of candidates to profile. Default: 200,1000.")
    ] = None,
    profile: Annotated[
        bool, typer.Option(help="Run the compiled towers under IREE's profiler, on a recorded request.")
    ] = True,
    runs: Annotated[int, typer.Option(min=1, help="Runs of each tower under the profiler.")] = 30,
    plot: Annotated[
        Path | None, typer.Option(help="Draw it: a file that ends in .svg, .png or .pdf.")
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", help="Write every figure as JSON.")] = None,
) -> None:
    """Show where a bundle's work and time go.

    Work: FLOPs and bytes of one request, as TensorFlow runs the graph (everything for every candidate) and as
    compiled (what depends on the request only once), for several numbers of candidates; what each of the
    compiler's rewrites saves; each Flax module's share; the state between the towers. Counted, not measured.

    Time: each dispatch of the compiled towers under IREE's profiler, with the modules and primitives that
    were fused into it. One call on one stream: it says where time goes, not how fast the server answers.

    Runs the bundle's model.py: only for bundles that you trust. The bundle is not changed.
    """
    _check_destination("--plot", plot, PICTURES)
    _check_destination("--json", json, ())
    counts = _numbers("--candidates", candidates)
    profiled = _numbers("--profile-candidates", profile_candidates) if profile else []
    from mlir_pipeline.explain.explanation import explain

    if plot is not None:
        # Before the work, not after it: it may not be installed.
        from mlir_pipeline.explain.plot import draw
    with stages() as progress:
        found = explain(
            bundle, target=target, candidates=counts, profiled=profiled, runs=runs, progress=progress
        )
    console = results_console()
    _print(console, found)
    if json is not None:
        with _writing(json):
            json.write_bytes(found.to_json())
        console.print(f"figures: {json}", highlight=False, markup=False)
    if plot is not None and found.work:
        with _writing(plot):
            draw(found, plot)
        console.print(f"picture: {plot}", highlight=False, markup=False)
    elif plot is not None:
        console.print(f"no picture: {bundle} has no dense half to draw", highlight=False, markup=False)


def _numbers(option: str, text: str | None) -> list[int] | None:
    if text is None:
        return None
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 1,200,1000", param_hint=option)
    return found


def _check_destination(option: str, path: Path | None, suffixes: tuple[str, ...]) -> None:
    if path is None:
        return
    if suffixes and path.suffix not in suffixes:
        raise typer.BadParameter(f"{path} must end in {', '.join(suffixes)}", param_hint=option)
    if not path.parent.is_dir():
        raise DestinationError(f"{path} cannot be written: there is no directory {path.parent}")
    if path.is_dir():
        raise DestinationError(f"{path} cannot be written: it is a directory; give {option} a file")


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DestinationError(f"{path} cannot be written: {error}; give another place") from error


def _print(console: Console, found: "Explanation") -> None:
    if found.work:
        console.print(_work(found), _rewrites(found), _modules(found), _towers(found))
    for profile in found.profiles:
        console.print(_profile(profile))
    for missing in found.not_measured:
        console.print(f"[bold]{missing.name}: not measured:[/] {escape(missing.why)}", highlight=False)
    for note in found.notes:
        console.print(f"[bold]note:[/] {escape(note)}", highlight=False)


def _table(title: str, left: tuple[str, ...], *right: str) -> Table:
    table = Table(title=title, title_justify="left")
    for column in left:
        table.add_column(column, overflow="fold")
    for column in right:
        table.add_column(column, justify="right")
    return table


def _work(found: "Explanation") -> Table:
    table = _table(
        "Work of one request", ("",), *(f"{w.candidates:,} candidates" for w in found.work)
    )  # fmt: skip

    def rows(name: str, figures: "list[Figures]") -> None:
        table.add_row(f"{name}: FLOPs", *(_count(f.flops) for f in figures))
        table.add_row("  of matrix products", *(_count(f.product_flops) for f in figures))
        table.add_row("  exp, tanh, ..: elements", *(_count(f.transcendentals) for f in figures))
        table.add_row("  bytes, if nothing were fused", *(_bytes(f.bytes_moved) for f in figures))
        table.add_row("  bytes, at the least", *(_bytes(f.least_bytes) for f in figures))

    rows("TensorFlow graph", [w.source for w in found.work])
    table.add_section()
    rows("compiled", [w.compiled for w in found.work])
    table.add_row("  once for the request: FLOPs", *(_count(w.request.flops) for w in found.work))
    table.add_section()
    ratios = [w.source.flops / max(w.compiled.flops, 1) for w in found.work]
    table.add_row("times fewer FLOPs", *(f"{r:.2f}" for r in ratios))
    terms = {"source": "TensorFlow graph", "request": "request tower", "candidate": "candidate tower"}
    table.caption = "FLOPs for n candidates: " + "; ".join(
        f"{terms[name]} {text}" for name, text in found.flops_of_n.items()
    )
    table.caption_justify = "left"
    return table


def _rewrites(found: "Explanation") -> Table:
    n = found.reference_candidates
    table = _table(
        f"What each step of the compiler changes, {n:,} candidates", ("step",),
        "FLOPs once", "FLOPs per candidate", "FLOPs", "bytes unfused", "state",
    )  # fmt: skip
    for step in found.rewrites:
        table.add_row(
            step.name,
            _count(step.request_flops),
            _count(step.candidate_flops / n),
            _change(step.flops_change),
            _change(step.bytes_change),
            _bytes(step.state_bytes),
        )
    return table


def _modules(found: "Explanation") -> Table:
    table = _table(
        f"Each Flax module's share of the compiled work, {found.reference_candidates:,} candidates",
        ("module",), "share of FLOPs", "FLOPs once", "FLOPs for the candidates", "bytes unfused",
    )  # fmt: skip
    for module in found.modules[:_MOST_MODULES]:
        table.add_row(
            escape(module.path or "(the model's own body)"),
            f"{module.share:.1%}",
            _count(module.request_flops),
            _count(module.candidate_flops),
            _bytes(module.bytes_moved),
        )
    if len(found.modules) > _MOST_MODULES:
        rest = sum(m.share for m in found.modules[_MOST_MODULES:])
        table.add_row(
            f"{len(found.modules) - _MOST_MODULES} others (--json has all)", f"{rest:.1%}", "", "", ""
        )
    return table


def _towers(found: "Explanation") -> Table:
    table = _table(f"Towers{f' for {found.target}' if found.target else ''}", ("",), "")
    for function, count in found.dispatches.items():
        table.add_row(f"dispatches of {function}", f"{count:,}")
    state = sum(s.bytes for s in found.state)
    table.add_row(f"state between them: {len(found.state)} tensors", _bytes(state))
    for tensor in found.state:
        table.add_row(f"  {tensor.dtype} {'x'.join(map(str, tensor.shape))}", _bytes(tensor.bytes))
    table.add_row("weights", _bytes(found.weight_bytes))
    return table


def _profile(profile: "TowerProfile") -> Table:
    table = _table(
        f"Time of {profile.function}"
        + (f", {profile.candidates:,} candidates in one call" if profile.function != "request_tower" else ""),
        ("dispatch", "modules", "primitives"), "calls", "µs", "share",
    )  # fmt: skip
    for row in profile.dispatches:
        table.add_row(
            escape(row.name.removeprefix(f"{profile.function}_")),
            escape(", ".join(m or "(model)" for m in row.modules)),
            ", ".join(row.primitives) or "a copy",
            str(row.calls),
            f"{row.microseconds:,.1f}",
            f"{row.share:.1%}",
        )
    table.caption = (
        f"medians of {profile.runs} runs on one stream, with the profiler on: all dispatches "
        f"{profile.dispatch_microseconds:,.1f} µs, a whole run {profile.wall_microseconds:,.1f} µs"
    )
    table.caption_justify = "left"
    return table


def _change(share: float) -> str:
    return "=" if abs(share) < 5e-5 else f"{share:+.1%}"


def _count(number: float) -> str:
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:,.2f} {unit}"
    return f"{number:,.0f}"


def _bytes(number: float) -> str:
    for factor, unit in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number >= factor:
            return f"{number / factor:,.1f} {unit}"
    return f"{number:,.0f} B"
