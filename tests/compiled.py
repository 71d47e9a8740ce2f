"""What IREE compiled in this test run, for all of its processes: the same text with the same flags gives the
same bytes (tests/mlir_pipeline/test_compile.py), and many tests compile the same model."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import iree.compiler.tools as iree_tools

_compile = iree_tools.compile_str


@contextmanager
def kept_in(directory: Path) -> Iterator[None]:
    """`iree.compiler.tools.compile_str` to a file copies what it made before from the directory."""
    directory.mkdir(parents=True, exist_ok=True)

    def compile_str(text: str, **options: Any) -> Any:
        output = options.get("output_file")
        if output is None:
            return _compile(text, **options)
        key = repr([text, *sorted((k, v) for k, v in options.items() if k != "output_file")])
        kept = directory / hashlib.sha256(key.encode()).hexdigest()
        if not kept.exists():
            _compile(text, **options)
            part = kept.with_suffix(f".{os.getpid()}")
            shutil.copyfile(output, part)
            part.rename(kept)
        else:
            shutil.copyfile(kept, output)

    with replaced(compile_str):
        yield


@contextmanager
def replaced(compile_str: Callable[..., Any] = _compile) -> Iterator[None]:
    """For as long as the context lasts; the compiler itself by default."""
    before, iree_tools.compile_str = iree_tools.compile_str, compile_str
    try:
        yield
    finally:
        iree_tools.compile_str = before
