"""A team's own model in the suites `dense` and `serve`: a bundle, or a SavedModel that is converted and
compiled first.

Requests come from the bundle's certificate, whose inputs were recorded or drawn when it was converted and
whose scores are TensorFlow's: the user of one example, and candidates of the same example in another order.
The baselines run the TensorFlow model. For a bundle it is one of the name that its manifest gives the source,
here or above the bundle, or a path that is given; it is taken only where it gives the certificate's scores.
"""

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxrank import bundle as files
from jaxrank.certificate import Example, load_examples
from jaxrank.errors import BundleError, JaxrankError
from jaxrank.manifest import Manifest, Signature, TensorSpec

if TYPE_CHECKING:
    from bench.dense_build import Built

_PAGE = 200
Features = dict[str, np.ndarray]
Status = Callable[[str], None]


class UserModelError(JaxrankError):
    """A path is no model, or has not what a suite needs."""


@dataclass(frozen=True)
class UserModel:
    """What the suites need of a model: see `bench.dense_models.DenseModel`."""

    built: "Built"
    examples: tuple[Example, ...]
    """Those with the most candidates."""

    @property
    def name(self) -> str:
        return self.built.name

    @property
    def signature(self) -> Signature:
        return self.built.manifest.signature

    @property
    def inputs(self) -> dict[str, tuple[int | None, ...]]:
        """Shapes by input name; a first dimension of None is the candidates', as it is sent to us."""
        return {t.name: (None if t.scope == "candidate" else 1, *t.shape[1:]) for t in self.signature.inputs}

    @property
    def request_side(self) -> bool:
        """Whether at least half of what goes into the dense half is the same for all candidates."""
        program = files.read_host_program(self.built.bundle)
        return program.width("request") >= program.width("candidate") > 0

    @property
    def shape(self) -> str:
        """Its sizes, for people."""
        scopes = [t.scope for t in self.signature.inputs]
        return f"{scopes.count('request')} inputs of the request, {scopes.count('candidate')} of candidates"

    @property
    def candidates(self) -> int:
        """Of a request in the suite `serve`: a page of results, as far as the bundle takes it."""
        return min(_PAGE, self.built.manifest.max_candidates)

    @property
    def slo_ms(self) -> float:
        """Within which 99% of all requests are to be answered, unless somebody promises something else."""
        return 100.0

    @property
    def prior(self) -> str | None:
        """An input that can stand for recall's score: a number for each of candidates that are not mixed."""
        of_candidates = (t for t in self.signature.inputs if t.scope == "candidate" and t.part == "rows")
        numbers = [t.name for t in of_candidates if t.dtype not in ("string", "bool") and 0 not in t.shape]
        return numbers[0] if numbers and self.built.manifest.row_wise else None

    def request(self, rows: int, seed: int) -> Features:
        """Features of one user against `rows` candidates."""
        return dict(self.example(rows, seed).features)

    def sent(self, rows: int, seed: int) -> Features:
        """`request`, as TensorFlow's signature takes it, which a server of ours takes, too."""
        from converters.examples import repeat_request_rows

        return repeat_request_rows(self.signature, self.request(rows, seed))

    def example(self, rows: int, seed: int) -> Example:
        """`request`, with TensorFlow's outputs where the certificate tells them: those of a model that mixes
        candidates are known for an example as it is."""
        of = self.examples[seed % len(self.examples)]
        if not self.built.manifest.row_wise and rows == of.rows:
            return of
        rng = np.random.default_rng(seed)
        turns = [rng.permutation(of.rows) for _ in range(-(-rows // of.rows))]
        chosen = np.concatenate(turns)[:rows]
        outputs = {name: value[chosen] for name, value in of.outputs.items()}
        return Example(
            take_candidates(self.signature, of.features, chosen),
            outputs if self.built.manifest.row_wise else {},
        )


def open_model(
    path: Path,
    work: Path,
    status: Status = lambda text: None,
    saved_model: Path | None = None,
    name: str | None = None,
) -> UserModel:
    """A bundle as it is, compiled for this CPU if it is not; or a TensorFlow model, converted and compiled
    into `work`, each only where the model or the compiler has changed.

    Args:
        saved_model: of a bundle, instead of the source that its manifest names.
        name: in figures and requests; `model_name` of the path by default.

    Raises:
        UserModelError: the path does not exist, or the bundle has no examples.
        JaxrankError: what the converter, the compiler or a damaged bundle says.
    """
    is_bundle = (path / files.MANIFEST).is_file()
    if not is_bundle and not path.exists():
        raise UserModelError(f"{path} does not exist; give a bundle or a SavedModel")
    directory = work / "user" / (name or model_name(path))
    directory.mkdir(parents=True, exist_ok=True)
    if is_bundle:
        built = _of_bundle(path, directory, status, saved_model)
    else:
        built = _of_source(path, directory, status)
    return UserModel(built, _examples(built.bundle, built.manifest))


def model_name(path: Path) -> str:
    """A name for figures: that of the directory, or of the one above a version's."""
    resolved = path.resolve()
    named = resolved.parent if resolved.name.isdecimal() else resolved
    return re.sub(r"[^\w.-]+", "_", named.stem if named.is_file() else named.name) or "model"


def take_candidates(
    signature: Signature, features: Mapping[str, np.ndarray], chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """The request with these of its candidates, `[n]` row numbers; one may come several times."""
    taken = dict(features)
    composite: dict[str, list[TensorSpec]] = {}
    for spec in signature.inputs:
        if spec.scope == "candidate" and spec.part == "rows":
            taken[spec.name] = features[spec.name][chosen]
        elif spec.scope == "candidate":
            composite.setdefault(spec.feature, []).append(spec)
    for parts in composite.values():
        taken.update(_take_parts(parts, features, chosen))
    return taken


def _take_parts(
    parts: Sequence[TensorSpec], features: Mapping[str, np.ndarray], chosen: np.ndarray
) -> dict[str, np.ndarray]:
    """Rows of a SparseTensor or a RaggedTensor."""
    found: dict[str, np.ndarray] = {}
    names = {spec.part: spec.name for spec in parts}
    if "sparse_shape" in names:
        indices = features[names["sparse_indices"]]
        places = [np.flatnonzero(indices[:, 0] == row) for row in chosen.tolist()]
        values = np.concatenate([np.zeros(0, np.int64), *places])
        moved = indices[values]
        moved[:, 0] = np.repeat(np.arange(len(chosen)), [len(p) for p in places])
        shape = features[names["sparse_shape"]]
        found[names["sparse_indices"]] = moved
        found[names["sparse_shape"]] = np.concatenate([[len(chosen)], shape[1:]]).astype(shape.dtype)
        found[names["sparse_values"]] = features[names["sparse_values"]][values]
        return found
    for spec in (s for s in parts if s.part == "row_splits"):  # outermost first
        splits = features[spec.name].tolist()
        ranges = [np.arange(splits[i], splits[i + 1]) for i in chosen.tolist()]
        lengths = np.cumsum([0, *map(len, ranges)])
        found[spec.name] = lengths.astype(features[spec.name].dtype)
        chosen = np.concatenate([np.zeros(0, np.int64), *ranges]).astype(np.int64)
    found[names["flat_values"]] = features[names["flat_values"]][chosen]
    return found


def _of_bundle(path: Path, directory: Path, status: Status, saved_model: Path | None) -> "Built":
    from bench.dense_build import Built
    from jaxrank.targets import choose_target

    manifest = files.verify(path)
    bundle, seconds = path, {}
    try:
        choose_target(path, manifest, "cpu")
    except BundleError:
        bundle, seconds = _compiled(
            path, directory, _key("compile", manifest.digest, "mlir_pipeline"), status
        )
    manifest = files.verify(bundle)
    status(f"{directory.name}: comparing its source with the certificate")
    source = saved_model or _named(manifest.source.path, path)
    why = _no_source(source, manifest, _examples(bundle, manifest))
    return Built(directory.name, None if why else source, bundle, manifest, seconds, directory, why)


def _of_source(path: Path, directory: Path, status: Status) -> "Built":
    from bench.dense_build import Built, Stamps
    from converters.convert import convert

    converted = directory / "converted"

    def make() -> None:
        status(f"{directory.name}: converting")
        shutil.rmtree(converted, ignore_errors=True)
        convert(path, converted)

    stamps = Stamps(directory / "stamps.json")
    first = _key("convert", _contents(path), "converters", "jaxrank")
    stamps.make("convert", first, [converted], make)
    bundle, seconds = _compiled(converted, directory, _key("compile", first, "mlir_pipeline"), status)
    return Built(directory.name, path, bundle, files.verify(bundle), seconds, directory)


def _compiled(source: Path, directory: Path, key: str, status: Status) -> tuple[Path, dict[str, float]]:
    """A copy of a bundle, compiled for this CPU with the engine that is fastest here."""
    from bench.dense_build import Stamps
    from mlir_pipeline.compile import compile_bundle
    from mlir_pipeline.engines import AUTO, parse_engines

    bundle = directory / "bundle"

    def make() -> None:
        status(f"{directory.name}: compiling")
        shutil.rmtree(bundle, ignore_errors=True)
        shutil.copytree(source, bundle)
        compile_bundle(bundle, ["cpu"], engines=parse_engines(AUTO), compare=True)

    stamps = Stamps(directory / "stamps.json")
    stamps.make("compile", key, [bundle], make)
    return bundle, stamps.seconds


def _key(step: str, *sources: str) -> str:
    from bench.dense_build import key_of

    return key_of(step, *sources)


def _contents(path: Path) -> str:
    """Digest of the names, sizes and times of a model's files: hashing gigabytes would take longer than to
    convert them."""
    found = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    stats = [f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}\n" for p in found]
    return hashlib.sha256("".join(stats).encode()).hexdigest()


def _named(name: str, bundle: Path) -> Path:
    """The source of that name: in the working directory, or above the bundle as far as its models' directory
    lies in one with it."""
    places = (Path(), *bundle.resolve().parents[:4])
    return next((place / name for place in places if (place / name).exists()), Path(name))


def _no_source(source: Path, manifest: Manifest, examples: Sequence[Example]) -> str:
    """Why a TensorFlow model cannot stand for a bundle's; empty where it gives the certificate's scores."""
    from bench.dense import largest_error
    from converters.examples import repeat_request_rows
    from converters.loaders import load

    if not source.exists():
        return f"the TensorFlow model {source}, which the bundle was made of, is not here; give --saved-model"
    example, signature = examples[0], manifest.signature
    try:
        model = load(source, signature.name, outputs=[t.name for t in signature.outputs])
        found = model.predict(repeat_request_rows(signature, example.features))
        error = largest_error([found[n] for n in example.outputs], list(example.outputs.values()))
    except Exception as reason:  # TensorFlow raises whatever it likes
        lines = str(reason).splitlines() or [type(reason).__name__]
        return f"{source} does not run in the bundle's place: {lines[0][:200]}"
    if not error <= manifest.certificate.tolerance:
        return f"{source} is not what the bundle was made of: its scores differ by {error:.1e}"
    return ""


def _examples(bundle: Path, manifest: Manifest) -> tuple[Example, ...]:
    examples = load_examples(bundle) if files.EXAMPLES in manifest.files else []
    if not examples:
        raise UserModelError(
            f"{bundle} has no examples ({files.EXAMPLES}), which requests are made of; convert the model "
            "again, with recorded requests if there are some: jaxrank convert --examples FILE"
        )
    most = max(e.rows for e in examples)
    return tuple(e for e in examples if e.rows == most)
