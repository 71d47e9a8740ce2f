"""The order of operators where tables are in other tiers: lookups that wait for a network or a disk wait
together."""

from collections.abc import Container, Sequence
from dataclasses import dataclass

from jaxrank.host_program import HostOperator


@dataclass(frozen=True)
class Wave:
    """Indexes of operators: first `before`, one by one, then `lookups`, all at once."""

    before: tuple[int, ...]
    lookups: tuple[int, ...]


def waves(operators: Sequence[HostOperator], tiered: Container[str]) -> list[Wave]:
    """Every operator in the first wave in which its inputs are there; lookups in a table of `tiered` as the
    end of theirs. Operators are given, and stay, in an order in which they can run."""
    ready: dict[str, int] = {}
    before: dict[int, list[int]] = {}
    lookups: dict[int, list[int]] = {}
    for index, operator in enumerate(operators):
        wave = max((ready.get(name, 0) for name in operator.inputs), default=0)
        waits = operator.attrs.get("table", "") in tiered
        (lookups if waits else before).setdefault(wave, []).append(index)
        ready.update(dict.fromkeys(operator.outputs, wave + waits))
    last = max((*before, *lookups), default=-1)
    return [Wave(tuple(before.get(w, ())), tuple(lookups.get(w, ()))) for w in range(last + 1)]
