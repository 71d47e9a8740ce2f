"""Deltas that a model takes while it serves: every request sees one epoch of all tables."""

import logging
import os
import shutil
import threading
from pathlib import Path

import msgspec
import numpy as np
import pytest

from jaxrank import bundle as files
from jaxrank.host_program import TABLE_PREFIX, HostOperator
from serving.repository import ModelRepository
from serving.updates import deltas_of
from serving.updates.bundles import apply_to_bundle, read_deltas, write_bundle_deltas
from tests.serving.updates.conftest import KEYS, ROWS, WriteModel

IDS = {"users_ids": np.arange(ROWS), "items_ids": KEYS}
EPOCHS = 50


@pytest.fixture(scope="module")
def epochs(write_model: WriteModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`0`, the bundle at epoch 0, and `1.deltas` up to 50, each of both tables."""
    path = tmp_path_factory.mktemp("epochs")
    before = write_model(path / "0", 0)
    after: list = []
    for epoch in range(1, EPOCHS + 1):
        now = write_model(path / f"{epoch}", epoch)
        output = path / f"{epoch}.deltas"
        write_bundle_deltas(before, now, output, after=after, progress=lambda name, rows: None)
        after, before = read_deltas(output), now
    return path


@pytest.fixture
def repository(epochs: Path, tmp_path: Path) -> ModelRepository:
    shutil.copytree(epochs / "0", tmp_path / "model" / "1")
    repository = ModelRepository(tmp_path)
    repository.scan()
    return repository


def _put(tmp_path: Path, source: Path, name: str) -> None:
    """As a publisher does: a rename makes all of it visible at once."""
    directory = deltas_of(tmp_path / "model" / "1")
    directory.mkdir(exist_ok=True)
    shutil.copytree(source, directory / f".{name}")
    (directory / f".{name}").rename(directory / name)


def _epoch(repository: ModelRepository) -> float:
    with repository.lend("model") as (model, _):
        answer = model.predict(IDS)
    values = np.unique(np.concatenate([answer["users"], answer["items"]]))
    assert len(values) == 1, f"a mix of epochs: {values}"
    return values[0]


def test_requests_see_one_epoch_while_deltas_come(
    repository: ModelRepository, epochs: Path, tmp_path: Path
) -> None:
    """4 threads, 50 deltas of half of the tables' rows and more: compactions come in between."""
    done, seen, errors = threading.Event(), [set[float]() for _ in range(4)], []

    def ask(mine: set[float]) -> None:
        try:
            last = 0.0
            while not done.is_set():
                epoch = _epoch(repository)
                assert epoch >= last
                mine.add(epoch)
                last = epoch
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=ask, args=(mine,)) for mine in seen]
    for thread in threads:
        thread.start()
    try:
        for epoch in range(1, EPOCHS + 1):
            _put(tmp_path, epochs / f"{epoch}.deltas", f"{epoch:03}")
            repository.update_tables()
            assert _epoch(repository) == epoch
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert not errors
    assert len(set.union(*seen)) > 5
    assert not [p for p in deltas_of(tmp_path / "model" / "1").iterdir() if p.name.startswith(".")]
    repository.close()


def test_a_new_server_begins_where_the_deltas_lead(
    repository: ModelRepository, epochs: Path, tmp_path: Path
) -> None:
    for epoch in (2, 1, 3):  # whatever their names say
        _put(tmp_path, epochs / f"{epoch}.deltas", f"z{9 - epoch}")
    again = ModelRepository(tmp_path)
    again.scan()
    assert _epoch(again) == 3
    assert _epoch(repository) == 0
    repository.update_tables()
    assert _epoch(repository) == 3


def test_deltas_that_are_in_the_bundle_already_change_nothing(epochs: Path, tmp_path: Path) -> None:
    shutil.copytree(epochs / "0", tmp_path / "model" / "1")
    deltas = [d for epoch in (1, 2) for d in read_deltas(epochs / f"{epoch}.deltas")]
    apply_to_bundle(tmp_path / "model" / "1", deltas, progress=lambda name, count: None)
    for epoch in (1, 2, 3):
        _put(tmp_path, epochs / f"{epoch}.deltas", f"{epoch}")
    repository = ModelRepository(tmp_path)
    repository.scan()
    assert _epoch(repository) == 3


def test_a_bundle_that_took_deltas_on_the_disk_is_served_anew(
    repository: ModelRepository, epochs: Path, tmp_path: Path
) -> None:
    bundle = tmp_path / "model" / "1"
    apply_to_bundle(bundle, read_deltas(epochs / "1.deltas"), progress=lambda name, count: None)
    assert _epoch(repository) == 0
    repository.scan()
    assert _epoch(repository) == 1


def test_bad_deltas_are_refused_once_and_requests_go_on(
    repository: ModelRepository, epochs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = deltas_of(tmp_path / "model" / "1")
    _put(tmp_path, epochs / "2.deltas", "gap")
    whole = (epochs / "1.deltas" / "users.delta").read_bytes()
    (directory / "short.delta").write_bytes(whole[:-100])
    (directory / "README").write_text("not a delta")
    with caplog.at_level(logging.ERROR, "jaxrank"):
        repository.update_tables()
        repository.update_tables()
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 2
    assert "1.deltas/gap waits: " in said[0] and "from sequence 1 to 2, table 'items' is at 0" in said[0]
    assert "1.deltas/short.delta is refused: " in said[1] and "is truncated" in said[1]
    assert _epoch(repository) == 0
    (directory / "short.delta").unlink()
    _put(tmp_path, epochs / "1.deltas", "one")
    repository.update_tables()
    assert _epoch(repository) == 2


def test_a_server_that_cannot_compact_goes_on(
    repository: ModelRepository, epochs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("users", "items"):  # what is in the way cannot be replaced by a file
        (deltas_of(tmp_path / "model" / "1") / f".{name}.{os.getpid()}.compacted" / "x").mkdir(parents=True)
    for epoch in (1, 2):
        _put(tmp_path, epochs / f"{epoch}.deltas", f"{epoch}")
        repository.update_tables()
        assert _epoch(repository) == epoch
    assert len([r for r in caplog.records if "stays in memory as it is" in r.getMessage()]) == 2


def test_a_table_that_is_read_as_a_whole_takes_no_deltas(
    epochs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = tmp_path / "model" / "1"
    shutil.copytree(epochs / "0", bundle)
    program = files.read_host_program(bundle)
    whole = HostOperator(
        op="identity", name="whole", inputs=(f"{TABLE_PREFIX}users",), outputs=("whole",), scope="request"
    )
    program = msgspec.structs.replace(program, operators=(*program.operators, whole))
    files.write_json(bundle / files.HOST_PROGRAM, program)
    files.write_manifest(bundle, files.read_manifest(bundle))
    _put(tmp_path, epochs / "1.deltas", "one")
    repository = ModelRepository(tmp_path)
    repository.scan()
    assert _epoch(repository) == 0
    assert "the host program reads it as a whole" in caplog.text
