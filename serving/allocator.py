"""The allocator of a server: jemalloc, preloaded by starting the process once more, or what there is.

`decide` says what to do, `start_again` does it. The process that was started again finds `MARK` in its
environment and never starts itself another time, whatever the loader made of the preload.
"""

import ctypes
import os
import platform
import re
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jaxrank.errors import JaxrankError
from serving.cores import usable_cores
from serving.memory import mallctl_text

MARK = "JAXRANK_PRELOADED"
"""Names the library that this process was started again with; it is taken out of the environment at once."""

PACKAGE = "libjemalloc2"
"""Debian's and Ubuntu's package of jemalloc."""

_NAMES = ("libjemalloc.so.2", "libjemalloc.so")
_DIRECTORIES = (
    "usr/lib64",
    "usr/lib",
    "lib64",
    "lib",
    "usr/local/lib",
    "usr/local/lib64",
    "opt/homebrew/lib",
)


class AllocatorError(JaxrankError):
    """`--jemalloc` names a file that is not jemalloc for this machine."""


@dataclass(frozen=True)
class Allocator:
    """What answers `malloc` in a process: its name, its version where it says, and its library."""

    name: str
    version: str
    library: str

    def __str__(self) -> str:
        return f"{self.name}{self.version and ' '}{self.version} ({self.library})"


@dataclass(frozen=True)
class Decision:
    """What to do about the allocator.

    Attributes:
        environment: what to start the process again with; None: go on as it is.
        message: for the log.
        advice: whether the message is one to act on.
    """

    environment: dict[str, str] | None
    message: str
    advice: bool = False


def malloc_conf(cores: int) -> str:
    """jemalloc's options for a server on `cores` cores; docs/memory.md has what each was measured to give."""
    options = {
        "background_thread": "true",
        "metadata_thp": "auto",
        "thp": "always",
        "dirty_decay_ms": "30000",
        "muzzy_decay_ms": "30000",
        "narenas": str(max(2, cores)),
    }
    return ",".join(f"{name}:{value}" for name, value in options.items())


def decide(
    wanted: str, environment: Mapping[str, str], running: Allocator, root: Path = Path("/")
) -> Decision:
    """What a server does about its allocator.

    Args:
        wanted: "auto", "off", or the path of a libjemalloc.
        environment: of this process.
        running: what answers `malloc` now.
        root: where to look for libraries.

    Raises:
        AllocatorError: `wanted` is a path of something else.
    """
    options = (
        f"MALLOC_CONF={environment['MALLOC_CONF']}" if "MALLOC_CONF" in environment else "no MALLOC_CONF"
    )
    if MARK in environment:
        if running.name == "jemalloc":
            return Decision(None, f"allocator: {running}, {options}")
        return Decision(
            None,
            f"allocator: {running}; {environment[MARK]} was preloaded and does not answer malloc: another "
            "library in LD_PRELOAD does, or the loader refused it",
            advice=True,
        )
    library = None if wanted in ("auto", "off") else check_jemalloc(Path(wanted))
    if wanted == "off":
        return Decision(None, f"allocator: {running}, as --jemalloc off asks")
    if running.name not in ("glibc", "musl"):
        advice = running.name == "jemalloc" and "MALLOC_CONF" not in environment
        hint = f"; for the options that jaxrank would set: MALLOC_CONF={malloc_conf(usable_cores(root))}"
        return Decision(
            None,
            f"allocator: {running}, preloaded by you and left alone, {options}{hint if advice else ''}",
            advice,
        )
    library = library or find_jemalloc(root)
    if library is None:
        return Decision(
            None,
            f"allocator: {running}; no libjemalloc was found, and under it a server takes fewer page faults: "
            f"apt-get install {PACKAGE} (Debian, Ubuntu), or --jemalloc PATH",
            advice=True,
        )
    preload = ":".join(filter(None, (environment.get("LD_PRELOAD"), str(library))))
    # The user's libraries come first, so that theirs answer; the user's options stay as they are.
    conf = environment.get("MALLOC_CONF", malloc_conf(usable_cores(root)))
    again = {**environment, "LD_PRELOAD": preload, "MALLOC_CONF": conf, MARK: str(library)}
    return Decision(again, f"starting again with LD_PRELOAD={preload} MALLOC_CONF={conf}")


def start_again(environment: Mapping[str, str]) -> str:
    """Replaces this process by the same command with another environment: same process id, same files.

    A process that does nothing else tries the environment first: a damaged library would end this one.
    Returns only where that or the system fails: the reason.
    """
    command = [sys.executable, "-I", "-S", "-c", "import ctypes; ctypes.CDLL(None).mallctl"]
    try:
        tried = subprocess.run(command, env=dict(environment), capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if tried.returncode:
        said = (tried.stderr.strip().splitlines() or [""])[0]
        return f"a process under it ended with status {tried.returncode}{said and ': '}{said}"
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], dict(environment))
    except OSError as error:
        return str(error)


def running_allocator() -> Allocator:
    """What answers `malloc` in this process, as the dynamic loader resolved it."""
    library = _library_of("malloc")
    version = mallctl_text("version")
    name = Path(library).name
    if version is not None and (owner := _library_of("mallctl")) == library:
        return Allocator("jemalloc", version.partition("-")[0], owner)
    for pattern, known in (("tcmalloc", "tcmalloc"), ("mimalloc", "mimalloc"), ("musl", "musl")):
        if pattern in name:
            return Allocator(known, "", library)
    if re.match(r"(libc[.-]|ld-linux)", name):
        return Allocator("glibc", platform.libc_ver()[1], library)
    return Allocator("an allocator", "", library)


def find_jemalloc(root: Path = Path("/")) -> Path | None:
    """A libjemalloc for this machine: from the dynamic loader's cache, then in the usual directories."""
    cache = root / "etc/ld.so.cache"
    cached = re.findall(rb"/[^\0]*/libjemalloc\.so[^\0]*", cache.read_bytes()) if cache.is_file() else []
    places = [root / os.fsdecode(path).lstrip("/") for path in cached]
    triplet = f"usr/lib/{platform.machine()}-linux-gnu"
    places += [root / directory / name for directory in (triplet, *_DIRECTORIES) for name in _NAMES]
    return next((place for place in places if place.is_file() and not _refusal(place)), None)


def check_jemalloc(library: Path) -> Path:
    """The absolute path of a libjemalloc that can be preloaded here. Raises `AllocatorError`."""
    if refusal := _refusal(library):
        raise AllocatorError(
            f"--jemalloc {library}: {refusal}; name a libjemalloc.so.2 for {platform.machine()} (Debian and "
            f"Ubuntu: apt-get install {PACKAGE}), or auto, or off"
        )
    return library.absolute()


def _refusal(library: Path) -> str:
    """Why a file cannot be preloaded as jemalloc; empty when it can."""
    try:
        content = library.read_bytes()
    except OSError as error:
        return error.strerror or str(error)
    if any(character in str(library.absolute()) for character in ": "):
        return "LD_PRELOAD takes no path with a colon or a space"
    if content[:4] != b"\x7fELF":
        return "not an ELF library"
    if _machine(content) != _machine(Path(sys.executable).read_bytes()[:64]):
        return "a library for another kind of CPU than this Python's"
    if b"\0mallctl\0" not in content or b"\0malloc\0" not in content:
        return "no jemalloc: it has no mallctl, or answers malloc under another name"
    return ""


def _machine(header: bytes) -> tuple[bytes, int]:
    """Class, byte order and machine of an ELF header (System V ABI, "ELF Header")."""
    order = "<" if header[5:6] == b"\x01" else ">"
    return header[4:6], struct.unpack_from(f"{order}H", header, 18)[0]


class _DlInfo(ctypes.Structure):
    """`Dl_info` of dlfcn.h."""

    _fields_ = [
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    ]


def _library_of(symbol: str) -> str:
    """The file that defines a symbol of this process."""
    process = ctypes.CDLL(None)
    info = _DlInfo()
    address = ctypes.cast(getattr(process, symbol), ctypes.c_void_p)
    if not process.dladdr(address, ctypes.byref(info)) or not info.dli_fname:
        return "unknown"
    return os.fsdecode(info.dli_fname)
