# The MLIR and jaxpr objects of IREE and JAX ship without complete type stubs.
# pyright: reportAttributeAccessIssue=false
"""Bundles of the suite's models in a work directory that outlives a run: what has not changed is not made
again.

    WORK/<model>/saved_model/     as TensorFlow saved it
    WORK/<model>/bundle/          converted and compiled for the CPU
    WORK/<model>/bundle_<target>/ the same for another target
    WORK/<model>/static_<N>/      the same module compiled for exactly N candidates, and its weights
    WORK/<model>/stamps.json      what each of these was made from, and how many seconds that took
"""

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from bench.user_models import UserModel, UserModelError
from jaxrank import bundle as files
from jaxrank.manifest import Manifest

if TYPE_CHECKING:
    from bench.dense_models import DenseModel

ROOT = Path(__file__).parents[1]
_MODEL_SOURCES = (
    "bench/dense_models.py",
    "bench/profiles.py",
    "tests/zoo/drawing.py",
    "tests/zoo/model.py",
    "tests/zoo/saving.py",
    "tests/zoo/sequence.py",
    "tests/zoo/weights.py",
)
"""What a model is made of: its layers, their weights, and how TensorFlow saves it."""
_PACKAGES = {
    "convert": ("tensorflow", "keras", "tf2onnx", "onnx", "jax", "flax"),
    "compile": ("jax", "flax", "iree-base-compiler"),
}


class Stamp(msgspec.Struct, frozen=True):
    """What one artifact was made from, and what it cost."""

    key: str
    seconds: float


@dataclass(frozen=True)
class Built:
    """One model on disk. `seconds` are those of `convert`, `compile` and `static_<N>`, of this run or of the
    one that made them."""

    name: str
    source: Path | None
    """The TensorFlow model."""
    bundle: Path
    manifest: Manifest
    seconds: dict[str, float]
    directory: Path
    no_source: str = ""
    """Why there is no TensorFlow model."""

    @property
    def saved(self) -> Path:
        """The TensorFlow model. Raises `UserModelError` where there is none."""
        if self.source is None:
            raise UserModelError(self.no_source)
        return self.source


def build(
    model: "DenseModel | UserModel",
    work: Path,
    progress: Callable[[str], None] = lambda text: None,
    target: str = "cpu",
) -> Built:
    """Saves, converts and compiles a model for a target and every engine that takes it, the fastest here
    chosen, each only where what it is made from has changed. A user's own model comes built.

    Raises `JaxrankError`: what the converter or the compiler refuses.
    """
    from converters.convert import convert
    from mlir_pipeline.compile import compile_bundle
    from mlir_pipeline.engines import AUTO, parse_engines

    if isinstance(model, UserModel):
        return model.built
    directory = work / model.name
    directory.mkdir(parents=True, exist_ok=True)
    suffix = "" if target == "cpu" else f"_{target.replace(':', '-')}"
    saved, converted, bundle = (directory / n for n in ("saved_model", "converted", f"bundle{suffix}"))
    stamps = Stamps(directory / "stamps.json")

    def make_converted() -> None:
        shutil.rmtree(saved, ignore_errors=True)
        progress(f"{model.name}: saving")
        model.save(directory)
        progress(f"{model.name}: converting")
        convert(saved, converted)

    def make_bundle() -> None:
        progress(f"{model.name}: compiling")
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.copytree(converted, bundle)
        compile_bundle(bundle, [target], engines=parse_engines(AUTO), compare=True)

    first = key_of("convert", f"{model.inputs}", *_MODEL_SOURCES, "converters", "jaxrank")
    stamps.make("convert", first, [converted], make_converted)
    stamps.make(f"compile{suffix}", key_of("compile", first, "mlir_pipeline", AUTO), [bundle], make_bundle)
    return Built(model.name, saved, bundle, files.verify(bundle), stamps.seconds, directory)


class Scores:
    """Requests to a model, with TensorFlow's scores."""

    def __init__(self, model: "DenseModel | UserModel", built: "Built") -> None:
        from converters.loaders import load

        self._model, self._built = model, built
        signature = built.manifest.signature
        outputs = [t.name for t in signature.outputs]
        self._source = None if built.no_source else load(built.saved, signature.name, outputs=outputs)

    def request(self, rows: int, seed: int) -> tuple[dict[str, np.ndarray], Mapping[str, np.ndarray]]:
        """Features and scores. Raises `UserModelError` for a number of candidates whose scores are not
        known."""
        from converters.examples import repeat_request_rows

        manifest = self._built.manifest
        if rows > manifest.max_candidates:
            raise UserModelError(f"the bundle takes at most {manifest.max_candidates} candidates")
        if self._source is not None:
            features = self._model.request(rows, seed)
            return features, self._source.predict(repeat_request_rows(manifest.signature, features))
        assert isinstance(self._model, UserModel)
        example = self._model.example(rows, seed)
        if not example.outputs:
            raise UserModelError(
                f"the model mixes candidates, and {self._built.no_source}: TensorFlow's scores of {rows} "
                "candidates are not known"
            )
        return dict(example.features), example.outputs


def build_static(built: Built, rows: int, progress: Callable[[str], None] = lambda text: None) -> Manifest:
    """The model's module for exactly `rows` candidates: `WORK/<model>/static_<rows>/`.

    Returns a manifest with which `serving.engines.load_engine` opens that directory.
    """
    stamps = Stamps(built.directory / "stamps.json")
    directory = built.directory / f"static_{rows}"

    def make() -> None:
        progress(f"{built.name}: compiling for exactly {rows} candidates")
        shutil.rmtree(directory, ignore_errors=True)
        _compile_static(built, rows, directory)

    key = key_of("compile", stamps.key("compile"), str(rows), "mlir_pipeline", "bench/dense_build.py")
    stamps.make(directory.name, key, [directory], make)
    built.seconds.update(stamps.seconds)
    return msgspec.json.decode((directory / files.MANIFEST).read_bytes(), type=Manifest)


def _compile_static(built: Built, rows: int, directory: Path) -> None:
    from iree.compiler import ir
    from iree.runtime import save_archive_file

    from jaxrank.manifest import StateTensor
    from mlir_pipeline.dump import IrDump
    from mlir_pipeline.iree import compile_module, parse_target
    from mlir_pipeline.lower import lower
    from mlir_pipeline.passes.program import Program
    from mlir_pipeline.passes.run import PORTABLE, run_passes
    from mlir_pipeline.rewriting import trace

    towers = trace(built.bundle, rows)
    program = Program(lower(towers, ir.Context()))
    run_passes(program, PORTABLE, IrDump(None))
    directory.mkdir()
    weights = program.weights
    if weights:
        save_archive_file(weights, directory / files.WEIGHTS)
    target = built.manifest.target("cpu", "iree")
    assert target is not None
    how = parse_target("cpu")
    compile_module(
        program.text(),
        how.with_data_tiling() if target.data_tiling else how,
        directory / target.module,
        directory / files.WEIGHTS,
    )
    manifest = msgspec.structs.replace(
        built.manifest,
        state=tuple(StateTensor(shape=tuple(a.shape), dtype=str(a.dtype)) for a in towers.state),
        targets=(target,),
        row_wise=False,  # its one size is never cut into slices
        files={files.WEIGHTS: ""} if weights else {},
    )
    files.write_json(directory / files.MANIFEST, manifest)


class Stamps:
    """What is in one model's directory, and what it was made from."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = msgspec.json.decode(path.read_bytes(), type=dict[str, Stamp]) if path.is_file() else {}

    @property
    def seconds(self) -> dict[str, float]:
        return {name: stamp.seconds for name, stamp in self.held.items()}

    def key(self, name: str) -> str:
        return self.held[name].key

    def make(self, name: str, key: str, made: list[Path], make: Callable[[], None]) -> None:
        """Runs `make` unless the stamp says that `made` are from the same sources."""
        stamp = self.held.get(name)
        if stamp is not None and stamp.key == key and all(p.exists() for p in made):
            return
        start = time.monotonic()
        make()
        self.held[name] = Stamp(key, time.monotonic() - start)
        files.write_json(self.path, self.held)


def key_of(step: str, *sources: str) -> str:
    """Digest of package versions, of the files named (or under the folders named), and of other text."""
    digest = hashlib.sha256()
    for package in _PACKAGES[step]:
        digest.update(f"{package} {metadata.version(package)}\n".encode())
    for source in sources:
        path = ROOT / source if len(source) < 200 else Path("/nowhere")
        paths = sorted(path.rglob("*.py")) if path.is_dir() else [path] if path.is_file() else []
        digest.update(b"".join(p.read_bytes() for p in paths) if paths else source.encode())
    return digest.hexdigest()
