"""A model of the zoo after its conversion."""

from dataclasses import dataclass
from pathlib import Path

from jaxrank.manifest import Manifest
from tests.zoo.model import ZooModel


@dataclass(frozen=True)
class Converted:
    """A model, its artifact and its bundle. The bundle is read-only: copy it to change it."""

    model: ZooModel
    path: Path
    bundle: Path
    manifest: Manifest
