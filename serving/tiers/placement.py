"""Opens what the tables config places in stores, for the models of a server."""

import threading

import numpy as np

from jaxrank.manifest import Manifest
from jaxrank.manifest import Table as TableEntry
from serving.tiers.budget import LookupBudget
from serving.tiers.config import Placement, RedisStore, TablesConfig
from serving.tiers.config import Store as StoreConfig
from serving.tiers.errors import StoredTableError, TableNotStoredError, TierConfigError
from serving.tiers.record import IDENTITY_DIGITS, TableRecord
from serving.tiers.store import Store
from serving.tiers.tiered_table import TieredTable


def open_store(name: str, config: StoreConfig) -> Store:
    """Raises `StoreUnavailableError`; `ModuleNotFoundError` where its library is not installed."""
    if isinstance(config, RedisStore):
        from serving.tiers.redis_cluster import Cluster

        return Cluster(name, config)
    from serving.tiers.rocksdb import RocksDB

    return RocksDB(name, config)


class Tiers:
    """The stores of a server, opened when the first table needs them. Thread-safe."""

    def __init__(self, config: TablesConfig):
        self.config = config
        self._stores: dict[str, Store] = {}
        self._lock = threading.Lock()

    def placed_files(self, model: str, manifest: Manifest) -> frozenset[str]:
        """Files of a bundle that a server does not need: their rows are in stores. Raises `TierConfigError`
        for a table that the bundle does not have."""
        placements, tables = self.config.placements(model), {t.name: t for t in manifest.tables}
        for name in placements:
            if name not in tables:
                raise TierConfigError(
                    f"the tables config {self.config.path}: field models.{model}.tables has {name!r}; the "
                    f"model's tables are: {', '.join(tables) or 'none'}"
                )
        return frozenset(tables[name].file for name in placements)

    def open_tables(self, model: str, manifest: Manifest) -> dict[str, TieredTable]:
        """The tables of a model that are placed in stores, by their names.

        Raises:
            StoreUnavailableError: a store cannot be reached.
            TableNotStoredError: a store does not hold the table, or not all of it.
            StoredTableError: what it holds does not fit the bundle.
        """
        found: dict[str, TieredTable] = {}
        try:
            for name, placement in self.config.placements(model).items():
                entry = next(t for t in manifest.tables if t.name == name)
                found[name] = self._open(entry, manifest.files[entry.file], placement)
        except BaseException:
            for table in found.values():
                table.close()
            raise
        return found

    def budget(self, remaining_s: float | None) -> LookupBudget:
        """Of a request whose caller waits for so many seconds; None for ever."""
        return LookupBudget.of_request(self.config.budget_ms, self.config.reserve_ms, remaining_s)

    def store(self, name: str) -> Store:
        """Raises `TierConfigError` for a name that is not in the config."""
        with self._lock:
            if name not in self._stores:
                if name not in self.config.stores:
                    raise TierConfigError(
                        f"the tables config {self.config.path} has no store {name!r}; the stores are: "
                        f"{', '.join(self.config.stores) or 'none'}"
                    )
                self._stores[name] = open_store(name, self.config.stores[name])
            return self._stores[name]

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    def _open(self, entry: TableEntry, digest: str, placement: Placement) -> TieredTable:
        wanted = placement.version or digest
        opened = []
        try:
            for name in placement.stores:
                store = self.store(name)
                record = find_record(store, entry.name, wanted)
                check_fits(record, entry, name)
                opened.append(store.open(record))
            if len({table.record.sha256 for table in opened}) > 1:
                raise StoredTableError(
                    f"table {entry.name!r}: stores {', '.join(placement.stores)} hold different versions "
                    "that "
                    f"begin with {wanted}; give more digits of version"
                )
        except BaseException:
            for table in opened:
                table.close()
            raise
        return TieredTable(opened, int(placement.cache_mib * (1 << 20)), np.dtype(entry.dtype))


def find_record(store: Store, name: str, version: str) -> TableRecord:
    """The one version of a table whose sha256 begins with `version`. Raises `TableNotStoredError`."""
    records = store.records()
    same = [record for record in records if record.name == name]
    found = [record for record in same if record.sha256.startswith(version)]
    if len(found) == 1:
        return found[0]
    short = version[:IDENTITY_DIGITS]
    if found:
        raise TableNotStoredError(
            f"store {store.name!r} holds {len(found)} versions of table {name!r} that begin with {short}: "
            f"{', '.join(r.sha256 for r in found)}; give more digits"
        )
    if same:
        versions = ", ".join(f"{r.identity} (dim {r.dim}, {r.row_format}, {r.rows:,} rows)" for r in same)
        what = f"holds table {name!r} only as {versions}, not as {name}@{short}"
    else:
        others = ", ".join(sorted({r.name for r in records}))
        what = f"holds no table {name!r}; it holds: {others or 'nothing'}"
    raise TableNotStoredError(
        f"store {store.name!r} {what}; run `jaxrank tables push BUNDLE --store {store.name}` with the bundle "
        "that is served"
    )


def check_fits(record: TableRecord, entry: TableEntry, store: str) -> None:
    """Raises `StoredTableError` where a stored table is not of the shape that the model was made for."""
    differences = [
        f"{what} {stored}, the bundle says {said}"
        for what, stored, said in (
            ("dim", record.dim, entry.dim),
            ("rows", record.rows, entry.rows),
        )
        if stored != said
    ]
    if differences:
        raise StoredTableError(
            f"table {entry.name!r} in store {store!r} ({record.identity}) has {'; '.join(differences)}; "
            "push the "
            "bundle's own table, or drop `version` from the tables config"
        )
