"""The tables config: which stores there are, and which table of which model lives in which of them.

A TOML or JSON file (docs/tables tiers page: docs/tiers.md). Nothing is read from stores here.
"""

import os
import tomllib
from pathlib import Path
from typing import Annotated

import msgspec

from serving.tiers.errors import TierConfigError

Positive = Annotated[float, msgspec.Meta(gt=0)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=200)]


class RocksDBStore(
    msgspec.Struct, frozen=True, kw_only=True, tag="rocksdb", tag_field="kind", forbid_unknown_fields=True
):
    """Tables in RocksDB on this machine, one directory for each below `path`."""

    path: Path
    block_cache_mib: Annotated[int, msgspec.Meta(ge=8)] = 256
    """Of DRAM for blocks of the files, shared by the tables of this store."""
    threads: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    """Reads that run at once."""


class RedisStore(
    msgspec.Struct, frozen=True, kw_only=True, tag="redis", tag_field="kind", forbid_unknown_fields=True
):
    """A Redis Cluster."""

    nodes: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    """`host:port` of some nodes; the rest is discovered. Give several: one may be down when we start."""
    username: str | None = None
    password_env: str | None = None
    """Name of the environment variable that holds the password."""
    password_file: Path | None = None
    """File that holds the password; read again for every connection, so that it may change."""
    tls: bool = False
    tls_ca_file: Path | None = None
    connections_per_node: Annotated[int, msgspec.Meta(ge=1, le=64)] = 4
    connect_ms: Positive = 1000
    """For one connection, and for one answer where no request's budget decides."""
    failures_to_open: Annotated[int, msgspec.Meta(ge=1)] = 3
    """Timeouts in a row after which a node is asked no more until a probe finds it well. A connection that
    breaks is enough at once."""
    probe_ms: Positive = 250
    """Between probes of a node that failed; doubled after each up to 16 times this."""

    def addresses(self) -> list[tuple[str, int]]:
        """Host and port of each node. The form was checked by `load_config`."""
        return [_address(node) for node in self.nodes]


Store = RocksDBStore | RedisStore


class Placement(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the rows of one table are."""

    stores: Annotated[tuple[Name, ...], msgspec.Meta(min_length=1)]
    """Asked in this order: a later one for what the earlier ones did not give."""
    cache_mib: Annotated[float, msgspec.Meta(ge=0)] = 64
    """Of DRAM for rows that are asked for often; 0 for none."""
    version: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8,64}$")] | None = None
    """First digits of the sha256 of the pushed table that is served; the bundle's own by default."""


class ModelTables(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tables: dict[Name, Placement]
    """By the table's name in the bundle (`jaxrank inspect`). Tables that are not named stay in the bundle's
    files."""


class TablesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The whole file."""

    budget_ms: Positive = 20
    """All lookups in stores of one request together; what has not arrived by then gets the default row."""
    reserve_ms: Annotated[float, msgspec.Meta(ge=0)] = 10
    """Of the caller's own deadline, kept for the work after the lookups."""
    stores: dict[Name, Store]
    models: dict[Name, ModelTables] = {}
    path: Path = Path()
    """The file it was read from."""

    def placements(self, model: str) -> dict[str, Placement]:
        """Of a model's tables, by their names; empty for a model that is not named."""
        found = self.models.get(model)
        return {} if found is None else found.tables


def load_config(path: Path) -> TablesConfig:
    """Reads a `.toml` or `.json` file. Raises `TierConfigError`, which names the field at fault."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise TierConfigError(f"the tables config {path} cannot be read: {error.strerror}") from error
    try:
        document = msgspec.json.decode(text) if path.suffix == ".json" else tomllib.loads(text.decode())
    except (msgspec.DecodeError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise TierConfigError(f"the tables config {path} is not {kind}: {error}") from error
    if not isinstance(document, dict) or "path" in document:
        raise TierConfigError(f"the tables config {path} must have [stores] and [models]; see docs/tiers.md")
    try:
        config = msgspec.convert({**document, "path": path}, TablesConfig, strict=True, dec_hook=_decode)
    except msgspec.ValidationError as error:
        raise TierConfigError(f"the tables config {path}: {_readable(error)}; see docs/tiers.md") from error
    _check(config)
    return config


def _decode(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str | Path):
        return Path(value)
    raise TypeError(f"unexpected {kind}")


def _readable(error: msgspec.ValidationError) -> str:
    """msgspec's text ("Expected `int >= 1` - at `$.stores[...].threads`") with the field first."""
    what, _, where = str(error).partition(" - at ")
    return f"field {where.strip('`').removeprefix('$.')}: {what}" if where else what


def _check(config: TablesConfig) -> None:
    for name, store in config.stores.items():
        if isinstance(store, RedisStore):
            _check_redis(config.path, f"stores.{name}", store)
    for model, tables in config.models.items():
        for table, placement in tables.tables.items():
            unknown = [s for s in placement.stores if s not in config.stores]
            if unknown:
                raise TierConfigError(
                    f"the tables config {config.path}: field models.{model}.tables.{table}.stores names "
                    f"{unknown[0]!r}; the stores are: {', '.join(config.stores) or 'none'}"
                )


def _check_redis(path: Path, field: str, store: RedisStore) -> None:
    for node in store.nodes:
        try:
            _address(node)
        except ValueError as error:
            raise TierConfigError(
                f"the tables config {path}: field {field}.nodes has {node!r}; write host:port"
            ) from error
    if store.password_env is not None and store.password_file is not None:
        raise TierConfigError(
            f"the tables config {path}: field {field} has password_env and password_file; keep one"
        )
    if store.password_env is not None and store.password_env not in os.environ:
        raise TierConfigError(
            f"the tables config {path}: field {field}.password_env names {store.password_env}, which is not "
            "set; set it in the environment of this process"
        )
    if store.password_file is not None and not os.access(store.password_file, os.R_OK):
        raise TierConfigError(
            f"the tables config {path}: field {field}.password_file is {store.password_file}, which cannot "
            "be read; check the path and its permissions"
        )
    if store.tls_ca_file is not None and not store.tls:
        raise TierConfigError(f"the tables config {path}: field {field}.tls_ca_file is set but tls is not")


def _address(node: str) -> tuple[str, int]:
    host, _, port = node.rpartition(":")
    number = int(port)
    if not host or not 0 < number < 65536:
        raise ValueError(node)
    return host.strip("[]"), number
