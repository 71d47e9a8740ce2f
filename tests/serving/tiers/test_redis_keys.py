"""Names and slots, beside redis-py's own."""

import numpy as np
import pytest
from redis.crc import key_slot

from serving.tiers.redis_keys import SLOTS, TableKeys, bucket_tags


@pytest.mark.parametrize("buckets", [1, 3, 256, 1024])
def test_slots_are_redis_and_equally_far_apart(buckets: int) -> None:
    names = TableKeys(b"prefix", buckets)
    assert [key_slot(names.marker(b)) for b in range(buckets)] == names.slots
    assert names.slots == [b * SLOTS // buckets for b in range(buckets)]
    assert len(set(bucket_tags(buckets))) == buckets


@pytest.mark.parametrize("seed", range(3))
def test_a_plan_asks_for_every_key_once_in_its_slot(seed: int) -> None:
    rng = np.random.default_rng(seed)
    names = TableKeys(b"\r\n$*{}", 64)
    keys = np.unique(rng.integers(-(2**63), 2**63 - 1, 500))
    nodes = rng.integers(0, 5, 64)
    plan = names.plan(keys, nodes)
    assert np.array_equal(keys[plan.order], plan.keys)
    assert (np.diff(plan.nodes) >= 0).all()
    seen = []
    for run, bucket in enumerate(plan.buckets):
        mine = plan.names(run)
        assert plan.nodes[run] == nodes[bucket]
        assert {key_slot(name) for name in mine} == {names.slots[bucket]}
        arguments = b"".join(b"$%d\r\n%b\r\n" % (len(name), name) for name in mine)
        assert plan.mget(run) == b"*%d\r\n$4\r\nMGET\r\n" % (len(mine) + 1) + arguments
        seen += [int.from_bytes(name[-8:], "big", signed=True) for name in mine]
    assert seen == plan.keys.tolist()


def test_rows_divide_evenly() -> None:
    """Buckets of consecutive ids and of ids far apart have equal shares, within five standard deviations."""
    names = TableKeys(b"prefix", 256)
    for keys in (np.arange(256_000), np.arange(256_000) * 4096):
        counts = np.bincount(names.bucket_of(keys), minlength=256)
        assert abs(counts - 1000).max() < 5 * np.sqrt(1000)
