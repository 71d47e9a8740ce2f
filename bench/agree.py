"""Whether two runs of one commit agree: `python -m bench agree FIRST SECOND`.

Of every figure that both results files have with bounds, the intervals must overlap. With intervals of 95%,
one pair of about two hundred does not where nothing but chance differs; a machine whose speed drifts for
minutes, which no interval of one run can know, shows here. Exits with 1 where fewer than 95% agree, or the
files are of different commits, machines or suites.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from bench.results import Figure, ResultsError, read_results

_SHARE = 0.95


def main(argv: Sequence[str] | None = None) -> None:
    """Command line. Raises `ResultsError` for files that are no two runs of the same."""
    parser = argparse.ArgumentParser(
        prog="python -m bench agree",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n"
        "  python -m bench dense --models din --sizes 200 1000 --out /tmp/a.json\n"
        "  python -m bench dense --models din --sizes 200 1000 --out /tmp/b.json\n"
        "  python -m bench agree /tmp/a.json /tmp/b.json",
    )
    parser.add_argument("first", type=Path, metavar="FIRST")
    parser.add_argument("second", type=Path, metavar="SECOND")
    options = parser.parse_args(argv)
    first, second = (read_results(path) for path in (options.first, options.second))
    for what in ("suite", "commit", "machine"):
        if (one := getattr(first, what)) != (other := getattr(second, what)):
            raise ResultsError(f"these are not two runs of the same: {what} {one} and {other}")
    apart, both = disagreements(first.figures, second.figures)
    for line in apart:
        print(line)
    if not both:
        raise ResultsError("the files have no figure with bounds in common")
    print(f"{both - len(apart)} of {both} figures agree within their intervals")
    if both - len(apart) < _SHARE * both:
        raise SystemExit(1)


def disagreements(first: Sequence[Figure], second: Sequence[Figure]) -> tuple[list[str], int]:
    """A line for each figure whose intervals are apart, and how many figures have an interval in both."""
    others = {f.name: f for f in second}
    apart, both = [], 0
    for one in first:
        other = others.get(one.name)
        if other is None or None in (one.lo, one.hi, other.lo, other.hi):
            continue
        both += 1
        if one.lo > other.hi or other.lo > one.hi:  # type: ignore[operator]
            apart.append(f"{_shown(one)} and {_shown(other)}")
    return apart, both


def _shown(figure: Figure) -> str:
    return f"{figure.name} {figure.value:.4g} {figure.unit} ({figure.lo:.4g} to {figure.hi:.4g})"


if __name__ == "__main__":
    main()
