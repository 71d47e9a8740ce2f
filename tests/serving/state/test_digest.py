"""Digests tell requests apart, handles name them, and an account tells whether either is worth it."""

import numpy as np
import pytest

from serving.errors import InvalidRequestError
from serving.state import Handle
from serving.state.account import Account
from serving.state.digest import digest


def _strings(*rows: list[bytes]) -> np.ndarray:
    found = np.empty((len(rows), len(rows[0])), object)
    found[:] = rows
    return found


REQUESTS = {
    "ints": [np.array([[1, 2]]), np.array([3.0])],
    "another value": [np.array([[1, 2]]), np.array([3.5])],
    "another shape": [np.array([[1], [2]]), np.array([3.0])],
    "values over a border": [np.array([[1]]), np.array([2]), np.array([3.0])],
    "another order": [np.array([3.0]), np.array([[1, 2]])],
    "minus zero": [np.array([-0.0])],
    "zero": [np.array([0.0])],
    "strings": [_strings([b"ab", b"c"])],
    "strings cut elsewhere": [_strings([b"a", b"bc"])],
    "strings in another shape": [_strings([b"ab"], [b"c"])],
    "an empty string": [_strings([b"", b"abc"])],
    "nothing": [np.zeros((1, 0))],
    "no inputs": [],
}


def test_different_contents_have_different_digests() -> None:
    found = {name: digest(values) for name, values in REQUESTS.items()}
    assert len(set(found.values())) == len(found)
    assert {len(value) for value in found.values()} == {16}


def test_equal_contents_have_one_digest_however_they_lie_in_memory() -> None:
    values = np.arange(24).reshape(4, 6)
    strings = _strings([b"x", b"y"])
    again = _strings([bytes(bytearray(b"x")), bytes(bytearray(b"y"))])
    assert digest([values[:, ::2], strings]) == digest([values[:, ::2].copy(), again])


def test_a_handle_is_its_text() -> None:
    handle = Handle(1_700_000_000, digest([]))
    assert Handle.parse(str(handle)) == handle
    for text in (
        "",
        "3",
        "3-xyz",
        f"-1-{'0' * 32}",
        f"3-{'0' * 31}",
        f"3-{'0' * 33}",
        f"{'9' * 30}-{'0' * 32}",
    ):
        with pytest.raises(InvalidRequestError, match="is not a state handle"):
            Handle.parse(text)


def _share_looked_for(made_ns: int, digest_ns: int, hit_every: int, requests: int = 50_000) -> float:
    account, looked = Account(), 0
    for i in range(requests):
        if account.look():
            looked += 1
            hit = hit_every > 0 and i % hit_every > 0
            if not hit:
                account.made(made_ns)
            account.looked(digest_ns, hit)
    return looked / requests


@pytest.mark.parametrize(
    ("made_ns", "digest_ns", "hit_every", "least", "most"),
    [
        pytest.param(200_000, 5_000, 10, 1.0, 1.0, id="slices of one request"),
        pytest.param(2_000, 5_000, 10, 0.0, 0.07, id="a request side cheaper than its digest"),
        pytest.param(200_000, 5_000, 0, 0.0, 0.07, id="no request comes twice"),
        pytest.param(200_000, 5_000, 2, 1.0, 1.0, id="every request comes twice"),
    ],
)
def test_looking_costs_no_more_than_it_saves(
    made_ns: int, digest_ns: int, hit_every: int, least: float, most: float
) -> None:
    assert least <= _share_looked_for(made_ns, digest_ns, hit_every) <= most


def test_traffic_that_changes_is_noticed() -> None:
    account = Account()
    for repeated in (False, True):
        for _ in range(20_000):
            if account.look():
                if not repeated:
                    account.made(200_000)
                account.looked(5_000, repeated)
    assert all(account.look() for _ in range(1_000))
