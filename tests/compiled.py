"""What IREE compiled in this test run, for all of its processes: the same text with the same flags gives the
same bytes (tests/mlir_pipeline/test_compile.py), and many tests compile the same model."""

import functools
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import iree.compiler.tools as iree_tools

_compile = iree_tools.compile_str
_ENCODER = "--iree-parameter-encoder-output-file="


@contextmanager
def kept_in(directory: Path) -> Iterator[None]:
    """`iree.compiler.tools.compile_str` to a file copies what it made before from the directory."""
    directory.mkdir(parents=True, exist_ok=True)

    def compile_str(text: str, **options: Any) -> Any:
        output = options.get("output_file")
        if output is None:
            return _compile(text, **options)
        # A module's encoder (mlir_pipeline/packing.py) is a second file, and its name no part of the module.
        second = {f.partition("=")[2] for f in options.get("extra_args", ()) if f.startswith(_ENCODER)}
        given = [text, *sorted((k, v) for k, v in options.items() if k != "output_file")]
        key = functools.reduce(lambda text, name: text.replace(name, ""), second, repr(given))
        kept = directory / hashlib.sha256(key.encode()).hexdigest()
        files = {kept.with_suffix(f".{i}"): Path(name) for i, name in enumerate(second)}
        files[kept] = Path(output)  # the last one: when it is there, all are
        if not kept.exists():
            _compile(text, **options)
            for name, made in files.items():
                if made.exists():
                    part = name.with_name(f"{name.name}.{os.getpid()}")
                    shutil.copyfile(made, part)
                    part.rename(name)
        else:
            for name, wanted in files.items():
                if name.exists():
                    shutil.copyfile(name, wanted)

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
