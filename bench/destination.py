"""Where a suite writes: what is not the whole of it, at its own sizes, does not take the place of its
results."""

import argparse
from pathlib import Path


def add_out(parser: argparse.ArgumentParser, results: Path) -> None:
    """`--out FILE`, explained."""
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help=f"figures ({results}; of a part of it {results.name})"
    )


def destination(out: Path | None, results: Path, *, part: object) -> Path:
    """The file that was asked for, or `results`, or, of a part, one of the same name here."""
    if out is not None:
        return out
    return Path(results.name) if part else results
