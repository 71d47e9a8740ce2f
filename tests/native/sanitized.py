"""Builds of the native core with sanitizers: `python -m tests.native.sanitized thread` builds one and runs
every operator with damaged inputs, many threads, and damaged requests in it."""

import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nanobind

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache"
_RUNTIMES = {"address,undefined": "libasan.so", "thread": "libtsan.so"}
_OPTIONS = {
    # Python's own allocations are never freed; a leak of ours would be in every request.
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
    # Python's lock is no lock to it.
    "TSAN_OPTIONS": f"halt_on_error=1:suppressions={Path(__file__).with_name('tsan_suppressions.txt')}",
}


def built(sanitizers: str) -> Path | None:
    """The core with these sanitizers, if `make sanitize` has built it."""
    return next(_directory(sanitizers).glob("_core.*.so"), None)


def _directory(sanitizers: str) -> Path:
    return CACHE / f"core-{sanitizers.replace(',', '-')}"


def build(sanitizers: str) -> Path:
    """The core with "address,undefined" or "thread", in the cache; built where its sources changed."""
    directory = _directory(sanitizers)
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(directory), "-DCMAKE_BUILD_TYPE=Debug",
        f"-DJAXRANK_SANITIZE={sanitizers}", f"-Dnanobind_DIR={nanobind.cmake_dir()}",
        f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)
    subprocess.run(
        ["cmake", "--build", str(directory), "--parallel", str(os.cpu_count() or 1)],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return next(directory.glob("_core.*.so"))


def run(sanitizers: str, core: Path, module: str, *arguments: str) -> str:
    """Output of `python -m module ARGUMENTS CORE` with a sanitized core; raises `AssertionError` with its
    report."""
    compiler = os.environ.get("CXX", "c++")
    # Python does not have the C++ library when the sanitizer looks for what throws exceptions.
    libraries = [
        subprocess.run(
            [compiler, f"-print-file-name={name}"], capture_output=True, text=True, check=True
        ).stdout.strip()
        for name in (_RUNTIMES[sanitizers], "libstdc++.so")
    ]
    environment = {**os.environ, **_OPTIONS, "LD_PRELOAD": ":".join(libraries)}
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments, str(core)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stdout


def main() -> None:
    """Command line."""
    from tests.host import hostile

    with TemporaryDirectory() as work:
        calls = Path(work) / "calls"
        hostile.write_calls(calls, seed=5, per_operator=30)
        for sanitizers in sys.argv[1:] or _RUNTIMES:
            core = build(sanitizers)
            print(sanitizers, run(sanitizers, core, "tests.host.hostile_subject", str(calls)).strip())
            for subject in ("tests.host.threads_subject", "tests.native.messages_subject"):
                print(sanitizers, run(sanitizers, core, subject).strip())


if __name__ == "__main__":
    main()
