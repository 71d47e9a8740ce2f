"""The sparse suite runs, its parts compute the same, and a suite that fails does not stop it."""

import json
from pathlib import Path

import pytest

from bench import host_program, sparse
from bench.report.others import _RIVALS
from bench.results import Figure, figures_of_this_commit, read_results, suite_command, write_results
from serving.allocator import find_jemalloc
from tests.command_line import jaxrank


def test_what_a_suite_has_measured_is_not_measured_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the same commit, by the same command; of other commits, sizes or sources it is."""
    commit = "v1"
    monkeypatch.setattr("bench.results.commit", lambda: commit)
    path, command = tmp_path / "updates.json", "python -m bench updates"
    kills = Figure(name="kills_survived", value=7, unit="kills", note="of 7")
    write_results(path, "updates", suite_command("updates", ["--out", str(path)]), [kills])
    known = figures_of_this_commit(path, command)["kills_survived"]
    assert known.value == 7 and known.note.startswith("of 7 (updates, v1, ")
    assert not figures_of_this_commit(path, f"{command} --quick")
    commit = "v2"
    assert not figures_of_this_commit(path, command)
    commit = "v1-dirty"
    assert not figures_of_this_commit(path, command)
    write_results(path, "updates", command, [kills])
    assert not figures_of_this_commit(path, command)
    assert not figures_of_this_commit(tmp_path / "host.json", "python -m bench host")


def test_without_a_compiler_the_rest_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each figure that needs one is listed, as is each of a library that is not there."""
    monkeypatch.setenv("CXX", str(tmp_path / "absent"))
    found = sparse.Times()
    sparse._rooflines(found, tmp_path, sparse.QUICK, print)
    assert not sparse.fractions([found], sparse.QUICK)
    names = {m.name for m in found.missing}
    assert {"roofline_fraction_min", "roofline_fraction_zipf_128"} <= names and len(names) == 9
    figures, missing = host_program._costs(tmp_path, host_program.QUICK, beside=False)
    assert not figures and {m.name for m in missing} == {name for name, _ in host_program._SERVED}
    assert all("absent" in m.why or "libjemalloc" in m.why for m in [*found.missing, *missing])
    known = {f"speedup_vs_{name}" for names in sparse._PEERS.values() for name in names}
    assert known <= set(_RIVALS)


def test_quick_run(tmp_path: Path) -> None:
    """After a suite that fails: `soak` needs bundles, and is given none."""
    done = jaxrank("bench", "all", "--quick", "--suites", "soak,sparse", "--out", tmp_path)
    assert done.returncode == 1
    failed = read_results(tmp_path / "soak.json")
    (reason,) = failed.not_measured
    assert reason.name == "soak" and "soak: error: " in reason.why and reason.why in done.stdout
    assert not failed.figures and reason.why in (tmp_path / "soak.log").read_text()
    assert not (tmp_path / "sparse.log").exists(), done.stdout
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
