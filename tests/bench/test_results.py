"""Results say which sources were measured."""

import shutil
import subprocess
from pathlib import Path

import pytest

from bench import results
from bench.results import commit, figures_of_this_commit, read_results, write_results


def _repository(path: Path) -> str:
    """Somebody's, with one commit. Returns it."""
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "file"], ["commit", "-q", "-m", "theirs"]):
        (path / "file").write_text("theirs")
        subprocess.run([*git, *command], cwd=path, check=True)
    found = subprocess.run(["git", "describe", "--always", "--abbrev=12"], cwd=path, capture_output=True)
    return found.stdout.decode().strip()


def test_a_repository_around_ours_is_somebody_elses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither where a bench runs, nor what the package is installed into, says anything of our sources."""
    theirs, ours = _repository(tmp_path), commit()
    monkeypatch.chdir(tmp_path)
    assert commit() == ours != theirs
    installed = tmp_path / "venv" / "site-packages"
    installed.mkdir(parents=True)
    monkeypatch.setattr(results, "_ROOT", installed)
    assert commit().startswith("version ")
    monkeypatch.setattr(results, "_ROOT", tmp_path)
    assert commit() == theirs


def test_without_git_nothing_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container; what is measured is not taken for that of a commit."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("git") is None
    path = tmp_path / "r.json"
    write_results(path, "suite", "command", [])
    assert read_results(path).commit == commit() and commit().startswith("version ")
    assert not figures_of_this_commit(path, "command")


def test_packages_that_are_large_are_recorded_and_not_imported(tmp_path: Path) -> None:
    write_results(tmp_path / "r.json", "suite", "command", [])
    versions = read_results(tmp_path / "r.json").versions
    assert {"flax", "keras", "tensorflow"} <= set(versions) and "torch" in results._PACKAGES
