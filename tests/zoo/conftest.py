"""Each model of the zoo, converted once for all tests that take it."""

import pytest

from tests.shared import Once
from tests.zoo import ZOO
from tests.zoo.converted import Converted, convert_once


@pytest.fixture(scope="session", params=ZOO, ids=lambda model: model.name)
def converted(request: pytest.FixtureRequest, once: Once) -> Converted:
    """Every model in turn, saved and converted; pytest runs all tests of one before the next."""
    return convert_once(request.param, once)
