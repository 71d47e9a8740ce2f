"""The real libjemalloc for tests: the machine's own, or Debian's package unpacked into the cache.

A machine without either fails the tests that need it: they must not be left out in silence.
"""

import subprocess
from pathlib import Path

import pytest

from serving.allocator import PACKAGE, find_jemalloc


def library(cache: Path) -> Path:
    """A libjemalloc that can be preloaded. Needs no root: the package is downloaded and unpacked, not
    installed."""
    found = find_jemalloc() or _unpacked(cache)
    if found is None:
        cache.mkdir(parents=True, exist_ok=True)
        _download(cache)
        found = _unpacked(cache)
    if found is None:
        pytest.fail(
            f"no libjemalloc: it is not installed, and apt-get download {PACKAGE} did not work; install "
            "jemalloc (Debian, Ubuntu: libjemalloc2; Fedora, Alpine, Arch: jemalloc) and run the tests again"
        )
    return found


def _unpacked(cache: Path) -> Path | None:
    return next((p for p in sorted(cache.glob("root/usr/lib/*/libjemalloc.so.2"))), None)


def _download(cache: Path) -> None:
    own = cache / "apt"
    for folder in ("lists/partial", "archives/partial"):
        (own / folder).mkdir(parents=True, exist_ok=True)
    # The machine's package lists may be missing or too old for the mirror: then the cache gets its own.
    private = ["-o", f"Dir::State::Lists={own}/lists", "-o", f"Dir::Cache={own}"]
    plain = _run(["apt-get", "download", PACKAGE], cache)
    if not plain and _run(["apt-get", *private, "update"], cache):
        _run(["apt-get", *private, "download", PACKAGE], cache)
    for package in cache.glob(f"{PACKAGE}_*.deb"):
        _run(["dpkg", "-x", package.name, "root"], cache)


def _run(command: list[str], directory: Path) -> bool:
    try:
        return subprocess.run(command, cwd=directory, capture_output=True, timeout=120).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False
