"""What becomes a loop and what does not, on statements as the writer makes them."""

import pytest

from converters.flax_loops import Comprehension, Loop, MemberKind, Statement, Step, merge, roll

LINEAR, EXPERT = "nnx.Linear(8, 8, rngs=rngs)", "_C0_(rngs=rngs)"


def _roll(
    texts: list[str], hints: list[str], results: str, constructor: str = LINEAR
) -> tuple[list[Step], str]:
    """Statement i makes value i + 1 (value 0 is the input); member i is called `hints[i]`."""
    statements = [Statement([i + 1], text, f"value_{i}") for i, text in enumerate(texts)]
    members = {i: MemberKind(hint, constructor) for i, hint in enumerate(hints)}
    return roll(statements, members, results, len(texts) + 1)


def test_a_chain_is_a_loop() -> None:
    steps, results = _roll(
        ["relu(self._m0_(_v0_))", "relu(self._m1_(_v1_))", "relu(self._m2_(_v2_))"],
        ["deep_0", "deep_1", "deep_2"],
        "_v3_",
    )
    (loop,) = steps
    assert isinstance(loop, Loop)
    assert (loop.lists, loop.start, loop.carried, results) == ([[0, 1, 2]], 0, [1, 2, 3], "_v3_")


def test_a_chain_that_also_reads_its_start() -> None:
    """A cross layer: the first iteration reads the same value as start and as constant."""
    steps, _ = _roll(
        ["_v0_ * self._m0_(_v0_) + _v0_", "_v0_ * self._m1_(_v1_) + _v1_"], ["cross_0", "cross_1"], "_v2_"
    )
    (loop,) = steps
    assert isinstance(loop, Loop)
    assert [s.text for s in loop.body] == ["_outside_ * self._m0_(_v0_) + _v0_"]


def test_a_start_that_is_read_inside_a_merged_statement() -> None:
    """The same in three statements, which are written as one afterwards."""
    texts = []
    for i, x in enumerate((0, 3)):
        texts += [f"self._m{i}_(_v{x}_)", f"_v0_ * _v{3 * i + 1}_", f"_v{3 * i + 2}_ + _v{x}_"]
    statements = [Statement([i + 1], text, f"value_{i}", takes=99) for i, text in enumerate(texts)]
    members = {i: MemberKind(f"cross_{i}", LINEAR) for i in range(2)}
    steps, results = roll(statements, members, "_v6_", 7)
    (loop,) = merge(steps, results)
    assert isinstance(loop, Loop)
    assert [s.text for s in loop.body] == ["_outside_ * self._m0_(_v0_) + _v0_"]


def test_iterations_of_two_statements() -> None:
    texts = [
        "self._m0_(_v0_)",
        "relu(self._m1_(_v1_) + _v0_)",
        "self._m2_(_v2_)",
        "relu(self._m3_(_v3_) + _v2_)",
    ]
    steps, _ = _roll(texts, ["a_0", "b_0", "a_1", "b_1"], "_v4_")
    (loop,) = steps
    assert isinstance(loop, Loop)
    assert loop.lists == [[0, 2], [1, 3]]


def test_the_same_input_gives_a_list() -> None:
    texts = ["self._m0_(_v0_)", "self._m1_(_v0_)", "stack([_v1_, _v2_], axis=1)"]
    steps, results = _roll(texts, ["expert_0", "expert_1"], "_v3_ + _v1_", EXPERT)
    assert isinstance(steps[0], Comprehension)
    assert isinstance(steps[1], Statement) and steps[1].text == "stack(_v4_, axis=1)"
    assert results == "_v3_ + _v4_[0]"


@pytest.mark.parametrize(
    ("texts", "hints", "results"),
    [
        pytest.param(["self._m0_(_v0_)", "self._m1_(_v0_)"], ["query", "key"], "_v1_ + _v2_", id="roles"),
        pytest.param(
            ["relu(self._m0_(_v0_))", "tanh(self._m1_(_v1_))"], ["a_0", "a_1"], "_v2_", id="other activation"
        ),
        pytest.param(
            ["relu(self._m0_(_v0_))", "relu(self._m1_(_v1_))"], ["a_0", "a_1"], "_v1_ + _v2_",
            id="a middle value that is read later",
        ),
        pytest.param(
            ["relu(self._m0_(_v0_))", "relu(self._m0_(_v1_))"], ["a_0"], "_v2_", id="one layer applied twice"
        ),
        pytest.param(["self._m0_(_v0_)", "self._m1_(_v1_)"], ["a_0", "b_1"], "_v2_", id="other names"),
    ],
)  # fmt: skip
def test_no_loop(texts: list[str], hints: list[str], results: str) -> None:
    steps, left = _roll(texts, hints, results)
    assert all(isinstance(step, Statement) for step in steps)
    assert left == results


def test_short_values_that_are_read_once_are_written_in_place() -> None:
    statements = [Statement([1], "_v0_ + 1.0", "total"), Statement([2], "tanh(_v1_)", "tanh", takes=44)]
    (only,) = merge(list(statements), "_v2_")
    assert isinstance(only, Statement) and only.text == "tanh(_v0_ + 1.0)"
    assert (
        len(merge([Statement([1], "_v0_", "x"), Statement([2], "_v1_ * _v1_", "y", takes=44)], "_v2_")) == 2
    )
