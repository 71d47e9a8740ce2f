"""`jaxrank bench` hands over to suites, and runs several of them."""

from pathlib import Path
from types import ModuleType

import pytest
from rich.console import Console

from bench import convert, host_program, loading, sparse, state, updates
from bench.destination import destination
from bench.every import known, run_all, table
from bench.results import Figure, NotMeasured, ResultsError, read_results, write_results
from tests.command_line import jaxrank


def test_help_names_every_command() -> None:
    shown = jaxrank("bench", "--help").stdout
    for name in ("dense", "sparse", "serve", "convert", "all", "compare"):
        assert f" {name} " in shown


def test_a_suites_options_are_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a directory for results is one file of it."""
    given = []
    monkeypatch.setattr(sparse, "main", given.append)
    assert jaxrank("bench", "sparse", "--quick", "--out", tmp_path).returncode == 0
    assert jaxrank("bench", "sparse", f"--out={tmp_path / 'a.json'}").returncode == 0
    assert jaxrank("bench", "sparse", "--help").returncode == 0
    assert given == [
        ["--quick", "--out", str(tmp_path / "sparse.json")],
        ["--out", str(tmp_path / "a.json")],
        ["--help"],
    ]


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    def main(arguments: list[str]) -> None:
        raise ModuleNotFoundError("no", name="tensorflow.python")

    monkeypatch.setattr(sparse, "main", main)
    done = jaxrank("bench", "sparse")
    assert done.returncode == 1
    assert "pip install 'jaxrank[bench]'" in done.stderr


def test_a_conversion_of_ones_own_model(ranker_saved_model: Path, tmp_path: Path) -> None:
    """In a process of its own, whose memory it is."""
    done = jaxrank("bench", "convert", ranker_saved_model, "--out", tmp_path / "mine")
    assert done.returncode == 0, done.stderr
    results = read_results(tmp_path / "mine" / "convert.json")
    figures = {f.name: f.value for f in results.figures}
    assert set(figures) == {f"saved_model/{n}" for n in ("convert_s", "peak_rss_mib", "max_abs_error")}
    assert 0 <= figures["saved_model/max_abs_error"] <= 1e-5
    assert figures["saved_model/convert_s"] > 0 and figures["saved_model/peak_rss_mib"] > 100
    assert results.command == "python -m bench convert saved_model"


@pytest.mark.parametrize("suite", [convert, host_program, loading, sparse, state, updates])
def test_a_part_does_not_replace_a_whole(
    suite: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick run writes here."""
    found = []

    def record(*how: object, part: object) -> None:
        found.append(destination(*how, part=part))  # type: ignore[arg-type]
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "destination", record)
    monkeypatch.chdir(tmp_path)
    for arguments in ([], ["--quick"], ["--quick", "--out", "b.json"]):
        with pytest.raises(KeyboardInterrupt):
            suite.main(arguments)
    assert found == [suite.RESULTS, Path(suite.RESULTS.name), Path("b.json")]


def _suite(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `jaxrank bench all` starts runs this instead, with the file to write in `$out`."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\nfor out; do :; done\n{body}\n")
    program.chmod(0o755)
    monkeypatch.setattr("bench.every.sys.executable", str(program))


def test_a_suite_that_measures_nothing_leaves_the_earlier_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "out" / "soak.json"
    earlier = Figure(name="soak_minutes", value=10, unit="minutes")
    write_results(file, "soak", "c", [earlier])
    before = file.read_bytes()
    _suite("echo no bundle >&2; exit 1", tmp_path, monkeypatch)
    with Console(record=True, width=200) as console:
        (ended,) = run_all(["soak"], file.parent, console)
        console.print(table([ended]))
    assert ended.why == "no bundle" and ended.kept and file.read_bytes() == before
    assert f"{file} is still that of an earlier run" in console.export_text()
    file.unlink()
    (ended,) = run_all(["soak"], file.parent, console)
    assert not ended.kept and read_results(file).not_measured == [NotMeasured(name="soak", why="no bundle")]


def test_a_suite_of_which_every_part_fails_has_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it ended well."""
    written = tmp_path / "written.json"
    write_results(written, "soak", "c", [], [NotMeasured(name="din", why="no memory")])
    _suite(f'cp {written} "$out"', tmp_path, monkeypatch)
    (ended,) = run_all(["soak"], tmp_path, Console())
    assert ended.why == "nothing was measured; din: no memory"


def test_there_is_no_such_suite() -> None:
    with pytest.raises(ResultsError, match="there is no suite dens; suites are: dense"):
        known(["sparse", "dens"])
    assert jaxrank("bench", "all", "--suites", "dens").returncode == 2
