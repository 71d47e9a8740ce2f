"""`jaxrank explain` as a user runs it."""

import json
import shutil
from pathlib import Path

import pytest
import tensorflow as tf

from converters.convert import convert
from tests.command_line import Done, jaxrank


def _run(*arguments: object) -> Done:
    return jaxrank("explain", *arguments, columns=200)


def test_help_teaches() -> None:
    done = _run("--help")
    assert done.returncode == 0
    for words in ("--plot", "--json", "--profile-candidates", "--runs", "everything for every candidate"):
        assert words in " ".join(done.stdout.replace("│", " ").split())


def test_tables_picture_and_json(ranker_bundle: Path, tmp_path: Path) -> None:
    picture, figures = tmp_path / "p.svg", tmp_path / "f.json"
    done = _run(
        ranker_bundle, "--profile-candidates", "64", "--runs", 3, "--plot", picture, "--json", figures
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "Work of one request", "5,000 candidates", "times fewer FLOPs", "candidate tower",
        "hoist_dots", "Each Flax module's share", "dispatches of candidate_tower", "state between them",
        "Time of candidate_tower, 64 candidates", "dot_general", "medians of 3 runs",
    ):  # fmt: skip
        assert words in done.stdout
    assert picture.read_text().startswith("<?xml")
    assert [p["candidates"] for p in json.loads(figures.read_text())["profiles"]] == [1, 64]


def test_a_bundle_that_is_not_compiled(ranker_saved_model: Path, tmp_path: Path) -> None:
    convert(ranker_saved_model, tmp_path / "b")
    done = _run(tmp_path / "b", "--candidates", "10,100")
    assert done.returncode == 0, done.stderr
    assert "hoist_dots" in done.stdout and "100 candidates" in done.stdout
    words = " ".join(done.stdout.split())
    assert (
        f"time of each dispatch: not measured: the bundle is not compiled; run jaxrank compile {tmp_path}"
        in (words.replace("/ ", "/"))
    )


def test_a_bundle_without_a_dense_half(tmp_path: Path) -> None:
    """One hash of an id: the host program makes the only output."""

    class Bucket(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="item_id")])
        def serve(self, item_id: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"bucket": tf.strings.to_hash_bucket_fast(item_id, 100)}

    module = Bucket()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures={"serving_default": module.serve})
    convert(tmp_path / "m", tmp_path / "b")
    done = _run(tmp_path / "b", "--plot", tmp_path / "p.svg")
    assert done.returncode == 0, done.stderr
    assert "there is no dense half" in done.stdout
    assert "no picture" in done.stdout
    assert not (tmp_path / "p.svg").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(["--plot", "p.jpeg"], "must end in .svg, .png, .pdf", id="picture"),
        pytest.param(["--json", "none/f.json"], "there is no directory none", id="directory"),
        pytest.param(["--json", "."], "it is a directory; give --json a file", id="a directory"),
        pytest.param(
            ["--json", "/proc/f.json", "--no-profile"], "/proc/f.json cannot be written", id="unwritable"
        ),
        pytest.param(["--candidates", "many"], "is not a list of numbers", id="numbers"),
        pytest.param(["--candidates", "9000"], "outside of what the bundle takes, 1 to 5,000", id="bound"),
        pytest.param(["--target", "cuda:sm_75"], "it has: cpu, cuda:sm_80, vulkan", id="target"),
    ],
)
def test_what_is_refused(ranker_bundle: Path, arguments: list[str], message: str) -> None:
    done = _run(ranker_bundle, *arguments)
    assert done.returncode == 2
    assert message in " ".join(done.stderr.replace("│", " ").split())
    assert "Traceback" not in done.stderr


def test_a_damaged_bundle(ranker_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(ranker_bundle, tmp_path / "b")
    (tmp_path / "b" / "weights.irpa").write_bytes(b"x")
    done = _run(tmp_path / "b")
    assert done.returncode == 2 and "weights.irpa is damaged" in done.stderr
