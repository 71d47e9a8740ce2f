"""Writing a directory atomically: nothing is left behind by a failure or a kill, and nothing of a running
process is touched."""

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from jaxrank.staging import staging
from tests.shared import killed

_STAGE_AND_WAIT = """
import sys, time
from pathlib import Path
from jaxrank.staging import staging
bundle = Path(sys.argv[1])
with staging(bundle, start_from=bundle, unchanged=["table"]) as work:
    (work / "new").write_text("half")
    print("staged", flush=True)
    time.sleep(300)
"""


@contextmanager
def _staging_process(bundle: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing the bundle."""
    command = [sys.executable, "-c", _STAGE_AND_WAIT, str(bundle)]
    with killed(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        assert process.stdout is not None and process.stdout.readline() == "staged\n"
        yield process


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "1"
    path.mkdir()
    (path / "table").write_text("rows")
    (path / "small").write_text("old")
    return path


def _names(directory: Path) -> list[str]:
    return sorted(p.name for p in directory.iterdir())


def test_what_a_killed_process_left_is_removed_by_the_next_and_of_a_running_one_nothing(bundle: Path) -> None:
    with _staging_process(bundle) as killed:
        killed.send_signal(signal.SIGKILL)
    (left,) = (n for n in _names(bundle.parent) if n != "1")
    assert _names(bundle) == ["small", "table"]
    for other in (".1.staging.settings", ".1.notes", ".12.staging.abcdefgh", ".1.staging.abcdefghi"):
        (bundle.parent / other).mkdir()
    (bundle.parent / ".1.staging.afile_xy").write_text("not a directory")
    with _staging_process(bundle):
        (running,) = (n for n in _names(bundle.parent) if n.startswith(".1.staging.") and len(n) == 19
                      and n not in (".1.staging.settings", ".1.staging.afile_xy"))  # fmt: skip
        assert running != left
        with staging(bundle, start_from=bundle) as work:
            (work / "small").write_text("new")
        assert (bundle.parent / running / "new").read_text() == "half"
    assert (bundle / "small").read_text() == "new" and (bundle / "table").read_text() == "rows"
    with staging(bundle, start_from=bundle):
        assert running not in _names(bundle.parent)
    # The first name is one that a stage may have; the others are not.
    others = [".1.notes", ".1.staging.abcdefghi", ".1.staging.afile_xy", ".12.staging.abcdefgh", "1"]
    assert _names(bundle.parent) == others


def test_many_stages_of_one_destination_at_once_leave_one_whole(bundle: Path) -> None:
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(20):
                with staging(bundle) as work:
                    for name in "abc":
                        (work / name).write_text(str(number))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert _names(bundle.parent) == ["1"] and _names(bundle) == ["a", "b", "c"]
    assert len({(bundle / n).read_text() for n in "abc"}) == 1


def test_unchanged_files_are_linked_and_only_into_what_replaces_them(bundle: Path, tmp_path: Path) -> None:
    before = (bundle / "table").stat()
    with staging(bundle, start_from=bundle, unchanged=["table"]) as work:
        assert os.path.samefile(work / "table", bundle / "table")
        assert not os.path.samefile(work / "small", bundle / "small")
    after = (bundle / "table").stat()
    assert (after.st_ino, after.st_nlink, after.st_mtime_ns) == (before.st_ino, 1, before.st_mtime_ns)
    with staging(tmp_path / "copy", start_from=bundle, unchanged=["table"]):
        pass
    assert not os.path.samefile(tmp_path / "copy" / "table", bundle / "table")
    with pytest.raises(RuntimeError), staging(bundle, start_from=bundle, unchanged=["table"]) as work:
        (work / "table").unlink()  # allowed: the old directory keeps its name for the file
        raise RuntimeError
    assert (bundle / "table").read_text() == "rows"


def test_through_a_link_the_directory_is_replaced_and_not_the_link(bundle: Path) -> None:
    link = bundle.parent / "current"
    link.symlink_to("1")
    with staging(link, start_from=link, unchanged=["table"]) as work:
        (work / "small").write_text("new")
    assert link.is_symlink() and (bundle / "small").read_text() == "new"
    assert _names(bundle.parent) == ["1", "current"]


def test_a_signal_at_any_line_before_the_body_leaves_nothing(bundle: Path) -> None:
    file = sys.modules[staging.__module__].__file__

    def interrupted_at(line: int) -> bool:
        left = line

        def trace(frame: FrameType, event: str, _: object) -> Any:
            nonlocal left
            if frame.f_code.co_filename == file and event == "line":
                left -= 1
                if left < 0:
                    sys.settrace(None)
                    raise KeyboardInterrupt
            return trace

        sys.settrace(trace)
        try:
            with staging(bundle, start_from=bundle):
                sys.settrace(None)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    lines = next(n for n in itertools.count() if not interrupted_at(n) or _names(bundle.parent) != ["1"])
    assert _names(bundle.parent) == ["1"] and lines > 20
