"""A bundle is the directory that is one model version. It is written atomically (`staging.py`) and opened
only if every byte is as it was written."""

import hashlib
import os
from collections.abc import Container
from pathlib import Path
from typing import TypeVar

import msgspec

from jaxrank.digests import Digests
from jaxrank.errors import BundleError
from jaxrank.host_program import HOST_SCHEMA_VERSION, HostProgram
from jaxrank.manifest import SCHEMA_VERSION, Manifest
from jaxrank.staging import staging as staging

T = TypeVar("T")

MANIFEST = "manifest.json"
HOST_PROGRAM = "host_program.json"
MODEL = "model.py"
PARAMS = "params.safetensors"
DENSE = "dense.stablehlo"
WEIGHTS = "weights.irpa"
WEIGHTS_SCOPE, PACKED_SCOPE = "model", "packed"
"""Names under which modules look weights up: in the bundle's archive, and in one of their own."""
EXAMPLES = "warmup/examples.npz"
PRECISION_EXAMPLES = "warmup/precision.npz"
"""Requests, scores and labels that bounds on lower precision were held to, where they are not the
certificate's."""
PRECISION_JSON, PRECISION_PLOT = "precision.json", "precision.svg"
"""What a search for precision measured."""


def packed_weights(module: Path) -> Path:
    """The archive beside a compiled module with weights as its products read them; not every module has
    one."""
    return module.with_suffix(".irpa")


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


def verify(bundle: Path, digests: Digests | None = None, elsewhere: Container[str] = frozenset()) -> Manifest:
    """Reads the manifest and checks the sha256 of every file it lists; `digests` remembers them for the rest
    of the command. Files of `elsewhere` are not looked at, and may be missing. Raises `BundleError` naming
    the first that differs."""
    digests = digests or Digests()
    manifest = read_manifest(bundle)
    for path, expected in manifest.files.items():
        if path in elsewhere:
            continue
        if not (bundle / path).is_file():
            raise BundleError(f"{bundle / path} is missing but listed in {MANIFEST}; copy the bundle again")
        try:
            found = digests.of(bundle / path)
        except OSError as error:
            raise BundleError(f"{bundle / path} cannot be read: {error}; copy the bundle again") from error
        if found != expected:
            raise BundleError(
                f"{bundle / path} is damaged: its sha256 is {found[:16]}…, {MANIFEST} says {expected[:16]}…; "
                "copy the bundle again or convert the model again"
            )
    return manifest


def write_manifest(bundle: Path, manifest: Manifest, digests: Digests | None = None) -> Manifest:
    """Writes `manifest.json` with the sha256 of every other file now in `bundle`; of one that is known to
    `digests`, which one command may hand from call to call, without reading it again. Returns what was
    written."""
    digests = digests or Digests()
    files = {
        path.relative_to(bundle).as_posix(): digests.of(path)
        for path in sorted(bundle.rglob("*"))
        if path.is_file() and path != bundle / MANIFEST and "__pycache__" not in path.parts
    }
    manifest = msgspec.structs.replace(manifest, files=files)
    manifest = msgspec.structs.replace(manifest, digest=_digest(manifest))
    write_json(bundle / MANIFEST, manifest)
    return manifest


def rewrite_manifest(bundle: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` as it is given, with the sha256 that it has."""
    work = bundle / f".{MANIFEST}"
    write_json(work, msgspec.structs.replace(manifest, digest=_digest(manifest)))
    work.replace(bundle / MANIFEST)


def write_json(path: Path, value: object) -> None:
    """Writes a struct as indented JSON."""
    path.write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    return Digests().of(path)


def _digest(manifest: Manifest) -> str:
    return hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(manifest, digest=""))).hexdigest()


def constant_files(manifest: Manifest) -> set[str]:
    """What compiling a bundle reads and never writes, and what may be large: tables, vocabularies,
    parameters."""
    tables = {t.file for t in manifest.tables}
    return {PARAMS, *tables, *_vocabulary_files(manifest)} & manifest.files.keys()


def host_files(manifest: Manifest) -> dict[str, str]:
    """The sha256 of what gives ids their meaning: the host program and the vocabularies."""
    return {path: manifest.files[path] for path in (HOST_PROGRAM, *sorted(_vocabulary_files(manifest)))}


def _referenced(manifest: Manifest) -> set[str]:
    """Every file that a reader opens by a name in the manifest."""
    return {
        HOST_PROGRAM,
        *(t.file for t in manifest.tables),
        *_vocabulary_files(manifest),
        *(module for t in manifest.targets for module in t.modules),
    }


def _vocabulary_files(manifest: Manifest) -> set[str]:
    names: set[str] = set()
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
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error}") from error
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
