"""Whether two runs of one commit agree: `python -m bench agree FIRST SECOND`.

Of every figure that both results files have with bounds, the intervals must overlap. With intervals of 95%,
one pair of about two hundred does not where nothing but chance differs; a machine whose speed drifts for
minutes, which no interval of one run can know, shows here. Exits with 1 where fewer than 95% agree, or the
files are of different commits, machines or suites.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_SHARE = 0.95


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
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
    first, second = (_read(path) for path in (options.first, options.second))
    for key in ("suite", "commit", "machine"):
        if first[key] != second[key]:
            raise SystemExit(f"these are not two runs of the same: {key} {first[key]} and {second[key]}")
    apart, both = disagreements(first["figures"], second["figures"])
    for line in apart:
        print(line)
    if not both:
        raise SystemExit("the files have no figure with bounds in common")
    print(f"{both - len(apart)} of {both} figures agree within their intervals")
    if both - len(apart) < _SHARE * both:
        raise SystemExit(1)


def disagreements(first: Sequence[dict[str, Any]], second: Sequence[dict[str, Any]]) -> tuple[list[str], int]:
    """A line for each figure whose intervals are apart, and how many figures have an interval in both."""
    bounded = [{f["name"]: f for f in figures if _bounded(f)} for figures in (first, second)]
    names = [name for name in bounded[0] if name in bounded[1]]
    pairs = [(bounded[0][name], bounded[1][name]) for name in names]
    apart = [f"{_shown(a)} and {_shown(b)}" for a, b in pairs if a["lo"] > b["hi"] or b["lo"] > a["hi"]]
    return apart, len(pairs)


def _bounded(figure: dict[str, Any]) -> bool:
    return figure["lo"] is not None and figure["hi"] is not None


def _shown(figure: dict[str, Any]) -> str:
    bounds = f"{figure['lo']:.4g} to {figure['hi']:.4g}"
    return f"{figure['name']} {figure['value']:.4g} {figure['unit']} ({bounds})"


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise SystemExit(f"{path} is no results file: {error}") from error
    if not isinstance(found, dict) or not {"suite", "commit", "machine", "figures"} <= found.keys():
        raise SystemExit(f"{path} is no results file of python -m bench")
    return found


if __name__ == "__main__":
    main()
