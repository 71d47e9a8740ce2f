"""What becomes of request sides when tables, versions or time change, on a model whose answers tell the epoch
of the tables that they were made from."""

import shutil
import threading
import time
from pathlib import Path
from queue import SimpleQueue

import grpc
import numpy as np
import pytest

from serving.client import PredictClient
from serving.errors import StateNotFoundError
from serving.lifecycle import LifecycleOptions
from serving.model import Model
from serving.repository import ModelRepository
from serving.state import StateCache
from serving.tiers.budget import LookupBudget
from serving.tiers.config import load_config
from serving.tiers.placement import Tiers
from serving.tiers.rocksdb import RocksDBTable
from serving.tiers.transfer import push, record_of
from serving.updates import deltas_of
from serving.updates.bundles import read_deltas, write_bundle_deltas
from tests.serving.conftest import StartServer
from tests.serving.updates.conftest import KEYS, ROWS, write_epoch

USER = {"users_ids": np.array([7])}
ITEMS = {"items_ids": KEYS[:30]}
EPOCHS = 6


@pytest.fixture(scope="module")
def epochs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`0` and `1`, the bundle at epoch 0 and 1, and `deltas/1` up to 6."""
    path = tmp_path_factory.mktemp("epochs")
    (path / "deltas").mkdir()
    before, after = write_epoch(path / "0", 0, "request"), []
    for epoch in range(1, EPOCHS + 1):
        now = write_epoch(path / f"{epoch}", epoch, "request")
        write_bundle_deltas(
            before, now, path / "deltas" / f"{epoch}", after=after, progress=lambda name, rows: None
        )
        after, before = read_deltas(path / "deltas" / f"{epoch}"), now
    return path


def _rank(model: Model, prepared: bytes) -> dict[str, np.ndarray]:
    return model.predict({**model.prepared_features(prepared), **ITEMS}, prepared=prepared)


def _epoch(answer: dict[str, np.ndarray]) -> float:
    values = np.unique(np.concatenate([answer["users"], answer["items"]]))
    assert len(values) == 1, f"a mix of epochs: {values}"
    return values[0]


def test_requests_see_one_epoch_while_deltas_come(epochs: Path, tmp_path: Path) -> None:
    """The user's rows are cached and the items' are not: both are always of one epoch, and of the newest. A
    handle outlives the change of the tables."""
    bundle = tmp_path / "model" / "1"
    shutil.copytree(epochs / "0", bundle)
    states = StateCache(1 << 20, 60.0)
    repository = ModelRepository(tmp_path, states=states)
    repository.scan()
    done, errors = threading.Event(), []

    def ask() -> None:
        try:
            last = 0.0
            while not done.is_set():
                with repository.lend("model") as (model, _):
                    for answer in (model.predict({**USER, **ITEMS}), _rank(model, digest)):
                        assert (epoch := _epoch(answer)) >= last
                        last = epoch
        except BaseException as error:
            errors.append(error)

    with repository.lend("model") as (model, _):
        digest = model.prepare(USER).digest
        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        deltas_of(bundle).mkdir()
        try:
            for epoch in range(1, EPOCHS + 1):
                shutil.copytree(epochs / "deltas" / f"{epoch}", deltas_of(bundle) / f".{epoch}")
                (deltas_of(bundle) / f".{epoch}").rename(deltas_of(bundle) / f"{epoch}")
                repository.update_tables()
                assert _epoch(_rank(model, digest)) == epoch
                assert _epoch(model.predict({**USER, **ITEMS})) == epoch
        finally:
            done.set()
            for thread in threads:
                thread.join()
        counts = model.state_counts
    assert not errors
    assert counts is not None and counts.entries == 1 and counts.hits > EPOCHS
    repository.close()
    assert states.bytes == 0, "a version ends with what it kept"


def test_a_handle_ends_with_its_time_and_its_room(epochs: Path) -> None:
    now = [0.0]
    model = Model.load(epochs / "0", states=StateCache(20_000, 5.0, clock=lambda: now[0]))
    first = model.prepare(USER)
    assert first.seconds == 5.0
    now[0] = 2.0
    assert model.prepare(USER) == type(first)(first.digest, 3.0)
    now[0] = 2.6
    assert model.prepare(USER).seconds == 5.0, "half of the time at least is promised"
    now[0] = 7.5
    assert _epoch(_rank(model, first.digest)) == 0
    now[0] = 7.6
    with pytest.raises(StateNotFoundError, match="expired, made room"):
        _rank(model, first.digest)
    handles = [model.prepare({"users_ids": np.array([i])}).digest for i in range(ROWS // 2)]
    with pytest.raises(StateNotFoundError):
        _rank(model, handles[0])
    assert _epoch(_rank(model, handles[-1])) == 0
    counts = model.state_counts
    assert counts is not None and counts.evictions > 100 and counts.bytes <= 20_000
    model.close()


def test_another_version_takes_over_between_prepare_and_rank(
    epochs: Path, tmp_path: Path, start_server: StartServer
) -> None:
    """Handles are of a version, and a stream never mixes the scores of two. The old version does not stay to
    be rolled back to."""
    shutil.copytree(epochs / "0", tmp_path / "model" / "1")
    server = start_server(tmp_path, lifecycle=LifecycleOptions(rollback_requests=0))
    client = PredictClient(server.address)
    state = client.prepare("model", USER)
    sent: SimpleQueue[dict[str, np.ndarray] | None] = SimpleQueue()
    stream = client.rank_slices("model", USER, iter(sent.get, None))
    sent.put(ITEMS)
    assert _epoch(next(stream)) == 0
    shutil.copytree(epochs / "1", tmp_path / ".2")
    (tmp_path / ".2").rename(tmp_path / "model" / "2")
    end = time.monotonic() + 60
    while server.repository.loaded()["model"] != 2 and time.monotonic() < end:
        time.sleep(0.05)
    with pytest.raises(grpc.RpcError, match="is of version 1 of model 'model', and version 2 answers") as old:
        client.rank("model", state, ITEMS)
    assert old.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    sent.put(ITEMS)
    with pytest.raises(grpc.RpcError, match="no version 1; version 2 is served"):
        next(stream)
    assert _epoch(client.rank("model", client.prepare("model", USER), ITEMS)) == 1
    client.close()


def test_default_rows_of_a_store_are_not_kept(
    epochs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that gave no rows in time may give them to the next slice."""
    config = tmp_path / "tables.toml"
    config.write_text(
        f'[stores.local]\nkind = "rocksdb"\npath = "{tmp_path / "rocks"}"\n'
        '[models.model.tables]\nusers = { stores = ["local"], cache_mib = 0 }\n'
    )
    tiers = Tiers(load_config(config))
    loaded = Model.load(epochs / "1")
    table, manifest = loaded._host.tables["users"], loaded.manifest
    entry = next(t for t in manifest.tables if t.name == "users")
    push(
        table, record_of("users", manifest.files[entry.file], table), tiers.store("local"), lambda done: None
    )
    loaded.close()
    model = Model.load(epochs / "1", tiers=tiers, name="model", states=StateCache(1 << 20, 60.0))
    get = RocksDBTable._get

    def slowly(self: RocksDBTable, keys: np.ndarray) -> list[bytes | None]:
        time.sleep(0.2)
        return get(self, keys)

    monkeypatch.setattr(RocksDBTable, "_get", slowly)
    late = LookupBudget(deadline=time.monotonic() - 1.0)
    degraded = model.predict({**USER, **ITEMS}, budget=late)
    assert late.default_rows["users"] == 1 and not degraded["users"].any()
    assert _epoch(model.predict({**USER, **ITEMS}, budget=LookupBudget())) == 1
    late = LookupBudget(deadline=time.monotonic() - 1.0)
    assert _epoch(model.predict({**USER, **ITEMS}, budget=late)) == 1, "the whole row is kept"
    assert not late.default_rows
    model.close()
    tiers.close()
