"""A models directory with one healthy ranker, and what a run of hostile requests and bundles came to."""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.results import Figure, NotMeasured, write_results

RESULTS = os.environ.get("JAXRANK_FAULTS_RESULTS")


@pytest.fixture(scope="module")
def models_dir(ranker_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ranker as version 3."""
    path = tmp_path_factory.mktemp("models")
    (path / "ranker").mkdir()
    (path / "ranker" / "3").symlink_to(ranker_bundle)
    return path


@pytest.fixture(scope="session")
def tally() -> Iterator[Counter[str]]:
    """Counts of this run, by the names in `figures`; written when it ends, whatever it ends with, to
    `JAXRANK_FAULTS_RESULTS`, if that is given."""
    found: Counter[str] = Counter()
    yield found
    if RESULTS:
        write_results(Path(RESULTS), "faults", "make faults", *figures(found))


def figures(found: Counter[str]) -> tuple[list[Figure], list[NotMeasured]]:
    """What is written of the counts."""
    served = f"{found['damaged_bundles_served']} served with the same scores or without harm"
    undecided = f"{found['damaged_bundles_not_tried']} not tried, because a higher version is served"
    told = (
        Figure(
            name="fuzzed_rpcs",
            value=found["fuzzed_rpcs"],
            unit="requests",
            note="gRPC, HTTP and bytes on both sockets",
        ),
        Figure(
            name="damaged_bundles",
            value=found["damaged_bundles"],
            unit="bundles",
            note=f"{found['damaged_bundles_refused']} refused with a message, {served}, {undecided}",
        ),
        Figure(name="damaged_bundles_refused", value=found["damaged_bundles_refused"], unit="bundles"),
        Figure(
            name="crashes",
            value=found["crashes"],
            unit="crashes",
            note=f"of servers; {found['faults']} faults of ours in the logs of those that were sent requests",
        ),
    )
    missing = [NotMeasured(name=f.name, why="that part did not run") for f in told if f.name not in found]
    return [figure for figure in told if figure.name in found], missing
