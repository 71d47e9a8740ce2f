"""The tables config: what is accepted, and errors that name the field."""

import json
from pathlib import Path

import pytest

from serving.tiers.config import RedisStore, RocksDBStore, load_config
from serving.tiers.errors import TierConfigError

GOOD = """
budget_ms = 15
reserve_ms = 5

[stores.local]
kind = "rocksdb"
path = "/data/tables"

[stores.cluster]
kind = "redis"
nodes = ["10.0.0.1:6379", "[::1]:6380"]
username = "ranker"
password_env = "TIERS_TEST_PASSWORD"

[models.ranker.tables.user_table]
stores = ["local", "cluster"]
cache_mib = 128
"""


def _load(tmp_path: Path, text: str, name: str = "tables.toml"):
    path = tmp_path / name
    path.write_text(text)
    return load_config(path)


def test_a_whole_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIERS_TEST_PASSWORD", "hunter2")
    config = _load(tmp_path, GOOD)
    local, cluster = config.stores["local"], config.stores["cluster"]
    assert isinstance(local, RocksDBStore) and local.path == Path("/data/tables")
    assert isinstance(cluster, RedisStore) and cluster.addresses() == [("10.0.0.1", 6379), ("::1", 6380)]
    assert config.placements("ranker")["user_table"].stores == ("local", "cluster")
    assert config.placements("another") == {}
    assert "hunter2" not in repr(config)


def test_json(tmp_path: Path) -> None:
    document = {"stores": {"local": {"kind": "rocksdb", "path": "x"}}, "budget_ms": 7.5}
    assert _load(tmp_path, json.dumps(document), "tables.json").budget_ms == 7.5


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("budget_ms = 15", "budget_ms = 0", "field budget_ms: Expected `float` > 0.0"),
        ("budget_ms = 15", "bugdet_ms = 15", "unknown field `bugdet_ms`"),
        ('kind = "rocksdb"', 'kind = "leveldb"', "field stores[...].kind: Invalid value 'leveldb'"),
        ('path = "/data/tables"', "", "missing required field `path`"),
        (
            'nodes = ["10.0.0.1:6379", "[::1]:6380"]',
            'nodes = ["10.0.0.1"]',
            "stores.cluster.nodes has '10.0.0.1'",
        ),
        ('nodes = ["10.0.0.1:6379", "[::1]:6380"]', "nodes = []", "field stores[...].nodes"),
        ('username = "ranker"', "connections_per_node = 0", "connections_per_node: Expected `int` >= 1"),
        ('username = "ranker"', 'password_file = "/x"', "has password_env and password_file"),
        (
            'password_env = "TIERS_TEST_PASSWORD"',
            'password_file = "/no/such"',
            "/no/such, which cannot be read",
        ),
        ("TIERS_TEST_PASSWORD", "TIERS_TEST_UNSET", "TIERS_TEST_UNSET, which is not set"),
        ('username = "ranker"', 'tls_ca_file = "/x"', "tls_ca_file is set but tls is not"),
        (
            'stores = ["local", "cluster"]',
            'stores = ["loca"]',
            "user_table.stores names 'loca'; the stores are",
        ),
        ("cache_mib = 128", "cache_mib = -1", "cache_mib: Expected `float` >= 0.0"),
        ("cache_mib = 128", 'version = "xyz"', "version: Expected `str` matching regex"),
        ("[stores.local]", "[stores.local", "is not TOML"),
    ],
)
def test_errors_name_the_field(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: str, new: str, message: str
) -> None:
    monkeypatch.setenv("TIERS_TEST_PASSWORD", "hunter2")
    assert old in GOOD
    with pytest.raises(TierConfigError) as caught:
        _load(tmp_path, GOOD.replace(old, new))
    assert message in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(TierConfigError, match="cannot be read"):
        load_config(tmp_path / "no.toml")
