"""`jaxrank serve` under the real jemalloc, and where there is none."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving.allocator import (
    MARK,
    PACKAGE,
    Allocator,
    AllocatorError,
    check_jemalloc,
    decide,
    find_jemalloc,
    malloc_conf,
    running_allocator,
)
from serving.client import PredictClient
from tests import models
from tests.shared import killed

JAXRANK = str(Path(sys.executable).parent / "jaxrank")
GLIBC = Allocator("glibc", "2.36", "/lib/libc.so.6")
CLEAN = {k: v for k, v in os.environ.items() if k not in ("LD_PRELOAD", "MALLOC_CONF", MARK)}


@contextmanager
def serving(
    models_dir: Path, *options: str | Path, **environment: str
) -> Iterator[tuple[subprocess.Popen, str, list[str]]]:
    """A server's process, its address, and its log until it serves."""
    command = [JAXRANK, "serve", str(models_dir), "--host", "127.0.0.1", "--port", "0", *map(str, options)]
    environment = {**CLEAN, **environment}
    with killed(subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)) as process:
        log = []
        assert process.stderr is not None
        for line in process.stderr:
            log.append(line)
            if found := re.search(r"serving on (\S+):", line):
                yield process, found.group(1), log
                break
        else:
            pytest.fail(f"it never served: {''.join(log)}")


def allocator_lines(log: list[str]) -> list[str]:
    return [line for line in log if "allocator: " in line]


def test_a_server_under_jemalloc(models_dir: Path, jemalloc: Path) -> None:
    """The process that was started is the one that serves, under jemalloc; it answers, drains and exits 0."""
    with serving(models_dir, "--jemalloc", jemalloc) as (process, address, log):
        (line,) = allocator_lines(log)
        assert f"INFO allocator: jemalloc 5.3.0 ({jemalloc})" in re.sub(
            r"jemalloc 5\.\S+", "jemalloc 5.3.0", line
        )
        assert malloc_conf(len(os.sched_getaffinity(0))).partition(",narenas")[0] in line
        assert str(jemalloc) in Path(f"/proc/{process.pid}/maps").read_text()
        client = PredictClient(address)
        assert len(client.predict("ranker", models.ranker_request(9, 1))["click"]) == 9
        client.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0


def test_the_users_preload_and_options_win(tmp_path: Path, jemalloc: Path) -> None:
    """Their library stays before jemalloc, and their options stay as they are."""
    environment = {"LD_PRELOAD": "libm.so.6", "MALLOC_CONF": "narenas:3"}
    with serving(tmp_path, "--jemalloc", jemalloc, **environment) as (process, _, log):
        assert re.search(r"INFO allocator: jemalloc \S+ .*, MALLOC_CONF=narenas:3$", allocator_lines(log)[0])
        found = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
        assert f"LD_PRELOAD=libm.so.6:{jemalloc}".encode() in found


def test_a_preloaded_jemalloc_is_left_alone(tmp_path: Path, jemalloc: Path) -> None:
    with serving(tmp_path, LD_PRELOAD=str(jemalloc)) as (process, _, log):
        (line,) = allocator_lines(log)
        assert (
            "preloaded by you and left alone, no MALLOC_CONF; for the options that jaxrank would set" in line
        )
        assert b"MALLOC_CONF=" not in Path(f"/proc/{process.pid}/environ").read_bytes()


def test_off(tmp_path: Path) -> None:
    with serving(tmp_path, "--jemalloc", "off") as (process, _, log):
        assert "as --jemalloc off asks" in allocator_lines(log)[0]
        assert "libjemalloc" not in Path(f"/proc/{process.pid}/maps").read_text()


def test_a_library_that_the_loader_refuses(tmp_path: Path, jemalloc: Path) -> None:
    """It looks like jemalloc and ends in the middle: the server goes on without."""
    broken = tmp_path / "libjemalloc.so.2"
    content = jemalloc.read_bytes()
    broken.write_bytes(content[: len(content) // 2])
    assert check_jemalloc(broken) == broken
    (tmp_path / "models").mkdir()
    with serving(tmp_path / "models", "--jemalloc", broken) as (_, _, log):
        (line,) = allocator_lines(log)
        assert f"{broken} cannot be preloaded: a process under it ended with status" in line
        assert "WARNING" in line


def test_it_is_started_again_only_once(tmp_path: Path) -> None:
    """Something between the two starts took LD_PRELOAD away."""
    with serving(tmp_path, **{MARK: "/opt/libjemalloc.so.2"}) as (_, _, log):
        assert "WARNING allocator: glibc" in allocator_lines(log)[0]
        assert "/opt/libjemalloc.so.2 was preloaded and does not answer malloc" in allocator_lines(log)[0]


def test_none_is_found(tmp_path: Path) -> None:
    """It says so with the package's name, and goes on."""
    assert find_jemalloc(tmp_path) is None
    decision = decide("auto", {}, GLIBC, tmp_path)
    assert decision.environment is None and decision.advice
    assert (
        f"no libjemalloc was found, and under it a server takes fewer page faults: apt-get install {PACKAGE}"
        in (decision.message)
    )


@pytest.mark.parametrize("how", ["cache", "directory"])
def test_where_it_is_found(how: str, tmp_path: Path, jemalloc: Path) -> None:
    """In the dynamic loader's cache, or in a usual directory; a text file of that name is passed over."""
    place = tmp_path / ("opt/odd" if how == "cache" else "usr/lib64") / "libjemalloc.so.2"
    place.parent.mkdir(parents=True)
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/libjemalloc.so.2").write_text("GROUP ( libjemalloc.so.1 )")
    if how == "cache":
        (tmp_path / "etc").mkdir()
        (tmp_path / "etc/ld.so.cache").write_bytes(
            b"glibc-ld.so.cache1.1\0/opt/odd/libjemalloc.so.2\0/lib/libm.so.6\0"
        )
    shutil.copy(jemalloc, place)
    assert find_jemalloc(tmp_path) == place
    decision = decide("auto", {"A": "b"}, GLIBC, tmp_path)
    assert decision.environment is not None
    assert decision.environment["LD_PRELOAD"] == decision.environment[MARK] == str(place)
    assert decision.environment["A"] == "b" and "thp:always" in decision.environment["MALLOC_CONF"]
    assert decide("auto", decision.environment, GLIBC, tmp_path).environment is None


def test_refusals(tmp_path: Path, jemalloc: Path) -> None:
    (tmp_path / "text").write_text("no library")
    other = bytearray(jemalloc.read_bytes())
    other[18] ^= 0xFF  # e_machine
    (tmp_path / "other.so").write_bytes(other)
    (tmp_path / "a b.so").write_bytes(jemalloc.read_bytes())
    for file, why in {
        "none": "No such file",
        "text": "not an ELF library",
        "other.so": "for another kind of CPU",
        "a b.so": "no path with a colon or a space",
        running_allocator().library: "no jemalloc: it has no mallctl",
    }.items():
        with pytest.raises(AllocatorError, match=f"--jemalloc .*{why}.*; name a libjemalloc.so.2 for"):
            decide(str(tmp_path / file), {}, GLIBC)
    command = [JAXRANK, "serve", str(tmp_path), "--jemalloc", str(tmp_path / "text")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=CLEAN)
    assert done.returncode == 2 and "not an ELF library" in done.stderr and "Traceback" not in done.stderr


def test_this_process_runs_on_what_the_loader_says() -> None:
    if "LD_PRELOAD" not in os.environ:
        assert running_allocator().name in ("glibc", "musl")
        assert Path(running_allocator().library).is_file()
