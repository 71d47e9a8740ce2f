"""A model of the zoo after its conversion."""

from dataclasses import dataclass
from pathlib import Path

import jax

from converters.convert import convert
from jaxrank import bundle as files
from jaxrank.manifest import Manifest
from tests.shared import Once
from tests.zoo.model import ZooModel


@dataclass(frozen=True)
class Converted:
    """A model, its artifact and its bundle. The bundle is read-only: copy it to change it."""

    model: ZooModel
    path: Path
    bundle: Path
    manifest: Manifest


def save_once(model: ZooModel, once: Once) -> Path:
    """The path of the model's artifact, saved once for the test run."""
    directory = once(
        f"zoo-{model.name}", lambda directory: (directory / "path").write_text(str(model.save(directory)))
    )
    return Path((directory / "path").read_text())


def convert_once(model: ZooModel, once: Once) -> Converted:
    """The model saved and converted once for the test run."""
    path = save_once(model, once)

    def build(directory: Path) -> None:
        convert(path, directory / "bundle", **model.options, tolerance=model.tolerance)
        jax.clear_caches()

    bundle = once(f"zoo-{model.name}-converted", build) / "bundle"
    return Converted(model, path, bundle, files.verify(bundle))
