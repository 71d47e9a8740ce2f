"""Versions that come, go and are damaged while the server runs."""

import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from jaxrank import bundle as files
from jaxrank.errors import BundleError
from serving.errors import ModelNotFoundError, ModelUnavailableError
from serving.lifecycle import LifecycleOptions
from serving.model import Model
from serving.repository import ModelRepository
from serving.versions import Statuses
from tests import models

REQUEST = models.ranker_request(3, 0)


@pytest.fixture
def models_dir(ranker_bundle: Path, tmp_path: Path) -> Path:
    shutil.copytree(ranker_bundle, tmp_path / "ranker" / "1")
    return tmp_path


@pytest.fixture
def repository(models_dir: Path) -> ModelRepository:
    repository = ModelRepository(models_dir)
    repository.scan()
    return repository


def _eventually(condition: Callable[[], bool]) -> bool:
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_the_highest_version_is_served(
    repository: ModelRepository, models_dir: Path, ranker_bundle: Path
) -> None:
    shutil.copytree(ranker_bundle, models_dir / "ranker" / "12")
    shutil.copytree(ranker_bundle, models_dir / "ranker" / "9")
    repository.scan()
    assert repository.loaded() == {"ranker": 12}
    with repository.lend("ranker") as (model, version):
        assert version == 12
        assert set(model.predict(REQUEST)) == {"click", "watch"}
    with (
        pytest.raises(ModelNotFoundError, match="no version 9; versions 1, 12 are served"),
        repository.lend("ranker", 9),
    ):
        pass


def test_a_flipped_bit_keeps_the_previous_version(
    repository: ModelRepository, models_dir: Path, ranker_bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Every file in turn: the log names it, and version 1 still answers."""
    manifest = files.read_manifest(ranker_bundle)
    for number, name in enumerate(sorted(manifest.files), start=2):
        version = models_dir / "ranker" / str(number)
        shutil.copytree(ranker_bundle, version)
        data = bytearray((version / name).read_bytes())
        data[len(data) // 2] ^= 1
        (version / name).write_bytes(data)
        with caplog.at_level(logging.ERROR):
            caplog.clear()
            repository.scan()
        assert name in caplog.text and "version 1 keeps serving" in caplog.text
        assert repository.loaded() == {"ranker": 1}
        shutil.rmtree(version)
    with repository.lend("ranker") as (model, _):
        assert set(model.predict(REQUEST)) == {"click", "watch"}


def test_a_damaged_manifest(models_dir: Path, ranker_bundle: Path, repository: ModelRepository) -> None:
    version = models_dir / "ranker" / "2"
    shutil.copytree(ranker_bundle, version)
    text = (version / files.MANIFEST).read_bytes()
    for broken in (
        text[: len(text) // 2],
        b"[]",
        re.sub(rb'"schema_version": \d+', b'"schema_version": 99', text, count=1),
    ):
        (version / files.MANIFEST).write_bytes(broken)
        repository.scan()
        assert repository.loaded() == {"ranker": 1}


def test_a_repaired_version_is_tried_again(
    models_dir: Path, ranker_bundle: Path, repository: ModelRepository
) -> None:
    version = models_dir / "ranker" / "2"
    shutil.copytree(ranker_bundle, version)
    (version / files.HOST_PROGRAM).write_bytes(b"{}")
    repository.scan()
    assert repository.loaded() == {"ranker": 1}
    shutil.rmtree(version)
    repository.scan()
    shutil.copytree(ranker_bundle, version)
    repository.scan()
    assert repository.loaded() == {"ranker": 2}


def test_a_version_whose_files_are_gone_answers_until_another_does(
    models_dir: Path, ranker_bundle: Path, repository: ModelRepository
) -> None:
    version = models_dir / "ranker" / "2"
    shutil.copytree(ranker_bundle, version)
    (version / files.HOST_PROGRAM).write_bytes(b"{}")
    shutil.rmtree(models_dir / "ranker" / "1")
    repository.scan()
    with repository.lend("ranker") as (model, number):
        assert number == 1 and set(model.predict(REQUEST)) == {"click", "watch"}
    assert repository.memory("ranker").keys() == {1}
    shutil.copytree(ranker_bundle, models_dir / "ranker" / "3")
    repository.scan()
    assert repository.served_versions("ranker") == [3]


@pytest.mark.parametrize("late", [files.HOST_PROGRAM, files.WEIGHTS])
def test_a_copy_that_is_not_finished(
    models_dir: Path, ranker_bundle: Path, repository: ModelRepository, late: str
) -> None:
    """`cp -r` may write the manifest before other files: the version is tried again when they come."""
    version = models_dir / "ranker" / "2"
    shutil.copytree(ranker_bundle, version, ignore=shutil.ignore_patterns(late))
    repository.scan()
    assert repository.loaded() == {"ranker": 1}
    shutil.copy(ranker_bundle / late, version / late)
    repository.scan()
    assert repository.loaded() == {"ranker": 2}


def test_a_failed_version_is_tried_once(
    models_dir: Path, ranker_bundle: Path, repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(ranker_bundle, models_dir / "ranker" / "2")
    (models_dir / "ranker" / "2" / files.HOST_PROGRAM).write_bytes(b"{}")
    for _ in range(3):
        repository.scan()
    assert caplog.text.count("does not load") == 1


def test_damage_in_place_does_not_bring_back_an_older_version(
    models_dir: Path, ranker_bundle: Path, repository: ModelRepository
) -> None:
    shutil.copytree(ranker_bundle, models_dir / "ranker" / "3")
    repository.scan()
    (models_dir / "ranker" / "3" / files.MANIFEST).write_bytes(b"{")
    for _ in range(2):
        repository.scan()
    assert repository.loaded() == {"ranker": 3}


def test_an_error_nobody_thought_of_stops_one_model_only(
    models_dir: Path, ranker_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(ranker_bundle, models_dir / "aaa" / "1")
    load = Model.load

    def fail_first(path: Path, **options: object) -> Model:
        if "aaa" in path.parts:
            raise ValueError("surprise")
        return load(path, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Model, "load", fail_first)
    repository = ModelRepository(models_dir)
    repository.scan()
    assert repository.loaded() == {"ranker": 1}
    assert "ValueError('surprise')" in caplog.text


def test_a_models_directory_that_goes_away(
    models_dir: Path, repository: ModelRepository, caplog: pytest.LogCaptureFixture
) -> None:
    """One line in the log, not one for each scan; what is loaded serves on."""
    away = models_dir.with_name("away")
    models_dir.rename(away)
    for _ in range(3):
        repository.scan()
    assert caplog.text.count("cannot read") == 1
    assert repository.loaded() == {"ranker": 1}
    away.rename(models_dir)
    with caplog.at_level(logging.INFO):
        repository.scan()
    assert "can be read again" in caplog.text


def test_before_the_first_scan(models_dir: Path) -> None:
    with (
        pytest.raises(ModelUnavailableError, match="the server is starting"),
        ModelRepository(models_dir).lend("ranker"),
    ):
        pass


def test_only_a_broken_version(tmp_path: Path, ranker_bundle: Path) -> None:
    shutil.copytree(ranker_bundle, tmp_path / "ranker" / "1")
    (tmp_path / "ranker" / "1" / files.HOST_PROGRAM).write_bytes(b"{}")
    repository = ModelRepository(tmp_path)
    repository.scan()
    with (
        pytest.raises(ModelUnavailableError, match=r"no version that loads \(tried \[1\]\)"),
        repository.lend("ranker"),
    ):
        pass


def test_a_removed_model_is_unloaded(repository: ModelRepository, models_dir: Path) -> None:
    shutil.rmtree(models_dir / "ranker")
    repository.scan()
    assert repository.loaded() == {}
    with pytest.raises(ModelNotFoundError, match="models: none"), repository.lend("ranker"):
        pass


def test_a_lent_version_stays_open_until_it_is_back(models_dir: Path, ranker_bundle: Path) -> None:
    repository = ModelRepository(models_dir, lifecycle=LifecycleOptions(rollback_requests=0))
    repository.scan()
    with repository.lend("ranker") as (old, version):
        shutil.copytree(ranker_bundle, models_dir / "ranker" / "2")
        repository.scan()
        assert repository.loaded() == {"ranker": 2}
        assert version == 1
        assert set(old.predict(REQUEST)) == {"click", "watch"}
    assert _eventually(lambda: repository.statuses("ranker", 1)[0].state == "END")
    with pytest.raises(RuntimeError):
        old.predict(REQUEST)


def test_a_request_does_not_wait_for_the_end_of_its_version(
    models_dir: Path, ranker_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = ModelRepository(models_dir, lifecycle=LifecycleOptions(rollback_requests=0))
    repository.scan()
    close, may_close = Model.close, threading.Event()

    def slowly(model: Model) -> None:
        assert may_close.wait(60)
        close(model)

    monkeypatch.setattr(Model, "close", slowly)
    with repository.lend("ranker"):
        shutil.copytree(ranker_bundle, models_dir / "ranker" / "2")
        repository.scan()
    assert repository.statuses("ranker", 1)[0].state == "UNLOADING"
    may_close.set()
    assert _eventually(lambda: repository.statuses("ranker", 1)[0].state == "END")
    repository.close()


def test_watching(models_dir: Path, ranker_bundle: Path, repository: ModelRepository) -> None:
    repository.watch(0.05)
    shutil.copytree(ranker_bundle, models_dir / ".half" / "1")
    shutil.move(models_dir / ".half", models_dir / "other")
    assert _eventually(lambda: repository.loaded() == {"other": 1, "ranker": 1})
    repository.close()
    assert repository.loaded() == {}


def test_odd_directories_are_ignored(models_dir: Path, ranker_bundle: Path) -> None:
    for name in ("ranker/latest", "ranker/.2", "ranker/-3", f"ranker/{2**63}", "ranker/٣", ".hidden/1"):
        shutil.copytree(ranker_bundle, models_dir / name)
    (models_dir / "notes.txt").write_text("")
    (models_dir / "empty").mkdir()
    repository = ModelRepository(models_dir)
    repository.scan()
    assert repository.loaded() == {"ranker": 1}


def test_links_that_lead_nowhere_hide_nothing(models_dir: Path, ranker_bundle: Path) -> None:
    """Neither another name of a version, nor one among its files."""
    for name in ("001", "1/notes"):
        (models_dir / "ranker" / name).symlink_to(models_dir / "nowhere")
    (models_dir / "ranker" / "0001").mkdir()
    repository = ModelRepository(models_dir)
    repository.scan()
    assert repository.loaded() == {"ranker": 1}
    repository.close()


def test_what_ended_is_forgotten_some_day() -> None:
    statuses = Statuses()
    for number in range(300):
        statuses.set(f"model {number}", 1, "AVAILABLE")
        statuses.set(f"model {number}", 2, "LOADING", "why")
        statuses.gone(f"model {number}", {1})
        if number != 7:
            statuses.set(f"model {number}", 1, "END")
    for version in range(3, 103):
        statuses.set("model 299", version, "END")
    names = statuses.names()
    assert len(names) == 257 and "model 7" in names and "model 43" not in names and "model 299" in names
    assert len(statuses.of("model 299")) == 32
    assert [status.state for status in statuses.find("model 7", None)] == ["END", "AVAILABLE"]


def test_a_version_that_fails_and_goes_away_ends(models_dir: Path, ranker_bundle: Path) -> None:
    (models_dir / "ranker" / "2").mkdir()
    shutil.copy(ranker_bundle / files.MANIFEST, models_dir / "ranker" / "2")
    repository = ModelRepository(models_dir)
    repository.scan()
    assert repository.statuses("ranker", 2)[0].state == "LOADING"
    shutil.rmtree(models_dir / "ranker" / "2")
    repository.scan()
    status = repository.statuses("ranker", 2)[0]
    assert status.state == "END" and "is not complete" in status.error
    repository.close()


def test_a_target_that_was_not_compiled(ranker_bundle: Path) -> None:
    with pytest.raises(
        BundleError,
        match="not compiled for 'cuda:sm_86' .it has: cpu with iree, cuda:sm_80 with iree, vulkan",
    ):
        Model.load(ranker_bundle, target="cuda:sm_86")


def test_every_bit_of_the_manifest_counts(ranker_bundle: Path, tmp_path: Path) -> None:
    """A default that is another number still parses; the digest tells."""
    shutil.copytree(ranker_bundle, tmp_path / "b")
    path = tmp_path / "b" / files.MANIFEST
    text = path.read_bytes()
    for old, new in (
        (b'"max_candidates": 5000', b'"max_candidates": 9000'),
        (b'"default_value": ', b'"default_value": 7'),
    ):
        assert old in text
        path.write_bytes(text.replace(old, new, 1))
        with pytest.raises(BundleError, match=r"manifest.json is damaged"):
            Model.load(tmp_path / "b")


def test_a_file_without_a_digest_is_not_opened(ranker_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(ranker_bundle, tmp_path / "b")
    manifest = files.read_manifest(tmp_path / "b")
    tables = tuple(msgspec.structs.replace(t, file="../outside.npy") for t in manifest.tables)
    files.write_manifest(tmp_path / "b", msgspec.structs.replace(manifest, tables=tables))
    with pytest.raises(BundleError, match="refers to ../outside.npy without a sha256"):
        Model.load(tmp_path / "b")


def test_a_module_for_another_cpu_is_refused(ranker_bundle: Path, tmp_path: Path) -> None:
    """Running it would end the process with an illegal instruction."""
    shutil.copytree(ranker_bundle, tmp_path / "b")
    manifest = files.read_manifest(tmp_path / "b")
    targets = tuple(
        msgspec.structs.replace(t, instruction_sets=(*t.instruction_sets, "avx1024"))
        for t in manifest.targets
    )
    files.write_manifest(tmp_path / "b", msgspec.structs.replace(manifest, targets=targets))
    with pytest.raises(BundleError, match="compiled for a CPU with avx1024"):
        Model.load(tmp_path / "b")


def test_a_manifest_cannot_point_outside(ranker_bundle: Path, tmp_path: Path) -> None:
    shutil.copytree(ranker_bundle, tmp_path / "b")
    manifest = files.read_manifest(tmp_path / "b")
    outside = msgspec.structs.replace(manifest, files={**manifest.files, "../../etc/passwd": "0"})
    outside = msgspec.structs.replace(outside, digest=files._digest(outside))
    files.write_json(tmp_path / "b" / files.MANIFEST, outside)
    with pytest.raises(BundleError, match="outside of the bundle"):
        Model.load(tmp_path / "b")
