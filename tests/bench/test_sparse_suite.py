"""The sparse suite runs, and its parts compute the same."""

import json
from pathlib import Path

from bench import sparse
from serving.allocator import find_jemalloc


def test_quick_run(tmp_path: Path) -> None:
    sparse.main(["--quick", "--out", str(tmp_path / "sparse.json")])
    found = json.loads((tmp_path / "sparse.json").read_text())
    figures = {f["name"]: f["value"] for f in found["figures"]}
    wanted = {
        "roofline_fraction_min",
        "speedup_vs_tf_lookup",
        "speedup_vs_numpy_take",
        "ns_per_row_10000_rows",
        "host_program_ms_100x500",
        "kills_survived",
    }
    assert wanted <= set(figures)
    assert all(figures[name] > 0 for name in wanted)
    of_allocator = {"allocations_per_request", "page_faults_per_1000_requests"}
    assert of_allocator <= set(figures) or not find_jemalloc()
    assert (tmp_path / "sparse.png").stat().st_size > 10_000
