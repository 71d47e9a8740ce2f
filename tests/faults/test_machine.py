"""A machine that fails the server: a full disk, a clock that jumps."""

import http.client
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests import models
from tests.faults.server import ServerProcess, eventually, serve

FEATURES = models.ranker_request(6, 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"only root may mount a small disk: {mounted.stderr.decode().strip()}")
    yield path
    subprocess.run(["umount", "-l", str(path)], check=True)


def test_a_full_disk(small_disk: Path, ranker_bundle: Path) -> None:
    """A new version does not fit: what is there of it is refused, the old one goes on, and when there is room
    and the copy is complete, the new one is served."""
    shutil.copytree(ranker_bundle, small_disk / "ranker" / "1")
    with serve(small_disk, "--poll-seconds", "0.1") as server:
        client = server.client()
        expected = client.predict("ranker", FEATURES)["click"]
        (small_disk / "ballast").write_bytes(bytes(900 << 10))
        with pytest.raises((OSError, shutil.Error), match="No space left"):
            shutil.copytree(ranker_bundle, small_disk / "ranker" / "2")
        eventually(lambda: any("version 2 does not load, version 1 keeps serving" in x for x in server.log))
        assert np.array_equal(client.predict("ranker", FEATURES, timeout=30)["click"], expected)
        (small_disk / "ballast").unlink()
        shutil.copytree(ranker_bundle, small_disk / "ranker" / "2", dirs_exist_ok=True)
        eventually(lambda: any("serving version 2" in line for line in server.log))
        assert np.array_equal(client.predict("ranker", FEATURES, timeout=30)["click"], expected)
        client.close()
        assert server.alive() and not server.faults()


FAKETIME = next((p for p in sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)


@pytest.mark.skipif(FAKETIME is None, reason="no libfaketime (Debian, Ubuntu: apt-get install libfaketime)")
def test_a_clock_that_jumps(models_dir: Path, tmp_path: Path) -> None:
    """Deadlines are kept by the monotonic clock: requests with some seconds are answered while the time of
    day jumps by a year, forwards and back. The statistics say what time the server believes it is."""
    now = tmp_path / "now"
    now.write_text("+0")
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(now),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    with serve(models_dir, environment=environment) as server:
        client = server.client()
        expected = client.predict("ranker", FEATURES)["click"]

        def believes(days: int) -> bool:
            """Asks once more."""
            found = client.predict("ranker", FEATURES, timeout=10)["click"]
            assert np.array_equal(found, expected)
            return abs(_last_inference(server) - time.time() - days * 86400) < 86400

        for jump in (365, -365, 0):
            now.write_text(f"{jump:+}d")
            eventually(lambda days=jump: believes(days))
        client.close()
        assert server.alive() and not server.faults()


def _last_inference(server: ServerProcess) -> float:
    """When the ranker was last asked, in seconds since the epoch."""
    connection = http.client.HTTPConnection(*server.rest, timeout=30)
    connection.request("GET", "/v2/models/ranker/stats")
    (stats,) = json.loads(connection.getresponse().read())["model_stats"]
    connection.close()
    return stats["last_inference"] / 1000
