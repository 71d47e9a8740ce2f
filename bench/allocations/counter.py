"""Builds the library that counts allocations."""

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("counter.cc")


def build(directory: Path) -> Path:
    """The counting library in `directory`, built where it is missing or older than its source. Raises
    `FileNotFoundError` without a C++ compiler (`CXX`, else c++)."""
    library = directory / "liballocation_counter.so"
    if library.is_file() and library.stat().st_mtime >= SOURCE.stat().st_mtime:
        return library
    directory.mkdir(parents=True, exist_ok=True)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    with tempfile.TemporaryDirectory(dir=directory) as work:
        built = Path(work) / library.name
        # no-builtin: the compiler knows malloc, and may turn malloc and memset in here into calloc.
        flags = ["-std=c++20", "-O2", "-fPIC", "-shared", "-fno-builtin", "-Wall", "-Wno-ignored-attributes"]
        subprocess.run([*compiler, *flags, str(SOURCE), "-o", str(built), "-ldl"], check=True)
        built.rename(library)
    return library
