"""The command line as a user runs it: help that teaches, reports, exit codes and messages."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from typer.testing import CliRunner

from converters.report import read_report
from jaxrank import bundle as files
from jaxrank.cli import app
from jaxrank.cli.convert import parse_bytes
from jaxrank.cli.progress import stages
from jaxrank.progress import Silent
from tests import models
from tests.command_line import jaxrank

JAXRANK = str(Path(sys.executable).parent / "jaxrank")


def _run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [JAXRANK, *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": "250"}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)


@pytest.mark.parametrize("command", ["convert", "compile", "inspect", "explain", "serve"])
def test_help(command: str) -> None:
    done = jaxrank(command, "--help")
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
        "top-1 ",
        "top-10",
        "top-50",
        "inverted pairs",
        "200",
        "the signature declares one row",
        "ops were folded away",
        str(bundle / "report.html"),
        f"next: jaxrank compile {bundle}",
    ):
        assert words in done.stdout.replace("\n", "")
    assert "I0000" not in done.stderr and "Traceback" not in done.stderr
    assert read_report(bundle).certificate == files.verify(bundle).certificate
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
        "State from request to candidate tower",
        "cpu",
    ):
        assert words in done.stdout


def test_help_of_convert_teaches() -> None:
    done = jaxrank("convert", "--help")
    for words in (
        "--dry-run", "--report", "--inputs", "--outputs", "--rename", "--op-plugin", "--debug-numerics",
        "--device-table-limit", "64MiB", "Examples:",
        "jaxrank convert saved_model --dry-run --report coverage.html",
        "jaxrank convert frozen.pb -o models/ranker/1 --inputs user:0,item:0 --outputs scores:0",
    ):  # fmt: skip
        assert words in done.stdout


def test_dry_run(ranker_saved_model: Path, tmp_path: Path) -> None:
    """Coverage and scopes, and nothing on disk but the report that was asked for."""
    done = jaxrank("convert", ranker_saved_model, "--dry-run", "-o", tmp_path / "b")
    assert done.returncode == 0, done.stderr
    for words in (
        "Where each op went",
        "dense",
        "user_city",
        "the signature declares one row",
        "have a place",
    ):
        assert words in done.stdout
    assert "unsupported" not in done.stdout
    assert list(tmp_path.iterdir()) == []
    done = jaxrank("convert", ranker_saved_model, "--dry-run", "--report", tmp_path / "r.json")
    assert done.returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["r.json"]
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["certificate"] is None and report["unsupported"] == []
    assert report["counts"]["dense"]["MatMul"] == 5


def test_dry_run_with_unsupported_ops(tmp_path: Path) -> None:
    """All of them in the table, the report and the exit code."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, "x")])
    def rank(x: tf.Tensor) -> dict[str, tf.Tensor]:
        return {"y": tf.math.igamma(x, x + 1.0) + tf.math.zeta(x + 2.0, x)}

    module = tf.Module()
    module.rank = rank
    signatures = module.rank.get_concrete_function()
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=signatures)
    done = jaxrank("convert", tmp_path / "m", "--dry-run", "--report", tmp_path / "r.html")
    assert done.returncode == 2
    for words in ("2 unsupported ops", "Igamma", "Zeta", "have no place; no bundle was written"):
        assert words in done.stdout
    page = (tmp_path / "r.html").read_text()
    assert "Igamma" in page and "Zeta" in page
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "r.html"]


def test_report_beside_the_bundle(ranker_saved_model: Path, tmp_path: Path) -> None:
    """And examples as TensorFlow writes them."""
    with tf.io.TFRecordWriter(str(tmp_path / "e.tfrecord")) as writer:
        for rows in (1, 30):
            feature = {n: _feature(v) for n, v in models.ranker_request(rows, rows).items()}
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())
    bundle, page = tmp_path / "b", tmp_path / "r.html"
    done = jaxrank(
        "convert", ranker_saved_model, "-o", bundle, "--report", page, "--examples", tmp_path / "e.tfrecord",
        "--device-table-limit", "1KiB",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == (bundle / "report.html").read_bytes()
    assert {o.rows for o in files.read_manifest(bundle).certificate.outputs} == {1, 7, 30, 200, 5000}


def _feature(value: np.ndarray) -> tf.train.Feature:
    flat = value.ravel()
    if value.dtype == object:
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=flat.tolist()))
    if value.dtype.kind == "f":
        return tf.train.Feature(float_list=tf.train.FloatList(value=flat))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=flat))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["-o", "b", "--device-table-limit", "64 mebi"], "'64 mebi' is not a size"),
        (["-o", "b", "--rename", "a"], "'a' is not old=new"),
        (["-o", "b", "--rename", "a=b", "--rename", "a=c"], "'a' is renamed twice"),
        (["-o", "b", "--rename", "a=c", "--rename", "b=c"], "two names become the same"),
        (["-o", "b", "--report", "r.txt"], "r.txt: a report is written as .html or .json"),
        ([], "give the bundle to write with --output, or --dry-run"),
        (["--dry-run", "--debug-numerics"], "a dry run compares no scores"),
    ],
)
def test_options_that_make_no_sense(ranker_saved_model: Path, options: list[str], words: str) -> None:
    done = jaxrank("convert", ranker_saved_model, *options)
    assert done.returncode == 2
    assert words in done.stderr.replace("│\n│", "")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64MiB", 64 << 20), ("1.5 GB", 1_500_000_000), ("2kib", 2048), ("10 B", 10)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


def test_progress_has_a_bar_within_a_stage(capsys: pytest.CaptureFixture[str]) -> None:
    with stages() as progress:
        progress("copying tables")
        with progress.bar("items", 10) as advance:
            advance(4)
            advance(6)
        progress("next")
    printed = capsys.readouterr().err
    assert "copying tables" in printed and "next" in printed
    with pytest.raises(ValueError), stages() as progress, progress.bar("items", 10):
        raise ValueError
    assert Silent().bar("x", 1).__enter__()(1) is None


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
    done = jaxrank("convert", ranker_saved_model, "-o", tmp_path / "b", "--examples", examples)
    assert done.returncode == 2
    assert words in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["examples.npz"]


def test_errors_are_messages_and_leave_nothing(tmp_path: Path) -> None:
    (tmp_path / "not_a_model").mkdir()
    done = jaxrank("convert", tmp_path / "not_a_model", "-o", tmp_path / "b")
    assert done.returncode == 2
    assert "is not a TensorFlow model: it has no saved_model.pb" in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["not_a_model"]


def test_unknown_target(ranker_bundle: Path) -> None:
    done = jaxrank("compile", ranker_bundle, "--target", "tpu")
    assert done.returncode == 2
    assert (
        "there is no target 'tpu'; targets are: cpu, cpu:x86-64-v2, cpu:x86-64-v3, cpu:x86-64-v4, cuda:sm_75"
        in done.stderr
    )
    files.verify(ranker_bundle)


@pytest.mark.parametrize("command", [["inspect"], ["inspect", "--ops"], ["explain", "--no-profile"]])
def test_a_pipe_gets_every_figure_whole(command: list[str], ranker_bundle: Path) -> None:
    """Whatever the width that the environment names: no terminal shows it."""
    arguments = [*command[:1], str(ranker_bundle), *command[1:]]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "80"})
    assert result.exit_code == 0, result.output
    assert "…" not in result.stdout
    if command[0] == "inspect":
        certificate = files.read_manifest(ranker_bundle).certificate
        rows = [line.split() for line in result.stdout.splitlines() if line.count("│") == 10]
        shown = {" ".join(row) for row in rows}
        for o in certificate.outputs:
            figures = (
                f"{o.output} │ {o.rows:,} │ {o.max_abs_error:.1e} │ {o.max_rel_error:.1e} │ {o.spearman:.6f}"
            )
            assert any(figures in row for row in shown)


def _no_directory(bundle: Path) -> None:
    shutil.rmtree(bundle)


def _a_file(bundle: Path) -> None:
    shutil.rmtree(bundle)
    bundle.write_text("")


def _no_manifest(bundle: Path) -> None:
    (bundle / files.MANIFEST).unlink()


def _manifest_is_a_directory(bundle: Path) -> None:
    (bundle / files.MANIFEST).unlink()
    (bundle / files.MANIFEST).mkdir()


def _manifest_cut(bundle: Path) -> None:
    (bundle / files.MANIFEST).write_bytes((bundle / files.MANIFEST).read_bytes()[:100])


def _manifest_edited(bundle: Path) -> None:
    text = (bundle / files.MANIFEST).read_text()
    (bundle / files.MANIFEST).write_text(text.replace('"max_candidates": 5000', '"max_candidates": 5001'))


def _missing_file(bundle: Path) -> None:
    (bundle / files.PARAMS).unlink()


def _damaged_file(bundle: Path) -> None:
    (bundle / files.MODEL).write_text("")


@pytest.mark.parametrize("command", ["compile", "inspect", "explain"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_directory, "is b a bundle written by `jaxrank convert`?"),
        (_a_file, "is b a bundle written by `jaxrank convert`?"),
        (_no_manifest, "b/manifest.json does not exist"),
        (_manifest_is_a_directory, "b/manifest.json cannot be read"),
        (_manifest_cut, "b/manifest.json is not a Manifest"),
        (_manifest_edited, "b/manifest.json is damaged"),
        (_missing_file, "b/params.safetensors is missing but listed"),
        (_damaged_file, "b/model.py is damaged"),
    ],
)
def test_a_bundle_that_is_missing_or_damaged(
    command: str,
    damage: Callable[[Path], None],
    words: str,
    ranker_bundle: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command refuses it with the same code, names the file, and changes nothing."""
    shutil.copytree(ranker_bundle, tmp_path / "b")
    damage(tmp_path / "b")
    before = sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [command, "b"])
    assert result.exit_code == 2, result.output
    assert words in result.output.replace("\n", " ")
    assert sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*")) == before


def test_results_have_the_agreed_form(tmp_path: Path) -> None:
    from bench.results import Figure, NotMeasured, write_results

    figure = Figure(name="a", value=1.0, unit="s")
    write_results(tmp_path / "r.json", "suite", "command", [figure], [NotMeasured(name="b", why="no GPU")])
    document = json.loads((tmp_path / "r.json").read_text())
    assert set(document) == {
        "suite", "command", "commit", "date", "machine", "versions", "figures", "not_measured",
    }  # fmt: skip
    assert set(document["figures"][0]) == {"name", "value", "unit", "lo", "hi", "runs", "note"}
