"""`jaxrank bench`: hands over to the suites of `bench/`, and reads what they wrote."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jaxrank.cli.console import results_console

if TYPE_CHECKING:
    from rich.console import Console

    from bench.results import Results

RESULTS = Path("bench/results")
"""Where suites write and `report` reads, unless told otherwise."""

_SUITES = {
    "dense": "The dense half beside TensorFlow, XLA, ONNX Runtime, OpenVINO and JAX: ms of a request.",
    "sparse": "Embedding lookups beside the memory's roofline, TensorFlow, NumPy and torch.",
    "serve": "The server under load beside TensorFlow's: throughput within a promise, overhead, overload.",
    "convert": "What the converter takes, with which error, and what it costs.",
    "shadow": "A server's answers beside those of the one that it is to replace: exit code 1 if they differ.",
}

BENCH_EXAMPLES = """Examples:

jaxrank bench dense --quick --models din

jaxrank bench serve models/ranker/1 --out mine

jaxrank bench all saved_model --out mine

jaxrank bench report mine -o mine/report.html

jaxrank bench compare bench/results mine --allow 10%
"""

bench_app = typer.Typer(
    no_args_is_help=True,
    epilog=BENCH_EXAMPLES,
    help="Measure jaxrank beside what you run today, on our models or on yours.\n\n"
    "Suites compare scores with TensorFlow's before they time anything, run what they compare in turns, and "
    "write DIR/<suite>.json: figures, machine, versions, commit, command, and what was not measured and why. "
    "Options of a suite are its own: `jaxrank bench dense --help`.",
)


def _suite(name: str) -> Callable[[typer.Context], None]:
    def command(context: typer.Context) -> None:
        from bench.__main__ import start

        start(name, _in_directory(name, context.args))

    return command


def _in_directory(suite: str, arguments: list[str]) -> list[str]:
    """`--out DIR` is DIR/<suite>.json."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--out", type=Path)
    found, rest = parser.parse_known_args(arguments)
    if found.out is None:
        return rest
    file = found.out if found.out.suffix == ".json" else found.out / f"{suite}.json"
    return [*rest, "--out", str(file)]


def bench_all(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A bundle or SavedModel to measure instead of our models, in the suites that measure models."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help=f"Directory of the results: {RESULTS}, or results for --quick or a MODEL."),
    ] = None,
    suites: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated: convert, dense, sparse, serve; also tiers, updates, state, loading, host.",
            show_default="convert,dense,sparse,serve",
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Few runs, in minutes: does it work here? No figures to keep.")
    ] = False,
) -> None:
    """Run suites one after another, each in a process of its own.

    A suite that fails does not stop the others: it leaves what it had measured, the reason beside it, and its
    errors in DIR/<suite>.log; if it measured nothing, an earlier file stays. Exit code 1 if any failed.
    """
    from bench.every import MAIN, known, run_all, table

    names = known(s.strip() for s in suites.split(",")) if suites is not None else MAIN
    console = results_console()
    out = out or (Path("results") if quick or model is not None else RESULTS)
    ended = run_all(names, out, console, model=model, quick=quick)
    console.print(table(ended))
    if any(e.why for e in ended):
        raise typer.Exit(1)


def _share(text: str | float) -> float:
    """`10%` or `0.1`."""
    plain = str(text).strip()
    try:
        value = float(plain.removesuffix("%")) / (100 if plain.endswith("%") else 1)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise typer.BadParameter(f"{text!r} is not a share below 1, such as 10% or 0.1")
    return value


def bench_compare(
    old: Annotated[Path, typer.Argument(help="Results file, or directory of them.")],
    new: Annotated[Path, typer.Argument(help="Results file, or directory of them.")],
    allow: Annotated[float, typer.Option(parser=_share, help="How much worse a figure may be.")] = "10%",  # type: ignore[assignment]
    ratios: Annotated[
        bool,
        typer.Option(
            "--ratios",
            help="Only figures that hold two things of one run against each other: they carry over to other "
            "machines best.",
        ),
    ] = False,
    agree: Annotated[
        bool,
        typer.Option(
            "--agree",
            help="Two runs of one commit: whether their intervals overlap. Exit code 1 where under 95% do, "
            "or where one run has figures that the other lacks.",
        ),
    ] = False,
    again: Annotated[
        Path | None,
        typer.Option(
            help="Measure the suites in which something is worse once more, into this directory: a "
            "regression is what is worse both times."
        ),
    ] = None,
) -> None:
    """Compare two runs figure by figure. Exit code 1 where one is worse by more than --allow, or 2 where all
    that is worse is of suites in whose runs the machine itself did not compute equally fast.

    Where the runs have an interval for a figure and it is worse by less than these together, it is unclear,
    not a regression. A figure that the new run tried and did not get is one, and so are wrong scores.
    """
    from bench.compare import compare, confirmed, differences, other_speeds, refusals, table
    from bench.results import read_all

    before, after = read_all(old), read_all(new)
    if agree:
        return _agree(before, after, ratios)
    console = results_console()
    changes = compare(before, after, allowed=allow, ratios_only=ratios)
    speeds = other_speeds(before, after)
    suites = list(dict.fromkeys(c.suite for c in changes if c.by_chance))
    if again is not None and suites:
        second = _measured_again(suites, after, again, console)
        changes = confirmed(changes, compare(before, second, allowed=allow, ratios_only=ratios))
        slow = other_speeds(before, second)
        speeds = {suite: line for suite, line in speeds.items() if suite not in second or suite in slow}
    console.print(table(changes))
    for line in differences(before, after):
        console.print(f"note: {line}", style="yellow", highlight=False, markup=False)
    worse, refused = [c for c in changes if c.regression], refusals(before, after)
    for c in worse:
        told = [f"{c.old.value:.4g} to {c.new.value:.4g} {c.old.unit}"] if c.new is not None else []
        line = f"{c.verdict}: {c.suite} {c.old.name}: {'; '.join([*told, *filter(None, [c.why])])}"
        console.print(line, style="bold red", highlight=False, markup=False)
    for suite, one in refused:
        console.print(f"{suite} {one.name}: {one.why}", style="bold red", highlight=False, markup=False)
    judged = sum(c.judged for c in changes)
    gone = sum(c.verdict == "gone" for c in worse)
    console.print(
        f"{judged} figures judged, {len(worse) - gone} worse by over {allow:.0%}, {gone} gone, "
        f"{len(refused)} refused",
        highlight=False,
    )
    if refused or any(c.certain or c.suite not in speeds for c in worse):
        raise typer.Exit(1)
    if worse:
        for suite in dict.fromkeys(c.suite for c in worse):
            line = f"not decided: {suite}: {speeds[suite]}; measure both again on an equally fast machine"
            console.print(line, style="yellow", highlight=False, markup=False)
        raise typer.Exit(2)


def _measured_again(
    suites: list[str], new: "Mapping[str, Results]", out: Path, console: "Console"
) -> "Mapping[str, Results]":
    """Runs suites of the new run once more. Raises `ResultsError` where another command or commit gave it."""
    from bench.every import run_all
    from bench.results import ResultsError, commit, read_all, suite_command

    here = commit()
    for suite in suites:
        command = suite_command(suite, [])
        if new[suite].commit != here or new[suite].command != command:
            raise ResultsError(
                f"{suite} cannot be measured again: the new run is `{new[suite].command}` at "
                f"{new[suite].commit}, here it is `{command}` at {here}; compare without --again"
            )
    console.print(f"measuring again what may be worse by chance: {', '.join(suites)}", highlight=False)
    ended = {e.suite for e in run_all(suites, out, console) if not e.kept}
    return {suite: results for suite, results in read_all(out).items() if suite in ended}


def _agree(first: "Mapping[str, Results]", second: "Mapping[str, Results]", ratios: bool) -> None:
    from bench.agreement import agreement
    from bench.compare import other_speeds, with_interval

    found, console = agreement(first, second, ratios_only=ratios), results_console()
    for suite, one, other in found.apart:
        line = f"apart: {suite} {one.name}: {with_interval(one)} and {with_interval(other)} {one.unit}"
        console.print(line, style="bold red", highlight=False, markup=False)
    for suite, one in found.lone:
        line = f"only one run has it: {suite} {one.name}: {with_interval(one)} {one.unit}"
        console.print(line, style="bold red", highlight=False, markup=False)
    for suite, line in other_speeds(first, second).items():
        console.print(f"note: {suite}: {line}", style="yellow", highlight=False, markup=False)
    agreeing = found.figures - len(found.apart)
    console.print(f"{agreeing} of {found.figures} figures agree within their intervals", highlight=False)
    if not found.holds:
        raise typer.Exit(1)


def bench_report(
    results: Annotated[Path, typer.Argument(help="Results file, or directory of them.")] = RESULTS,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The HTML file; everything as JSON is written beside it.",
            show_default="report.html beside the results",
        ),
    ] = None,
    prices: Annotated[
        Path | None, typer.Option(help="Prices of machines, a file like bench/prices.toml.")
    ] = None,
    page: Annotated[
        Path | None, typer.Option(help="Write it as Markdown, too; its charts go beside the results.")
    ] = None,
) -> None:
    """Make a report of results: who wins where, charts, what a million requests cost, what was not measured.

    One HTML file that loads nothing from elsewhere, and one JSON file. Both are made of results files alone,
    on any machine; suites that are not among them are listed.
    """
    from bench.report.blocks import Chart
    from bench.report.document import as_json, document, write
    from bench.report.html import page as html_page
    from bench.report.markdown import charts_directory
    from bench.report.markdown import page as markdown_page
    from bench.report.prices import DEFAULT, read_prices
    from bench.results import REPORT, read_all

    made = document(read_all(results), read_prices(prices or DEFAULT))
    directory = results if results.is_dir() else results.parent
    file = out or directory / f"{REPORT}.html"
    if file.suffix == ".json":
        raise typer.BadParameter(f"{file} is to be the HTML file", param_hint="--out")
    write(file, html_page(made))
    write(file.with_suffix(".json"), as_json(made))
    if page is not None:
        write(page, markdown_page(made, directory, page))
        for chart in (b for section in made.sections for b in section.blocks if isinstance(b, Chart)):
            write(charts_directory(directory) / f"{chart.name}.svg", chart.draw())
    console = results_console()
    console.print(f"{file} and {file.with_suffix('.json')}", highlight=False)
    if made.missing:
        console.print(f"not among the results: {', '.join(made.missing)}", style="yellow", highlight=False)


def add_to(app: typer.Typer, wrap: Callable[..., Callable[..., None]]) -> None:
    """Adds `jaxrank bench`; `wrap` reports errors."""
    # The suite's own parser reads its options, and explains them.
    handed_over = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
    for name, about in _SUITES.items():
        bench_app.command(name, help=about, context_settings=handed_over)(wrap(_suite(name), "bench"))
    bench_app.command("all")(wrap(bench_all, "bench"))
    bench_app.command("report")(wrap(bench_report, "bench"))
    bench_app.command("compare")(wrap(bench_compare, "bench"))
    app.add_typer(bench_app, name="bench")
