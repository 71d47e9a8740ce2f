"""`jaxrank tables`: pushes that are killed, disks that are full, and what comes back."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bench.kills import COMMAND
from bench.tiers_bundle import write_bundle, write_random_table
from bench.tiers_kills import push_with_kills
from jaxrank.bundle import sha256
from jaxrank.cli import app
from tests.redis_cluster import Cluster, running_cluster


def _bundle(path: Path, rows: int, *, keyed: bool = False, seed: int = 0, dim: int = 16) -> Path:
    write_random_table(path / "tables/t.table", rows, dim, keyed=keyed, seed=seed)
    write_bundle(path, ["t"])
    return path


def _config(directory: Path, nodes: list[str] = [], **redis: str) -> Path:  # noqa: B006
    stores: dict[str, object] = {"local": {"kind": "rocksdb", "path": str(directory / "rocks")}}
    if nodes:
        stores["cluster"] = {"kind": "redis", "nodes": nodes, **redis}
    path = directory / "tables.json"
    path.write_text(json.dumps({"stores": stores}))
    return path


@dataclass(frozen=True)
class _Done:
    returncode: int
    stdout: str
    stderr: str


def _tables(*arguments: object) -> _Done:
    """`jaxrank tables` in this process."""
    result = CliRunner().invoke(app, ["tables", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return _Done(result.exit_code, result.stdout, result.stderr)


@pytest.mark.parametrize(("store", "keyed"), [("local", False), ("cluster", True)])
def test_a_push_that_is_killed_never_leaves_a_wrong_row(
    store: str, keyed: bool, cluster: Cluster, tmp_path: Path
) -> None:
    """`python -m bench tiers` does this fifty times."""
    bundle = _bundle(tmp_path / "b", 300_000 if store == "local" else 100_000, keyed=keyed, seed=keyed)
    config = _config(tmp_path, cluster.nodes)
    survived = push_with_kills(bundle, config, store, kills=2, seed=ord(store[0]) + keyed)
    assert survived.kills >= 1
    if store == "cluster":
        version = sha256(bundle / "tables/t.table")[:12]
        assert _tables("drop", "t", "-c", config, "-s", store, "--version", version).returncode == 0
        assert sum(cluster.client(i).dbsize() for i in range(3)) <= 1


@pytest.mark.parametrize("keyed", [False, True])
def test_what_is_pulled_is_what_was_pushed(keyed: bool, cluster: Cluster, tmp_path: Path) -> None:
    """Byte by byte, also when the pull is killed half way and goes on."""
    bundle = _bundle(tmp_path / "b", 150_000, keyed=keyed, seed=5 + keyed)
    config, copy = _config(tmp_path, cluster.nodes), tmp_path / "copy.table"
    assert _tables("push", bundle, "-c", config, "-s", "cluster").returncode == 0
    pull = ["pull", "t", "-c", config, "-s", "cluster", "-o", copy]
    running = subprocess.Popen([*COMMAND, "tables", *map(str, pull)], stderr=subprocess.PIPE)
    work = copy.with_name("copy.table.pull")
    end = time.monotonic() + 60
    while running.poll() is None and not (work.exists() and work.stat().st_size) and time.monotonic() < end:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    done = _tables(*pull)
    assert done.returncode == 0, done.stderr
    assert "byte by byte" in done.stderr
    assert sha256(copy) == sha256(bundle / "tables/t.table")
    assert not work.exists()
    stat = _tables("stat", "-c", config, "-s", "cluster").stdout
    assert re.search(r"t@[0-9a-f]{12}.*150,000.*all.*16.*f32", stat)
    assert stat.count("33.") + stat.count("32.") + stat.count("34.") >= 3
    version = sha256(copy)[:12]
    assert _tables("drop", "t", "-c", config, "-s", "cluster", "--version", version).returncode == 0


def test_a_disk_that_is_full(tmp_path: Path) -> None:
    """RocksDB's files may not grow beyond a limit: the push says so, and goes on where it was when they
    may."""
    bundle, config = _bundle(tmp_path / "b", 600_000), _config(tmp_path)
    command = [*COMMAND, "tables", "push", str(bundle), "-c", str(config), "-s", "local"]
    limited = ["bash", "-c", 'ulimit -f 24576; exec "$@"', "bash", *command]  # KiB
    done = subprocess.run(limited, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    text = " ".join(done.stderr.split())
    assert "StoreFullError" in text and "make room and run the same command again" in text
    assert "Traceback" not in done.stderr
    again = _tables("push", bundle, "-c", config, "-s", "local")
    assert again.returncode == 0, again.stderr
    resumed = re.search(r"of which ([\d,]+) were there", " ".join(again.stderr.split()))
    assert resumed and 0 < int(resumed[1].replace(",", "")) < 600_000
    assert _tables("verify", bundle, "-c", config, "-s", "local").returncode == 0


def test_a_redis_that_is_full(redis_cache: Path, tmp_path: Path) -> None:
    """At first it may have too little memory, then it drops keys when it is full, which is refused."""
    bundle = _bundle(tmp_path / "b", 150_000)
    with running_cluster(redis_cache, tmp_path, options=("--maxmemory", "8mb")) as cluster:
        config = _config(tmp_path, cluster.nodes)
        push = ("push", bundle, "-c", config, "-s", "cluster")
        done = _tables(*push)
        assert done.returncode == 2
        text = " ".join(done.stderr.split())
        assert (
            "StoreFullError" in text and "used memory > 'maxmemory'" in text and "goes on from here" in text
        )
        for index in range(3):
            cluster.client(index).config_set("maxmemory", "64mb")
            cluster.client(index).config_set("maxmemory-policy", "allkeys-lru")
        text = " ".join(_tables(*push).stderr.split())
        assert "drops keys when it is full (maxmemory-policy allkeys-lru)" in text
        for index in range(3):
            cluster.client(index).config_set("maxmemory-policy", "noeviction")
        again = _tables(*push)
        assert again.returncode == 0, again.stderr
        assert _tables("verify", bundle, "-c", config, "-s", "cluster").returncode == 0


def test_a_login_that_is_refused(redis_cache: Path, tmp_path: Path) -> None:
    """With what to do, and without the password in any message."""
    bundle = _bundle(tmp_path / "b", 100)
    with running_cluster(redis_cache, tmp_path, masters=1, password="right-secret") as cluster:
        secret = tmp_path / "secret"
        secret.write_text("wrong-secret\n")
        for options in ({}, {"password_file": str(secret)}):
            done = _tables("push", bundle, "-c", _config(tmp_path, cluster.nodes, **options), "-s", "cluster")
            text = " ".join(done.stderr.split())
            assert done.returncode == 2
            assert "StoreUnavailableError" in text and "Redis refuses the login" in text
            assert "password_file of stores.cluster" in text and "secret" not in text.replace(str(secret), "")
        # A user of its own, with the rights that docs/tiers.md lists and no others.
        page = (Path(__file__).parents[3] / "docs/tiers.md").read_text()
        rights = re.findall(r"`(\+mget[^`]*)`", page)[0].split()
        cluster.client(0).execute_command("ACL", "SETUSER", "ranker", "on", ">right-secret", "~*", *rights)
        secret.write_text("right-secret\n")
        config = _config(tmp_path, cluster.nodes, password_file=str(secret), username="ranker")
        for command in ("push", "verify"):
            done = _tables(command, bundle, "-c", config, "-s", "cluster")
            assert done.returncode == 0 and "secret" not in done.stderr.replace(str(secret), ""), done.stderr


def test_a_server_without_a_cluster_and_no_server(redis_cache: Path, tmp_path: Path) -> None:
    bundle = _bundle(tmp_path / "b", 100)
    with running_cluster(redis_cache, tmp_path, masters=1) as cluster:
        port = cluster.ports[0]
    done = _tables("push", bundle, "-c", _config(tmp_path, [f"127.0.0.1:{port}"]), "-s", "cluster")
    text = " ".join(done.stderr.split())
    assert done.returncode == 2 and "check stores.cluster.nodes and the network" in text


def test_tables_and_stores_that_are_not_there(tmp_path: Path) -> None:
    bundle, config = _bundle(tmp_path / "b", 100), _config(tmp_path)
    done = _tables("verify", bundle, "-c", config, "-s", "local")
    assert done.returncode == 2 and "store 'local' holds no table 't'" in " ".join(done.stderr.split())
    done = _tables("push", bundle, "-c", config, "-s", "locale")
    assert done.returncode == 2 and "has no store 'locale'; the stores are: local" in " ".join(
        done.stderr.split()
    )
    done = _tables("push", bundle, "-c", config, "-s", "local", "-t", "user")
    assert done.returncode == 2 and "has no table 'user'; its tables are: t" in " ".join(done.stderr.split())


def test_serving_does_not_need_the_libraries_of_stores() -> None:
    script = "import sys, serving.grpc_server; assert not {'redis', 'rocksdict'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, env=dict(os.environ), timeout=60)
