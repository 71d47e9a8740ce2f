"""Builds and runs the C++ tests under sanitizers: `python -m tests.native.build` (`make sanitize`) for all
of them."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from serving.tables import TableWriter

SOURCE = Path(__file__).parent
PROGRAMS = ("test_tables", "test_overlay")
SANITIZERS = ("address,undefined", "thread")


def build(directory: Path, sanitizers: str, *, every_kernel: bool = True) -> Path:
    """The directory of the programs, built there or brought up to date. Without `every_kernel` with the
    kernels of no instruction set but the one that every CPU has."""
    directory.mkdir(parents=True, exist_ok=True)
    configure = ["cmake", "-S", str(SOURCE), "-B", str(directory), "-G", "Ninja", f"-DSANITIZE={sanitizers}"]
    configure.append(f"-DJAXRANK_BASELINE_KERNELS={'OFF' if every_kernel else 'ON'}")
    for command in (configure, ["cmake", "--build", str(directory)]):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return directory


def run(programs: Path, name: str, *arguments: str) -> None:
    """Raises `RuntimeError` with the report of a sanitizer or the check that failed."""
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=1", "TSAN_OPTIONS": "halt_on_error=1"}
    command = [str(programs / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stdout}{done.stderr[-6000:]}")


def write_tables(directory: Path) -> None:
    """The tables that test_tables.cc asks for."""
    rows, dim = 5000, 21
    numbers = (np.arange(rows)[:, None] * 31 + np.arange(dim)) % 100
    for row_format in ("f32", "f16", "bf16", "int8"):
        for kind in ("dense", "keyed"):
            keys = np.arange(rows) * 7919 - 100000 if kind == "keyed" else None
            path = directory / f"{row_format}-{kind}"
            with TableWriter(path, dim, row_format, kind == "keyed", "zeros") as writer:
                writer.append(numbers.astype(np.float32), keys)


def main() -> None:
    with tempfile.TemporaryDirectory() as directory:
        write_tables(Path(directory))
        for sanitizers in SANITIZERS:
            programs = build(Path(".cache/native") / sanitizers.replace(",", "-"), sanitizers)
            for program in PROGRAMS:
                run(programs, program, directory)
            print(f"{sanitizers}: ok", file=sys.stderr)


if __name__ == "__main__":
    main()
