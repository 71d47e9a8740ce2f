"""`jaxrank bench` hands over to suites, and runs several of them."""

from pathlib import Path

import pytest

from bench import sparse
from bench.every import known
from bench.results import ResultsError, read_results
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


def test_there_is_no_such_suite() -> None:
    with pytest.raises(ResultsError, match="there is no suite dens; suites are: dense"):
        known(["sparse", "dens"])
    assert jaxrank("bench", "all", "--suites", "dens").returncode == 2
