"""Each model of the zoo, converted once for all tests that take it."""

from collections.abc import Iterator

import jax
import pytest

from converters.convert import convert
from jaxrank import bundle as files
from tests.zoo import ZOO, ZooModel
from tests.zoo.converted import Converted


@pytest.fixture(scope="session", params=ZOO, ids=lambda model: model.name)
def converted(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Converted]:
    """Every model in turn, saved and converted; pytest runs all tests of one before the next."""
    model: ZooModel = request.param
    directory = tmp_path_factory.mktemp(model.name)
    path, bundle = model.save(directory), directory / "bundle"
    convert(path, bundle, **model.options, tolerance=model.tolerance)
    yield Converted(model, path, bundle, files.verify(bundle))
    jax.clear_caches()
