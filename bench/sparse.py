"""Pooled lookups beside the memory's roofline, TensorFlow, NumPy and torch, and what a request's sparse half
takes in all: `python -m bench sparse`. `python -m bench host` and `updates` have more of the latter; what
they wrote beside this suite's file at the same commit is taken from there.

Every pair runs in turns in one process, on the same rows in huge pages, and in several fresh processes. The
roofline is the plainest C++ loop that fetches ahead, on one thread, as our lookups then are; beside the other
libraries, which take all cores, ours have a pool of all cores, too.
"""

import argparse
import ctypes
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table as Page

from bench import host_program, updates
from bench.destination import add_out, destination
from bench.draws import BAG, Bags, draw
from bench.processes import Status, fresh
from bench.results import Figure, NotMeasured, figures_of_this_commit, suite_command, write_results
from bench.timing import Timing, interleaved, mean_ratio
from jaxrank.cli.console import results_console
from serving.tables import Lookup, Table, TableWriter, WorkerPool, open_table

RESULTS = Path("bench/results/sparse.json")
SOURCE = Path(__file__).with_name("sparse_roofline.cc")
DIMS = (8, 16, 64, 128)
PROCESSES = 3
SETS = 8
"""Draws of ids that calls take in turns, so that no call finds the rows of the one before in a cache."""


@dataclass(frozen=True)
class Sizes:
    table_bytes: int
    ids: int
    rounds: int
    growth: tuple[int, ...]
    host: host_program.Sizes
    updates: updates.Sizes


FULL = Sizes(
    table_bytes=1 << 30,
    ids=100_000,
    rounds=10,
    growth=(10**5, 10**6, 10**7, 10**8),
    host=host_program.FULL,
    updates=updates.FULL,
)
QUICK = Sizes(
    table_bytes=8 << 20,
    ids=20_000,
    rounds=3,
    growth=(10**4, 10**5),
    host=host_program.QUICK,
    updates=updates.QUICK,
)
_PEERS_DIM = 64
_DRAWN = ("uniform", "zipf")
_MINIMUM = "roofline_fraction_min"
_PEERS = {"tf": ("tf_lookup", "tf_safe_lookup"), "torch": ("torch_embedding_bag",)}
"""What is timed of each library."""
OF_HOST = ("host_program_ms_100x500", "allocations_per_request", "page_faults_per_1000_requests")
"""What the suite takes of `python -m bench host`."""


@contextmanager
def made(directory: Path, rows: int, dim: int) -> Iterator[Table]:
    """A float32 table in huge pages."""
    path = directory / "bench.table"
    some = np.random.default_rng(0).normal(size=(min(rows, 1 << 16), dim)).astype(np.float32)
    with TableWriter(path, dim) as writer:
        for start in range(0, rows, len(some)):
            writer.append(some[: min(len(some), rows - start)])
    table = open_table(path, memory="huge", trusted=True)
    try:
        yield table
    finally:
        path.unlink()


def roofline(directory: Path) -> Callable[[Table, Bags, np.ndarray], None]:
    """Builds and loads sparse_roofline.cc. Raises `FileNotFoundError` without a C++ compiler, and
    `CalledProcessError` with one that does not take it."""
    library = directory / "roofline.so"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    flags = ["-std=c++20", "-O3", "-march=native", "-fPIC", "-shared"]
    subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(library)], check=True)
    function = ctypes.CDLL(str(library)).roofline
    function.argtypes = [
        ctypes.c_void_p,
        ctypes.c_size_t,
        *[ctypes.c_void_p] * 2,
        ctypes.c_size_t,
        ctypes.c_void_p,
    ]

    def run(table: Table, bags: Bags, out: np.ndarray) -> None:
        where = table.array.ctypes.data, table.dim, bags.ids.ctypes.data, bags.offsets.ctypes.data
        if function(*where, len(bags.offsets) - 1, out.ctypes.data):
            raise ValueError(f"the roofline has no loop for rows of {table.dim}")

    return run


class Turns:
    """Sets of ids in turns, and outputs to write to."""

    def __init__(self, sets: Sequence[Bags], dim: int):
        self._sets, self._at = sets, 0
        self.out = np.empty((len(sets[0].offsets) - 1, dim), np.float32)

    def now(self) -> Bags:
        return self._sets[self._at % len(self._sets)]

    def advance(self) -> None:
        self._at += 1


@dataclass
class Times:
    """What one process measured."""

    rooflines: dict[tuple[str, int], dict[str, Timing]] = field(default_factory=dict)
    """By distribution and columns: ours and the plain loop's."""
    peers: dict[str, Timing] = field(default_factory=dict)
    """By library, ours among them."""
    growth: dict[int, dict[str, Timing]] = field(default_factory=dict)
    """By rows of the table: lookups, and opening it."""
    bytes: dict[int, int] = field(default_factory=dict)
    """Of the table's file, by rows."""
    missing: list[NotMeasured] = field(default_factory=list)


def measure(say: Status, directory: Path, sizes: Sizes) -> Times:
    """All lookups in this process."""
    found = Times()
    _rooflines(found, directory, sizes, say)
    _peers(found, directory, sizes, say)
    _growth(found, directory, sizes, say)
    return found


def _rooflines(found: Times, directory: Path, sizes: Sizes, say: Status) -> None:
    """Our lookups on one thread, and the roofline."""
    try:
        plain, rng = roofline(directory), np.random.default_rng(1)
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        why = host_program.no_compiler(error)
        names = [_MINIMUM, *(_fraction(name, dim) for name in _DRAWN for dim in DIMS)]
        found.missing += [NotMeasured(name=name, why=why) for name in names]
        say(f"no roofline: {why}")
        return
    for dim in DIMS:
        rows = sizes.table_bytes // (4 * dim)
        with made(directory, rows, dim) as table:
            for name in _DRAWN:
                turns = Turns([draw(rng, rows, sizes.ids, name == "zipf") for _ in range(SETS)], dim)

                def ours(turns: Turns = turns, table: Table = table) -> None:
                    bags = turns.now()
                    table.pool(bags.ids, bags.offsets, None, "sum", None, turns.out)
                    turns.advance()

                def theirs(turns: Turns = turns, table: Table = table) -> None:
                    plain(table, turns.now(), turns.out)
                    turns.advance()

                times = found.rooflines[name, dim] = interleaved(
                    {"ours": ours, "roofline": theirs}, rounds=sizes.rounds, per_round=2, pause_s=0
                )
                say(f"{name} {dim}: {times['roofline'].median / times['ours'].median:.2f} of the roofline")


def _fraction(name: str, dim: int) -> str:
    return f"roofline_fraction_{name}_{dim}"


def fractions(found: Sequence[Times], sizes: Sizes) -> list[Figure]:
    """Our lookups on one thread as a share of the roofline; none where a process could not build it."""
    figures = []
    if not all(t.rooflines for t in found):
        return []
    for name, dim in found[0].rooflines:
        ours, plain = (
            Timing.joined([t.rooflines[name, dim][of] for t in found]) for of in ("ours", "roofline")
        )
        note = f"{sizes.table_bytes // (4 * dim):,} rows of {dim}: {per_row(ours, sizes):.1f} ns a row, "
        note += f"roofline {per_row(plain, sizes):.1f}"
        share = mean_ratio([(plain, ours)])
        figures.append(share.figure(_fraction(name, dim), "ratio", ours.runs, note))
    lowest = min(figures, key=lambda f: f.value)
    note = f"the least of all below: {lowest.name}"
    return [msgspec.structs.replace(lowest, name=_MINIMUM, note=note), *figures]


def per_row(timing: Timing, sizes: Sizes) -> float:
    """Nanoseconds."""
    return timing.median * 1e6 / sizes.ids


def _peers(found: Times, directory: Path, sizes: Sizes, say: Status) -> None:
    """Mean pools beside the ways of other libraries to do them."""
    dim, rng = _PEERS_DIM, np.random.default_rng(2)
    rows = sizes.table_bytes // (4 * dim)
    with made(directory, rows, dim) as table:
        turns = Turns([draw(rng, rows, sizes.ids, True) for _ in range(SETS)], dim)
        pool, weights = WorkerPool(), table.array

        def ours() -> None:
            bags = turns.now()
            pool.run([Lookup(table, bags.ids, turns.out, bags.offsets, combiner="mean")])

        calls: dict[str, Callable[[], Any]] = {"ours": ours}
        calls.update(_numpy(weights, turns))
        for name, make in (("tf", _tensorflow), ("torch", _torch)):
            try:
                calls.update(make(weights, turns))
            except ImportError as error:
                why = f"{error}; pip install it"
                found.missing += [NotMeasured(name=f"speedup_vs_{one}", why=why) for one in _PEERS[name]]
        _agree(calls, turns)
        found.peers = interleaved(calls, rounds=sizes.rounds, advance=turns.advance)
    say(", ".join(f"{name} {timing.median:.2f} ms" for name, timing in found.peers.items()))


def speedups(found: Sequence[Times], sizes: Sizes) -> list[Figure]:
    """How many times longer other libraries take."""
    times = {name: Timing.joined([t.peers[name] for t in found]) for name in found[0].peers}
    rows, ours = sizes.table_bytes // (4 * _PEERS_DIM), times.pop("ours")
    what = f"mean of {BAG} rows of {_PEERS_DIM} on average, zipf, {rows:,} rows"
    return [
        mean_ratio([(timing, ours)]).figure(
            f"speedup_vs_{name}", "ratio", timing.runs,
            f"{what}: {timing.median:.2f} ms, ours {ours.median:.2f}",
        )
        for name, timing in times.items()
    ]  # fmt: skip


def _numpy(weights: np.ndarray, turns: Turns) -> dict[str, Callable[[], Any]]:
    def take() -> np.ndarray:
        bags = turns.now()
        counts = np.diff(bags.offsets)
        full = np.flatnonzero(counts)
        out = np.zeros((len(counts), weights.shape[1]), np.float32)
        out[full] = np.add.reduceat(np.take(weights, bags.ids, axis=0), bags.offsets[:-1][full], axis=0)
        out /= np.maximum(counts, 1)[:, None].astype(np.float32)
        return out

    return {"numpy_take": take}


def _tensorflow(weights: np.ndarray, turns: Turns) -> dict[str, Callable[[], Any]]:
    import tensorflow as tf

    variable = tf.Variable(tf.constant(weights))

    def sparse() -> tf.SparseTensor:
        bags = turns.now()
        rows = np.repeat(np.arange(len(bags.offsets) - 1), np.diff(bags.offsets))
        columns = np.arange(len(bags.ids)) - bags.offsets[rows]
        return tf.SparseTensor(np.stack([rows, columns], 1), bags.ids, [len(bags.offsets) - 1, len(bags.ids)])

    # What a client's tensors cost is not what is measured.
    made_before: dict[int, Any] = {}
    for _ in turns._sets:
        made_before[id(turns.now())] = sparse()
        turns.advance()

    @tf.function
    def lookup(ids: tf.SparseTensor) -> tf.Tensor:
        return tf.nn.embedding_lookup_sparse(variable, ids, None, combiner="mean")

    @tf.function
    def safe(ids: tf.SparseTensor) -> tf.Tensor:
        return tf.nn.safe_embedding_lookup_sparse(variable, ids, combiner="mean")

    return {
        "tf_lookup": lambda: lookup(made_before[id(turns.now())]),
        "tf_safe_lookup": lambda: safe(made_before[id(turns.now())]),
    }


def _torch(weights: np.ndarray, turns: Turns) -> dict[str, Callable[[], Any]]:
    import torch  # pyright: ignore[reportMissingImports]

    table = torch.from_numpy(weights)

    def bag() -> object:
        bags = turns.now()
        ids, offsets = torch.from_numpy(bags.ids), torch.from_numpy(bags.offsets[:-1])
        with torch.inference_mode():
            return torch.nn.functional.embedding_bag(ids, table, offsets, mode="mean")

    return {"torch_embedding_bag": bag}


def _agree(calls: dict[str, Callable[[], Any]], turns: Turns) -> None:
    """Raises `AssertionError` where two of them compute something else."""
    calls["ours"]()
    for name, call in calls.items():
        if name != "ours":
            found = np.asarray(call())
            np.testing.assert_allclose(found, turns.out[: len(found)], atol=1e-5, err_msg=name)


def _growth(found: Times, directory: Path, sizes: Sizes, say: Status) -> None:
    """A lookup as the table grows: 32 bytes, uniform, on one thread."""
    rng, dim = np.random.default_rng(3), 8
    for rows in sizes.growth:
        with made(directory, rows, dim) as table:
            turns = Turns([draw(rng, rows, sizes.ids, False) for _ in range(SETS)], dim)

            def ours(turns: Turns = turns, table: Table = table) -> None:
                bags = turns.now()
                table.pool(bags.ids, bags.offsets, None, "sum", None, turns.out)

            lookups = interleaved({"ours": ours}, rounds=sizes.rounds, pause_s=0, advance=turns.advance)
            opened = interleaved({"open": lambda path=table.path: open_table(path)}, rounds=5)
            found.growth[rows] = lookups | opened
            found.bytes[rows] = Path(table.path).stat().st_size
        say(f"{rows:,} rows: {per_row(lookups['ours'], sizes):.1f} ns a row")


def growth(found: Sequence[Times], sizes: Sizes) -> list[Figure]:
    """Milliseconds to open a table, and nanoseconds of a row, by its size."""
    figures = []
    for rows, size in found[0].bytes.items():
        ours, opened = (Timing.joined([t.growth[rows][of] for t in found]) for of in ("ours", "open"))
        note = f"mapped, {size / 1e9:.2g} GB, its checksums compared as rows are read"
        figures.append(opened.estimate.figure(f"open_ms_{rows}_rows", "ms", opened.runs, note))
        row = ours.scaled(1e6 / sizes.ids).estimate
        figures.append(row.figure(f"ns_per_row_{rows}_rows", "ns", ours.runs, "dim 8, uniform"))
    return figures


def _of_host(
    sizes: Sizes, arguments: argparse.Namespace, console: Console
) -> tuple[list[Figure], list[NotMeasured]]:
    """What a request's host half takes; not again where `python -m bench host` has just measured it."""
    known = _known("host", arguments)
    if all(name in known for name in OF_HOST):
        console.print("the host half: as in host.json")
        return [known[name] for name in OF_HOST], []
    of_host, not_run = host_program.measure(sizes.host, beside=False, say=console.print)
    return [f for f in of_host if f.name in OF_HOST], not_run


def _kills(directory: Path, sizes: Sizes, arguments: argparse.Namespace, console: Console) -> Figure:
    """Kills of an apply; not again where `python -m bench updates` has just done it."""
    known = _known("updates", arguments)
    if "kills_survived" in known:
        console.print("kills: as in updates.json")
        return known["kills_survived"]
    return updates.kills(directory, sizes.updates, console)


def _known(suite: str, arguments: argparse.Namespace) -> dict[str, Figure]:
    command = suite_command(suite, ["--quick"] if arguments.quick else [])
    return figures_of_this_commit(arguments.out.parent / f"{suite}.json", command)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench sparse",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--quick", action="store_true", help="small tables: does it still run?")
    add_out(parser, RESULTS)
    arguments = parser.parse_args(argv)
    arguments.out = destination(arguments.out, RESULTS, part=arguments.quick)
    console, sizes = results_console(), QUICK if arguments.quick else FULL
    with tempfile.TemporaryDirectory() as work:
        found = [fresh(measure, Path(work), sizes, status=console.print) for _ in range(PROCESSES)]
        figures = fractions(found, sizes) + speedups(found, sizes) + growth(found, sizes)
        of_host, not_run = _of_host(sizes, arguments, console)
        figures += of_host
        figures.append(_kills(Path(work), sizes, arguments, console))
    command = suite_command("sparse", ["--quick"] if arguments.quick else [])
    write_results(arguments.out, "sparse", command, figures, [*found[0].missing, *not_run])
    page = Page("figure", "value", "unit", "note")
    for f in figures:
        page.add_row(f.name, f"{f.value:g}", f.unit, f.note)
    console.print(page)


if __name__ == "__main__":
    main()
