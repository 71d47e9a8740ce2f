"""What the converter takes, and what it costs: `python -m bench convert` writes `bench/results/convert.json`
and, in a full run, `docs/coverage.md`.

The zoo (`tests/zoo/`) is converted model by model and compared with TensorFlow on fresh requests; the ONNX
package's node tests are run; a model with a table of more than 4 GiB is converted in a process of its own
whose memory is watched. Every conversion is certified, so every error is an error of scores.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


from rich.progress import Progress

from bench.destination import add_out, destination
from bench.results import Figure, NotMeasured, ResultsError, suite_command, write_results
from jaxrank.cli.console import results_console
from jaxrank.errors import JaxrankError

if TYPE_CHECKING:
    from tests.converters.onnx_node.conformance import Counts
    from tests.zoo import ZooModel

RESULTS = Path("bench/results/convert.json")
COVERAGE = Path("docs/coverage.md")
TABLE_ROWS, TABLE_DIM = 18_000_000, 64
"""A float32 table of 4.3 GiB."""
_FRESH_SEED = 77_000


@dataclass(frozen=True)
class Converted:
    """One zoo model. `error` is the largest of its certificate and of a fresh request; `why` says what
    failed."""

    name: str
    style: str
    summary: str
    seconds: float = 0.0
    host: int = 0
    dense: int = 0
    folded: int = 0
    operators: int = 0
    error: float = float("nan")
    row_wise: bool = True
    why: str = ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "model", nargs="?", type=Path, metavar="SAVED_MODEL", help="measure this model instead of the zoo"
    )
    parser.add_argument(
        "--models", default="", help="only zoo models whose name has this text; writes nothing"
    )
    parser.add_argument("--quick", action="store_true", help="every eighth model: does it still run?")
    parser.add_argument("--skip-table", action="store_true", help="leave the 4 GiB table out")
    add_out(parser, RESULTS)
    parser.add_argument("--step", choices=("save", "convert"), help=argparse.SUPPRESS)
    parser.add_argument("--directory", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    part = arguments.model or arguments.quick or arguments.skip_table
    arguments.out = destination(arguments.out, RESULTS, part=part)
    if arguments.step == "save":
        save_large_model(arguments.directory / "saved_model")
    elif arguments.step:
        print(convert_and_watch(arguments.directory, arguments.model))
    elif arguments.model is not None:
        _measure_one(arguments.model, arguments.out)
    else:
        _measure_zoo(arguments)


def _measure_one(model: Path, out: Path) -> None:
    """Converts the user's model in a process of its own."""
    console = results_console()
    with console.status(f"converting {model}"), tempfile.TemporaryDirectory() as directory:
        watched = _watched_conversion(Path(directory), model)
    name = model.resolve().name
    figures = [
        Figure(name=f"{name}/convert_s", value=watched.seconds, unit="s", note="the whole process"),
        Figure(name=f"{name}/peak_rss_mib", value=watched.peak_mib, unit="MiB"),
        Figure(
            name=f"{name}/max_abs_error", value=watched.error, unit="score",
            note="certificate: absolute for scores up to 1, relative beyond",
        ),
    ]  # fmt: skip
    write_results(out, "convert", suite_command("convert", [str(name)]), figures)
    for figure in figures:
        console.print(f"{figure.name:28} {figure.value:g} {figure.unit}", highlight=False)


def _measure_zoo(arguments: argparse.Namespace) -> None:
    console = results_console()
    every = 8 if arguments.quick else 1
    models = convert_zoo(arguments.models, every)
    for model in models:
        console.print(
            f"{model.name:28} {model.seconds:6.1f} s  error {model.error:.1e}  {model.why}", highlight=False
        )
    if arguments.models:
        return
    done = [m for m in models if not m.why]
    missing = [NotMeasured(name=m.name, why=m.why) for m in models if m.why]
    figures = [
        Figure(name="zoo_models", value=len(models), unit="models"),
        Figure(name="zoo_converted", value=len(done), unit="models"),
    ]
    if done:
        figures += [
            Figure(
                name="zoo_max_abs_error",
                value=max(m.error for m in done),
                unit="",
                note="absolute for scores up to 1, relative beyond; certificates and fresh "
                "requests of 1, 50 and 400 candidates",
            ),
            Figure(name="zoo_slowest_s", value=max(m.seconds for m in done), unit="s"),
        ]
    onnx = None
    if arguments.quick:
        missing += [NotMeasured(name=name, why="--quick") for name in ("onnx_node_tests", "onnx_node_passed")]
    else:
        from tests.converters.onnx_node.conformance import counts

        with console.status("ONNX node tests, a few minutes"):
            onnx = counts()
        figures += [
            Figure(
                name="onnx_node_tests",
                value=onnx.in_scope,
                unit="tests",
                note=f"with plain tensors, of {onnx.total} in the package",
            ),
            Figure(
                name="onnx_node_passed",
                value=onnx.passed,
                unit="tests",
                note=f"{onnx.folded} of them are evaluated while converting and leave no code",
            ),
        ]
    if arguments.skip_table or arguments.quick:
        why = "--quick" if arguments.quick else "--skip-table"
        names = ("peak_rss_mib_4gib_table", "convert_4gib_table_s")
        missing += [NotMeasured(name=name, why=why) for name in names]
    else:
        with console.status("a table of more than 4 GiB"):
            watched = large_table()
        figures += [
            Figure(
                name="peak_rss_mib_4gib_table",
                value=watched.peak_mib,
                unit="MiB",
                note=f"of the converting process, for a table of {TABLE_ROWS} x {TABLE_DIM} float32",
            ),
            Figure(name="convert_4gib_table_s", value=watched.seconds, unit="s"),
        ]
    options = [f"--{name.replace('_', '-')}" for name in ("quick", "skip_table") if getattr(arguments, name)]
    command = suite_command("convert", options)
    write_results(arguments.out, "convert", command, figures, missing)
    if onnx is not None and arguments.out == RESULTS:
        COVERAGE.write_text(coverage_page(models, onnx))
    for figure in figures:
        console.print(f"{figure.name:28} {figure.value:g} {figure.unit}", highlight=False)


def convert_zoo(only: str = "", every: int = 1) -> list[Converted]:
    """Converts every zoo model, or one of `every` of those whose name has `only`, and scores fresh requests
    with the result."""
    from converters.tensorflow_logs import import_quietly

    import_quietly()
    from tests.zoo import ZOO

    chosen = [m for m in ZOO if only in m.name][::every]
    found = []
    with Progress() as progress, tempfile.TemporaryDirectory() as directory:
        task = progress.add_task("zoo", total=len(chosen))
        for model in chosen:
            progress.update(task, description=model.name)
            found.append(_convert_one(model, Path(directory) / model.name))
            progress.advance(task)
    return found


def _convert_one(model: "ZooModel", directory: Path) -> Converted:
    from converters.convert import convert
    from jaxrank import bundle as files
    from jaxrank.errors import JaxrankError
    from tests.zoo.scoring import largest_error

    directory.mkdir()
    path = model.save(directory)
    start = time.monotonic()
    try:
        manifest = convert(path, directory / "bundle", **model.options, tolerance=model.tolerance)
    except JaxrankError as error:
        return Converted(model.name, model.style, model.summary, why=str(error).splitlines()[0])
    seconds = time.monotonic() - start
    fresh = max(
        largest_error(directory / "bundle", model, path, rows, seed=_FRESH_SEED + rows)
        for rows in (1, 50, 400)
    )
    places = [op.place for op in manifest.ops]
    return Converted(
        model.name,
        model.style,
        model.summary,
        seconds,
        places.count("host"),
        places.count("dense"),
        places.count("folded"),
        len(files.read_host_program(directory / "bundle").operators),
        max(fresh, manifest.certificate.max_abs_error),
        manifest.row_wise,
    )


@dataclass(frozen=True)
class Watched:
    """A conversion in a process of its own: `seconds` are all of it, `error` is its certificate's."""

    peak_mib: float
    error: float
    seconds: float


def large_table() -> Watched:
    """The conversion of a model with a table of more than 4 GiB."""
    with tempfile.TemporaryDirectory() as directory:
        step = [sys.executable, "-m", "bench", "convert", "--directory", directory, "--step", "save"]
        subprocess.run(step, check=True)
        return _watched_conversion(Path(directory), Path(directory) / "saved_model")


def _watched_conversion(directory: Path, model: Path) -> Watched:
    """Raises `ResultsError` with the converter's message where it refuses the model."""
    step = [sys.executable, "-m", "bench", "convert", str(model), "--directory", str(directory)]
    start = time.monotonic()
    done = subprocess.run([*step, "--step", "convert"], capture_output=True, text=True)
    if done.returncode:
        raise ResultsError(f"{model} was not converted: {done.stderr.strip().splitlines()[-1]}")
    peak, error = map(float, done.stdout.split()[-2:])
    return Watched(peak, error, time.monotonic() - start)


def save_large_model(path: Path, rows: int = TABLE_ROWS, dim: int = TABLE_DIM) -> None:
    """A ranker whose item table has `rows` rows."""
    import numpy as np
    import tensorflow

    tf: Any = tensorflow  # its stubs do not know what a module may hold

    rng = np.random.default_rng(0)
    module = tf.Module()
    # Every row differs from its neighbours, and drawing billions of normal numbers would take minutes.
    block = rng.standard_normal((1 << 16, dim), np.float32)
    table = np.empty((rows, dim), np.float32)
    for start in range(0, rows, len(block)):
        part = table[start : start + len(block)]
        part[:] = block[: len(part)]
        part[:, 0] += np.arange(start, start + len(part), dtype=np.float32) / rows
    module.table = tf.Variable(table, name="item_embedding")
    del table
    module.kernel = tf.Variable(rng.standard_normal((2 * dim, 1), np.float32) * 0.1, name="kernel")

    @tf.function(
        input_signature=[
            tf.TensorSpec([None], tf.int64, "item_id"),
            tf.TensorSpec([1, 8], tf.int64, "user_items"),
        ]
    )
    def score(item_id: Any, user_items: Any) -> dict[str, Any]:
        user = tf.reduce_mean(tf.gather(module.table, user_items), 1)
        item = tf.gather(module.table, item_id)
        both = tf.concat([tf.tile(user, [tf.shape(item)[0], 1]), item], -1)
        return {"score": tf.sigmoid(both @ module.kernel)[:, 0]}

    module.score = score
    tf.saved_model.save(module, str(path), signatures=score)


def convert_and_watch(directory: Path, model: Path) -> str:
    """Converts a model into `directory / "bundle"`: this process's peak resident memory in MiB, and the
    certificate's error."""
    from converters.convert import convert

    try:
        manifest = convert(model, directory / "bundle")
    except JaxrankError as error:
        raise SystemExit(" ".join(str(error).split())) from error
    return f"{peak_memory_mib()} {manifest.certificate.max_abs_error}"


def peak_memory_mib() -> float:
    """Peak resident memory of this program; what getrusage says includes that of its parent."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM:"))) / 1024


def coverage_page(models: list[Converted], onnx: "Counts") -> str:
    """The page `docs/coverage.md`."""
    done = [m for m in models if not m.why]
    lines = [
        "# What converts",
        "",
        "Written by `python -m bench convert`; figures in `bench/results/convert.json`. Every model is "
        "saved by",
        "TensorFlow in the style named, converted, certified, and scored on fresh requests of 1, 50 and 400",
        f"candidates. {len(done)} of {len(models)} convert; the largest error of any output is "
        f"{max(m.error for m in done):.1e}.",
        "",
        "| model | style | what is in it | source ops: host / dense / folded | host operators | largest "
        "error |",
        "|---|---|---|---|---|---|",
    ]
    for m in models:
        result = f"not converted: {m.why}" if m.why else f"{m.error:.1e}"
        mixing = "" if m.row_wise else " (mixes candidates)"
        lines.append(
            f"| {m.name} | {m.style} | {m.summary}{mixing} | {m.host} / {m.dense} / {m.folded} | "
            f"{m.operators} | "
            f"{result} |"
        )
    lines += [
        "",
        "## ONNX operators",
        "",
        f"Of the onnx package's {onnx.total} node tests, {onnx.in_scope} have plain tensors as inputs and "
        f"outputs;",
        f"{onnx.passed} of them pass ({onnx.passed / onnx.in_scope:.1%}; {onnx.folded} of these are "
        f"evaluated while",
        "converting and leave no code). The others are strict expected failures, each with its reason, in",
        "`tests/converters/onnx_node/reasons.py`.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
