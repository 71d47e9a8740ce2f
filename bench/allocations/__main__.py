"""`python -m bench.allocations BUNDLE REQUESTS.npz`: faults and allocations per request, as a table."""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.allocations.measure import UNITS, Configuration, beside_glibc, costs
from serving.allocator import PACKAGE, check_jemalloc, find_jemalloc


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Page faults and heap allocations of a bundle's requests.")
    parser.add_argument("bundle", type=Path)
    parser.add_argument("requests", type=Path, help=".npz with arrays named <request>/<feature>")
    parser.add_argument("--jemalloc", type=Path, help="its library (default: where jaxrank serve finds it)")
    parser.add_argument(
        "--requests", type=int, default=1000, dest="number", help="measured requests of a run"
    )
    parser.add_argument("--warm", type=int, default=300, help="requests before them")
    parser.add_argument("--rounds", type=int, default=3, help="processes for each allocator")
    parser.add_argument(
        "--no-grpc", action="store_true", help="call the model in its process, without a server"
    )
    parser.add_argument(
        "--options", action="append", default=[], metavar="NAME=MALLOC_CONF", help="more options of jemalloc"
    )
    arguments = parser.parse_args()
    library = check_jemalloc(arguments.jemalloc) if arguments.jemalloc else find_jemalloc()
    if library is None:
        raise SystemExit(f"no libjemalloc was found: apt-get install {PACKAGE}, or --jemalloc PATH")
    named = [option.partition("=") for option in arguments.options]
    more = [Configuration(name, library, options) for name, _, options in named]
    found = costs(
        arguments.bundle,
        arguments.requests,
        beside_glibc(library) + more,
        number=arguments.number,
        warm=arguments.warm,
        rounds=arguments.rounds,
        served=not arguments.no_grpc,
    )
    table = Table(
        title=f"Medians of {arguments.rounds} processes each, {arguments.number} requests",
        caption="ranges in brackets",
    )
    table.add_column("")
    for name in found:
        table.add_column(name, justify="right")
    for field, unit in UNITS.items():
        rows = []
        for runs in found.values():
            values = [getattr(run, field) for run in runs]
            rows.append(f"{np.median(values):,.2f} ({min(values):,.2f}-{max(values):,.2f})")
        table.add_row(f"{field.replace('_', ' ')}, {unit}", *rows)
    Console().print(table)


if __name__ == "__main__":
    main()
