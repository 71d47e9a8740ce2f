"""The command line as a user runs it: help that teaches, reports, exit codes and messages."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrank import bundle as files
from tests import models

JAXRANK = str(Path(sys.executable).parent / "jaxrank")


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [JAXRANK, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "250"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("command", ["convert", "compile", "inspect", "serve"])
def test_help(command: str) -> None:
    done = _run(command, "--help")
    assert done.returncode == 0
    assert "Usage: jaxrank" in done.stdout


def test_the_whole_road(ranker_saved_model: Path, tmp_path: Path) -> None:
    """Recorded examples, convert, compile, inspect; each report has its figures."""
    requests = {
        0: models.ranker_request(1, 1),
        1: models.ranker_request(7, 2),
        2: models.ranker_request(200, 3),
    }
    arrays = {f"{i}/{k}": v for i, r in requests.items() for k, v in models.as_npz(r).items()}
    np.savez(tmp_path / "examples.npz", **arrays)
    bundle = tmp_path / "models" / "ranker" / "1"
    done = _run("convert", ranker_saved_model, "-o", bundle, "--examples", tmp_path / "examples.npz")
    assert done.returncode == 0, done.stderr
    for words in (
        "Where each op went",
        "host",
        "dense",
        "folded",
        "Certificate",
        "click",
        "top-10",
        "200",
        str(bundle),
    ):
        assert words in done.stdout.replace("\n", "")
    assert "I0000" not in done.stderr and "Traceback" not in done.stderr
    done = _run("compile", bundle, "--target", "cpu")
    assert done.returncode == 0, done.stderr
    done = _run("inspect", bundle, "--ops")
    assert done.returncode == 0
    for words in (
        "user_city",
        "request",
        "candidate",
        "item_embedding",
        "vocabulary",
        "TensorFlow graph",
        "saved",
        "cpu",
    ):
        assert words in done.stdout


def _bad_examples(path: Path, change: str) -> Path:
    request = models.as_npz(models.ranker_request(3, 1))
    if change == "missing":
        del request["item_id"]
    elif change == "dtype":
        request["item_id"] = request["item_id"].astype(np.int32)
    elif change == "shape":
        request["item_tags"] = request["item_tags"][:, :1]
    elif change == "ragged":
        request["item_price"] = request["item_price"][:2]
    elif change == "two users":
        request["user_city"] = np.repeat(request["user_city"], 3)
    np.savez(path, **({f"0/{k}": v for k, v in request.items()} if change != "empty" else {}))
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("missing", "disagree on: item_id"),
        ("dtype", "item_id is int32, the signature says int64"),
        ("shape", "item_tags has shape (3, 1)"),
        ("ragged", "every candidate input needs the same number of rows"),
        ("two users", "user_city has 3 rows"),
        ("empty", "has no requests"),
    ],
)
def test_examples_that_do_not_fit(ranker_saved_model: Path, tmp_path: Path, change: str, words: str) -> None:
    examples = _bad_examples(tmp_path / "examples.npz", change)
    done = _run("convert", ranker_saved_model, "-o", tmp_path / "b", "--examples", examples)
    assert done.returncode == 2
    assert words in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["examples.npz"]


def test_errors_are_messages_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "not_a_model").mkdir()
    done = _run("convert", tmp_path / "not_a_model", "-o", tmp_path / "b")
    assert done.returncode == 2
    assert "is not a TensorFlow SavedModel: it has no saved_model.pb" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["not_a_model"]


def test_unknown_target(ranker_bundle: Path) -> None:
    done = _run("compile", ranker_bundle, "--target", "tpu")
    assert done.returncode == 2
    assert "there is no target 'tpu'; targets are: cpu, cuda:sm_75" in done.stderr
    files.verify(ranker_bundle)


def test_inspect_names_a_damaged_file(ranker_bundle: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(ranker_bundle, tmp_path / "b")
    (tmp_path / "b" / files.MODEL).write_text("")
    done = _run("inspect", tmp_path / "b")
    assert done.returncode == 1
    assert "model.py is damaged" in done.stderr


def test_results_have_the_agreed_form(tmp_path: Path) -> None:
    from bench.results import Figure, NotMeasured, write_results

    figure = Figure(name="a", value=1.0, unit="s")
    write_results(tmp_path / "r.json", "suite", "command", [figure], [NotMeasured(name="b", why="no GPU")])
    document = json.loads((tmp_path / "r.json").read_text())
    assert set(document) == {
        "suite", "command", "commit", "date", "machine", "versions", "figures", "not_measured",
    }  # fmt: skip
    assert set(document["figures"][0]) == {"name", "value", "unit", "lo", "hi", "runs", "note"}
