"""Compiling a bundle: what it writes, what it refuses, and that a failure changes nothing."""

import hashlib
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from converters.convert import convert
from jaxrank import bundle as files
from jaxrank.certificate import CertificateError, Example, load_examples, save_examples
from mlir_pipeline.compile import compile_bundle
from mlir_pipeline.errors import CompileError
from tests import compiled
from tests.shared import killed


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Bytes that were hashed from now on, by the file's name."""
    count: Counter[str] = Counter()
    file_digest = hashlib.file_digest

    def counted(file: Any, algorithm: str) -> Any:
        digest = file_digest(file, algorithm)
        count[Path(file.name).name] += file.tell()
        return digest

    monkeypatch.setattr(hashlib, "file_digest", counted)
    return count


def _unchanged(bundle: Path) -> None:
    files.verify(bundle)
    assert [p.name for p in bundle.parent.iterdir()] == [bundle.name]


def test_what_a_compiled_bundle_holds(ranker_bundle: Path) -> None:
    manifest = files.verify(ranker_bundle)
    targets = {t.name: t for t in manifest.targets}
    assert set(targets) == {"cpu", "cuda:sm_80", "vulkan"}
    assert targets["cpu"].certificate is not None and targets["cpu"].certificate.max_abs_error <= 1e-5
    assert targets["cuda:sm_80"].certificate is None  # no such device here
    assert all((ranker_bundle / t.module).stat().st_size for t in targets.values())
    assert manifest.flops is not None
    # The request side is computed once, so each candidate costs less than in TensorFlow's graph.
    assert 0 < manifest.flops.candidate < manifest.flops.source_per_candidate
    assert manifest.flops.request > 0
    names = [s.name for s in manifest.state]
    assert all(names) and len(names) == len(set(names)) and any("/" in name for name in names)
    assert (
        b"PTX" in (ranker_bundle / targets["cuda:sm_80"].module).read_bytes()
        or b".version" in (ranker_bundle / targets["cuda:sm_80"].module).read_bytes()
    )


def test_compiling_again_gives_the_same_bytes(
    ranker_bundle: Path, bundle: Path, hashed: Counter[str]
) -> None:
    """And neither copies nor hashes again what it does not change: tables may have many GiB."""
    manifest = files.read_manifest(bundle)
    large = [*(t.file for t in manifest.tables), *files.constant_files(manifest)]
    inodes = {name: (bundle / name).stat().st_ino for name in large}
    with compiled.replaced():
        compile_bundle(bundle, ["cpu"])
    assert files.read_manifest(bundle).files == files.read_manifest(ranker_bundle).files
    assert {name: (bundle / name).stat().st_ino for name in large} == inodes
    for name in large:
        # Once, when the bundle was verified.
        assert hashed[Path(name).name] == (bundle / name).stat().st_size, name


def test_unknown_target_lists_those_there_are(bundle: Path) -> None:
    for name in ("tpu", "cpu:x86-64-v5", "cpu:", "cuda:sm_90", "cuda", "vulkan:9"):
        with pytest.raises(
            CompileError, match=f"no target '{name}'; targets are: cpu, cpu:x86-64-v2.*vulkan"
        ):
            compile_bundle(bundle, ["cpu", name])
    _unchanged(bundle)


@pytest.mark.parametrize("option", [{"tune": True}, {"batch_tile": 16}, {"data_tiling": False}])
def test_options_of_iree_without_iree_are_refused(bundle: Path, option: dict[str, Any]) -> None:
    name = f"--{next(iter(option)).replace('_', '-')}"
    with pytest.raises(CompileError, match=f"{name} is about the programs of the engine iree.*are: xla;"):
        compile_bundle(bundle, ["cpu"], engines=["xla"], **option)


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_command_that_is_ended_leaves_the_bundle_as_it_was(
    bundle: Path, sent: signal.Signals, code: int
) -> None:
    command = [Path(sys.executable).with_name("jaxrank"), "compile", bundle]
    with killed(subprocess.Popen(command, stderr=subprocess.PIPE)) as process:
        while not [p for p in bundle.parent.iterdir() if ".staging." in p.name]:
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(sent)
        assert process.wait(60) == code
    _unchanged(bundle)


def test_tiles_of_odd_sizes_are_refused(bundle: Path) -> None:
    with pytest.raises(CompileError, match="--batch-tile 3 is not a multiple of 8"):
        compile_bundle(bundle, ["cpu"], batch_tile=3)
    _unchanged(bundle)


def test_a_device_is_not_tuned_and_says_so(bundle: Path) -> None:
    target = compile_bundle(bundle, ["cuda:sm_80"], tune=True).target("cuda:sm_80")
    assert target is not None and target.notes == ("not tuned: the device is not measured here",)


def test_a_damaged_bundle_is_not_compiled(bundle: Path) -> None:
    (bundle / files.PARAMS).write_bytes(b"x")
    with pytest.raises(files.BundleError, match="params.safetensors is damaged"):
        compile_bundle(bundle, ["cpu"])


def test_scores_that_move_fail_the_compilation(bundle: Path) -> None:
    """Recorded outputs that are off by 1e-3 stand for a module that is."""
    examples = load_examples(bundle)
    moved = [Example(e.features, {k: v + 1e-3 for k, v in e.outputs.items()}) for e in examples]
    save_examples(bundle, moved)
    files.write_manifest(bundle, files.read_manifest(bundle))
    before = files.read_manifest(bundle)
    with pytest.raises(CertificateError, match="cpu: output 'click' differs from TensorFlow's by 1.00e-03"):
        compile_bundle(bundle, ["cpu"])
    assert files.read_manifest(bundle) == before
    _unchanged(bundle)


def test_the_largest_number_of_candidates_can_change(bundle: Path) -> None:
    assert compile_bundle(bundle, ["cpu"], max_candidates=9).max_candidates == 9


def test_a_model_without_request_inputs(ranker_saved_model: Path, tmp_path: Path) -> None:
    """Every input one row for each candidate: one tower, no state."""
    from tests import models

    models.save_ranker(tmp_path / "rows", user_rows=None)
    convert(tmp_path / "rows", tmp_path / "b")
    manifest = compile_bundle(tmp_path / "b", ["cpu"])
    assert manifest.state == ()
    assert manifest.targets[0].certificate is not None
