"""Updates of tables while they serve: `python -m bench updates`.

Lookups under an overlay and without one run in turns in one process, on one thread, on the same table in huge
pages. Kills hit `jaxrank tables apply` on a table whose rows tell at which sequence they are.
"""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from bench.destination import add_out, destination
from bench.draws import draw
from bench.results import Figure, suite_command, write_results
from bench.timing import interleaved, mean_ratio
from bench.updates_kills import apply_with_kills
from serving.tables import Table, TableWriter, apply_deltas, open_table, overlaid, read_delta, write_delta

RESULTS = Path("bench/results/updates.json")
DIM = 16
SHARES = (0.01, 0.10)


@dataclass(frozen=True)
class Sizes:
    rows: int
    ids: int
    rounds: int
    kills: int


FULL = Sizes(rows=8_000_000, ids=100_000, rounds=25, kills=100)
QUICK = Sizes(rows=100_000, ids=20_000, rounds=3, kills=1)


def write_table(path: Path, rows: int, keyed: bool, *, changed: float = 0, seed: int = 0) -> Table:
    """Rows of small numbers, of which a share is drawn by `seed` and differs. Keys are anywhere in int64."""
    chosen = np.random.default_rng(seed).random(rows) < changed
    with TableWriter(path, DIM, keyed=keyed) as writer:
        for start in range(0, rows, 1 << 18):
            numbers = np.arange(start, min(rows, start + (1 << 18)))
            values = (numbers % 97 + chosen[numbers]).astype(np.float32)
            writer.append(np.repeat(values[:, None], DIM, axis=1), keys_of(numbers) if keyed else None)
    return open_table(path)


def keys_of(numbers: np.ndarray) -> np.ndarray:
    """Multiples of an odd number are distinct."""
    return numbers * np.int64(0x5851F42D4C957F2D)


def lookup_costs(directory: Path, sizes: Sizes, console: Console) -> list[Figure]:
    """Lookups under an overlay over lookups without one; and how fast deltas are made and applied."""
    figures: list[Figure] = []
    for kind in ("dense", "keyed"):
        keyed = kind == "keyed"
        old = write_table(directory / "old.table", sizes.rows, keyed)
        base = open_table(directory / "old.table", memory="huge", trusted=True)
        tables = {"none": base}
        for share in SHARES:
            path = directory / f"{share}.delta"
            new = write_table(directory / "new.table", sizes.rows, keyed, changed=share)
            write_delta(old, new, path, name="old")
            began = time.perf_counter()
            tables[f"{share:.0%}"] = overlaid(base, None, [read_delta(path)])
            seconds = time.perf_counter() - began
            figures.append(_rate(f"overlay_rows_per_s_{kind}_{share:.0%}", share * sizes.rows / seconds))
        began = time.perf_counter()
        apply_deltas(directory / "old.table", [read_delta(directory / f"{SHARES[-1]}.delta")])
        seconds = time.perf_counter() - began
        note = "the file is written again, and is on the disk"
        figures.append(_rate(f"file_rows_per_s_{kind}", sizes.rows / seconds, note))
        for zipf in (False, True):
            sets = [draw(np.random.default_rng(i), sizes.rows, sizes.ids, zipf) for i in range(4)]
            ids = [keys_of(bags.ids) if keyed else bags.ids for bags in sets]
            out = np.empty((len(sets[0].offsets) - 1, DIM), np.float32)
            turn = [0]

            def pool(table: Table, sets=sets, ids=ids, out=out, turn=turn) -> None:
                at = turn[0] % len(sets)
                table.pool(ids[at], sets[at].offsets, None, "sum", None, out)

            def advance(turn=turn) -> None:
                turn[0] += 1

            calls = {name: lambda table=table: pool(table) for name, table in tables.items()}
            times = interleaved(calls, rounds=sizes.rounds, advance=advance)
            drawn = "zipf" if zipf else "uniform"
            for name in list(tables)[1:]:
                ratio = mean_ratio([(times[name], times["none"])])
                note = f"{times['none'].median * 1e6 / sizes.ids:.0f} ns a row without"
                runs = times[name].runs
                figures.append(ratio.figure(f"lookup_cost_{kind}_{drawn}_{name}", "x", runs, note))
                console.print(f"{figures[-1].name}: {ratio.value:.2f} ({note})")
    return figures


def kills(directory: Path, sizes: Sizes, console: Console) -> Figure:
    """SIGKILLs of `tables apply` after which the table was whole, at the old sequence or the new one."""
    rows, target = 20_000, directory / "killed.table"
    deltas: list[Path] = []
    after = None
    for epoch in range(sizes.kills * 2 + 2):
        path = directory / f"epoch{epoch % 2}.table"
        with TableWriter(path, DIM) as writer:
            writer.append(np.full((rows, DIM), epoch, np.float32))
        if epoch == 0:
            target.write_bytes(path.read_bytes())
            continue
        deltas.append(directory / f"{epoch}.delta")
        old, new = (open_table(directory / f"epoch{e % 2}.table") for e in (epoch - 1, epoch))
        write_delta(old, new, deltas[-1], name="killed", after=after)
        after = read_delta(deltas[-1])

    def check() -> int:
        table = open_table(target)
        table.verify()
        values = np.unique(table.array)
        if values.tolist() != [table.position.sequence]:
            raise RuntimeError(f"the table is at sequence {table.position.sequence}, its rows are {values}")
        return table.position.sequence

    survived = apply_with_kills(target, deltas, check, kills=sizes.kills)
    console.print(f"kills_survived: {survived.kills}, {survived.applied} deltas applied in between")
    note = f"of {sizes.kills}; {survived.applied} deltas were applied"
    return Figure(name="kills_survived", value=survived.kills, unit="kills", note=note)


def _rate(name: str, value: float, note: str = "") -> Figure:
    return Figure(name=name, value=value, unit="rows/s", note=note)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench updates", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small tables, few rounds and kills")
    add_out(parser, RESULTS)
    options = parser.parse_args(arguments)
    options.out = destination(options.out, RESULTS, part=options.quick)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sizes, console = QUICK if options.quick else FULL, Console()
    with tempfile.TemporaryDirectory(dir=options.out.parent) as name:
        figures = lookup_costs(Path(name), sizes, console)
        figures.append(kills(Path(name), sizes, console))
    write_results(options.out, "updates", suite_command("updates", arguments), figures)
