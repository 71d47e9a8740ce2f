"""A bundle is the directory that is one model version. This file writes one atomically and opens one only if
every byte is as it was written."""

import ctypes
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import msgspec

from jaxrank.errors import BundleError, DestinationError
from jaxrank.host_program import HOST_SCHEMA_VERSION, HostProgram
from jaxrank.manifest import SCHEMA_VERSION, Manifest

T = TypeVar("T")

MANIFEST = "manifest.json"
HOST_PROGRAM = "host_program.json"
MODEL = "model.py"
PARAMS = "params.safetensors"
DENSE = "dense.stablehlo"
WEIGHTS = "weights.irpa"
WEIGHTS_SCOPE = "model"
"""Name under which modules look their weights up in the archive."""
EXAMPLES = "warmup/examples.npz"
PRECISION_EXAMPLES = "warmup/precision.npz"
"""Requests, scores and labels that bounds on lower precision were held to, where they are not the
certificate's."""
PRECISION_JSON, PRECISION_PLOT = "precision.json", "precision.svg"
"""What a search for precision measured."""


def read_manifest(bundle: Path) -> Manifest:
    """Reads `manifest.json` without checking the other files. Raises `BundleError`."""
    manifest = _decode(bundle / MANIFEST, Manifest, SCHEMA_VERSION)
    if manifest.digest != _digest(manifest):
        raise BundleError(
            f"{bundle / MANIFEST} is damaged: its contents are not those that its digest was made of; "
            "copy the bundle again or convert the model again"
        )
    unlisted = sorted(_referenced(manifest) - manifest.files.keys())
    if unlisted:
        raise BundleError(
            f"{bundle / MANIFEST} refers to {', '.join(unlisted)} without a sha256; do not use it"
        )
    for path in manifest.files:
        inside = Path(os.path.normpath(bundle / path))
        if not inside.is_relative_to(os.path.normpath(bundle)):
            raise BundleError(
                f"{bundle / MANIFEST} lists a file outside of the bundle: {path!r}; do not use this bundle"
            )
    return manifest


def read_host_program(bundle: Path) -> HostProgram:
    """Reads `host_program.json`. Raises `BundleError`."""
    return _decode(bundle / HOST_PROGRAM, HostProgram, HOST_SCHEMA_VERSION)


def verify(bundle: Path) -> Manifest:
    """Reads the manifest and checks the sha256 of every file it lists. Raises `BundleError` naming the first
    that differs."""
    manifest = read_manifest(bundle)
    for path, expected in manifest.files.items():
        if not (bundle / path).is_file():
            raise BundleError(f"{bundle / path} is missing but listed in {MANIFEST}; copy the bundle again")
        found = sha256(bundle / path)
        if found != expected:
            raise BundleError(
                f"{bundle / path} is damaged: its sha256 is {found[:16]}…, {MANIFEST} says {expected[:16]}…; "
                "copy the bundle again or convert the model again"
            )
    return manifest


def write_manifest(bundle: Path, manifest: Manifest) -> Manifest:
    """Writes `manifest.json` with the sha256 of every other file now in `bundle`. Returns what was
    written."""
    files = {
        path.relative_to(bundle).as_posix(): sha256(path)
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path != bundle / MANIFEST and "__pycache__" not in path.parts
    }
    manifest = msgspec.structs.replace(manifest, files=files)
    manifest = msgspec.structs.replace(manifest, digest=_digest(manifest))
    write_json(bundle / MANIFEST, manifest)
    return manifest


def write_json(path: Path, value: object) -> None:
    """Writes a struct as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


@contextmanager
def staging(destination: Path, *, start_from: Path | None = None) -> Iterator[Path]:
    """A temporary directory beside `destination` that takes its place only if the body succeeds.

    With `start_from` it begins as a copy of that directory. Nothing is left behind on failure; an existing
    destination stays as it was until the new one is complete. Raises `DestinationError` where the files
    cannot be written.
    """
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    except OSError as error:
        raise DestinationError(f"{destination} cannot be written: {error}; give another place") from error
    try:
        if start_from is not None:
            shutil.copytree(
                start_from, work, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
            )
        yield work
        work.chmod(0o755)
        if destination.exists():
            _exchange(work, destination)
        else:
            os.rename(work, destination)
    except OSError as error:
        raise DestinationError(f"writing {destination} failed: {error}; nothing was written") from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _exchange(work: Path, destination: Path) -> None:
    """Swaps two directories, on Linux in one step: a kill leaves one of them whole in either place."""
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    if renameat2 and not renameat2(here, os.fsencode(work), here, os.fsencode(destination), exchange):
        return
    old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old.", dir=destination.parent))
    os.rename(destination, old / destination.name)
    try:
        os.rename(work, destination)
    except OSError:
        os.rename(old / destination.name, destination)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))).hexdigest()


def _referenced(manifest: Manifest) -> set[str]:
    """Every file that a reader opens by a name in the manifest."""
    names = {
        HOST_PROGRAM,
        *(t.file for t in manifest.tables),
        *(module for t in manifest.targets for module in t.modules),
    }
    for vocabulary in manifest.vocabularies:
        parts = ["keys", "values"]
        parts += ["offsets"] if vocabulary.key_dtype == "string" else []
        parts += ["value_offsets"] if vocabulary.value_dtype == "string" else []
        names.update(f"{vocabulary.file}.{part}.npy" for part in parts)
    return names


def _decode(path: Path, kind: type[T], schema_version: int) -> T:
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{path} does not exist; is {path.parent} a bundle written by `jaxrank convert`?"
        ) from error
    try:
        version = msgspec.json.decode(data, type=_Versioned).schema_version
    except msgspec.DecodeError as error:
        raise BundleError(f"{path} is not a {kind.__name__}: {error}") from error
    versions = f"it has schema version {version}, this one reads {schema_version}"
    if version > schema_version:
        raise BundleError(
            f"{path} is from a newer jaxrank: {versions}; install the jaxrank that wrote it, or convert the "
            "model and compile it again with this one"
        )
    if version < schema_version:
        raise BundleError(
            f"{path} is from an older jaxrank: {versions}; convert the model and compile it again"
        )
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.DecodeError as error:
        raise BundleError(f"{path} is not a {kind.__name__}: {error}") from error


class _Versioned(msgspec.Struct):
    schema_version: int
