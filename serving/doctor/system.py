"""Reads a machine through its files: this one, or a directory that holds another one's."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

COMMANDS = "commands"
"""Folder of a recorded machine that holds what commands printed, a file for each."""

_COMMAND_SECONDS = 20


class System:
    """A machine as its files describe it. Paths are relative to its root, as in "proc/cpuinfo"; what was read
    is kept, so that `record` can write it down."""

    def __init__(self, root: Path = Path("/")):
        """`root` is where its file system begins: "/" is this machine, another directory a recorded one."""
        self.root = root
        self.live = root == Path("/")
        self._read: dict[str, str] = {}
        self._listed: dict[str, list[str]] = {}

    def read(self, path: str) -> str | None:
        """A file's text without white space around it; None where it is missing or may not be read."""
        try:
            text = (self.root / path).read_text(errors="replace")
        except OSError:
            return None
        self._read[path] = text
        return text.strip()

    def names(self, path: str) -> list[str]:
        """What a directory holds, numbers in their order; empty where it is missing."""
        try:
            found = [entry.name for entry in (self.root / path).iterdir()]
        except OSError:
            return []
        found.sort(key=lambda name: [int(x) if x.isdigit() else x for x in re.split(r"(\d+)", name)])
        if path != "proc":
            self._listed[path] = found
        return found

    def link(self, path: str) -> str:
        """The name of what a symbolic link leads to; a recorded machine has it in a file beside the link."""
        if not self.live:
            return self.read(f"{path}.link") or Path(path).name
        name = (self.root / path).resolve().name
        self._read[f"{path}.link"] = name
        return name

    def command(self, name: str, *arguments: str) -> str | None:
        """What a command prints; None where it is missing, fails or hangs. Of a recorded machine, what it
        printed there."""
        path = f"{COMMANDS}/{name}"
        if not self.live:
            return self.read(path)
        try:
            done = subprocess.run(
                [name, *arguments], capture_output=True, text=True, timeout=_COMMAND_SECONDS
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        if done.returncode:
            return None
        self._read[path] = done.stdout
        return done.stdout.strip()

    def processes(self) -> Iterator[tuple[int, list[str]]]:
        """Process ids and command lines, as far as this user may read them."""
        for name in self.names("proc"):
            if name.isdigit():
                try:
                    text = (self.root / "proc" / name / "cmdline").read_text(errors="replace")
                except OSError:
                    continue
                yield int(name), text.rstrip("\0\n").split("\0")

    def record(self, directory: Path) -> None:
        """Writes down every file that was read and every command's output; `System(directory)` then gives the
        same findings, but for libraries and processes."""
        for path, text in self._read.items():
            target = directory / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text)
        for path, names in self._listed.items():
            (directory / path).mkdir(parents=True, exist_ok=True)
            for name in names:
                if not (directory / path / name).exists():
                    (directory / path / name).touch()


def numbers(ranges: str) -> list[int]:
    """The numbers of a kernel list such as "0-3,8-11"; empty of "". Raises `ValueError`."""
    found: list[int] = []
    for part in filter(None, ranges.strip().split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def chosen(setting: str) -> str:
    """The choice in brackets of a kernel setting such as "always [madvise] never"."""
    found = re.search(r"\[(\S+)\]", setting)
    return found.group(1) if found else setting


def mib(size: float) -> str:
    """A size in bytes, for people."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"
