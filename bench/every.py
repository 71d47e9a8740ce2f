"""Suites one after another, each in a process of its own: what one does to its threads, its memory or itself
is not felt by the next."""

import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.__main__ import SUITES
from bench.results import NotMeasured, ResultsError, read_results, suite_command, write_results

MAIN = ("convert", "dense", "sparse", "serve")
"""What `jaxrank bench all` runs."""
WITH_MODEL = ("convert", "dense", "serve")
"""Suites that measure a model; the others measure tables and processes of their own."""
_QUICK = (*MAIN, "host", "loading", "state", "updates")
"""Suites that have `--quick`."""


@dataclass(frozen=True)
class Ended:
    """One suite's run.

    Attributes:
        why: it failed; empty where it was measured.
        kept: whether the file is of an earlier run, as this one ended before it wrote anything.
    """

    suite: str
    file: Path
    seconds: float
    why: str = ""
    kept: bool = False


def known(names: Iterable[str]) -> list[str]:
    """The suites of these names. Raises `ResultsError` where there is none of a name."""
    names = list(names)
    if unknown := [name for name in names if name not in SUITES]:
        raise ResultsError(f"there is no suite {', '.join(unknown)}; suites are: {', '.join(SUITES)}")
    return names


def run_all(
    names: Sequence[str], out: Path, console: Console, *, model: Path | None = None, quick: bool = False
) -> list[Ended]:
    """Runs suites; each shows its own progress on this terminal while it runs.

    A suite that fails leaves what it had measured, with the reason among what it did not measure, and its
    errors in `out / "<suite>.log"`. Where it had measured nothing, the file of an earlier run stays. A suite
    that gives no figure at all has failed, whatever its status.

    Args:
        out: directory of the results.
        model: a bundle or SavedModel for the suites that measure models; the others run without it. What is
            a bundle already is not converted.
    """
    out.mkdir(parents=True, exist_ok=True)
    ended: list[Ended] = []
    if model is not None and (model / "manifest.json").is_file():
        names = [name for name in names if name != "convert"]
    for number, suite in enumerate(names, start=1):
        console.print(f"suite {number} of {len(names)}, {suite}: {SUITES[suite]}", style="bold")
        arguments = [str(model)] if model is not None and suite in WITH_MODEL else []
        arguments += ["--quick"] if quick and suite in _QUICK else []
        ended.append(_run_one(suite, out, arguments))
        if ended[-1].why:
            console.print(f"{suite} failed: {ended[-1].why}", style="bold red", highlight=False, markup=False)
        if ended[-1].kept:
            line = f"{ended[-1].file} is still that of an earlier run"
            console.print(line, style="yellow", highlight=False, markup=False)
    return ended


def _run_one(suite: str, out: Path, arguments: Sequence[str]) -> Ended:
    file, log = out / f"{suite}.json", out / f"{suite}.log"
    before = file.stat().st_mtime_ns if file.exists() else None
    command = [sys.executable, "-m", "bench", suite, *arguments, "--out", str(file)]
    start = time.monotonic()
    with log.open("wb") as errors:
        done = subprocess.run(command, stderr=errors)
    seconds = time.monotonic() - start
    written = file.exists() and file.stat().st_mtime_ns != before
    found = read_results(file) if written else None
    if done.returncode == 0 and found is not None and found.figures:
        log.unlink()
        return Ended(suite, file, seconds)
    why = _last_line(log) or f"it ended with status {done.returncode}"
    if done.returncode == 0:
        reasons = [f"{m.name}: {m.why}" for m in found.not_measured] if found is not None else []
        why = "; ".join(["nothing was measured", *reasons[:1]])
    if before is not None and not written:
        return Ended(suite, file, seconds, why, kept=True)
    write_results(
        file,
        suite,
        suite_command(suite, arguments),
        found.figures if found else [],
        [*(found.not_measured if found else []), NotMeasured(name=suite, why=why)],
    )
    return Ended(suite, file, seconds, why)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""


def table(ended: Sequence[Ended]) -> Table:
    """What became of each."""
    made = Table(title="suites")
    for column in ("suite", "figures", "not measured", "minutes", "file", "failed because"):
        made.add_column(
            column, justify="right" if column in ("figures", "not measured", "minutes") else "left"
        )
    for e in ended:
        counts = ("-", "-")
        if not e.kept:
            results = read_results(e.file)
            counts = (str(len(results.figures)), str(len(results.not_measured)))
        made.add_row(e.suite, *counts, f"{e.seconds / 60:.1f}", str(e.file), e.why)
    return made
