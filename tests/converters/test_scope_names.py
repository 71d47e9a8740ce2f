"""Scopes and names as a person would give them, from TensorFlow's names."""

from typing import Any

import onnx
import pytest

from converters.scope_names import class_name, scopes, singular_and_plural


def _linear(name: str, kernel: str, x: str = "x") -> Any:
    return onnx.helper.make_node(
        "Linear", [x, kernel], [f"{name}:0"], name=f"{name}/MatMul", domain="jaxrank"
    )


def _scopes(*nodes: Any) -> list[str]:
    found, _ = scopes(nodes, lambda node: node.op_type == "Linear", set())
    return ["/".join(found[id(node)]) for node in nodes]


def test_counters_of_calls_go_where_all_have_one() -> None:
    nodes = [_linear(f"StatefulPartitionedCall/mmoe_1/expert_{i}_1/hidden_1", f"k{i}") for i in range(2)]
    assert _scopes(*nodes) == ["expert_0/hidden", "expert_1/hidden"]


def test_numbers_that_tell_layers_apart_stay() -> None:
    nodes = [_linear(f"model/block_{i}/dense", f"k{i}") for i in range(2)]
    assert _scopes(*nodes) == ["block_0/dense", "block_1/dense"]


def test_one_layer_called_twice_keeps_its_name() -> None:
    nodes = [
        _linear("ranker_1/genres_1", "k"),
        _linear("ranker_1/genres_2", "k"),
        _linear("ranker_1/out_1", "o"),
    ]
    assert _scopes(*nodes) == ["genres", "genres", "out"]


def test_flat_names_with_a_system_are_scopes() -> None:
    names = [f"tower_{task}_{layer}" for task in ("click", "buy") for layer in ("hidden", "logit")]
    assert _scopes(*(_linear(f"m/{n}", n) for n in names)) == [
        "tower_click/hidden", "tower_click/logit", "tower_buy/hidden", "tower_buy/logit",
    ]  # fmt: skip


def test_flat_names_without_a_system_are_not() -> None:
    names = ["deep_0", "deep_1", "cross_0", "cross_1", "deep_logit", "user_hidden"]
    assert _scopes(*(_linear(f"m/{n}", n) for n in names)) == names


def test_nodes_without_a_name_belong_to_their_readers() -> None:
    inner = onnx.helper.make_node("Transpose", ["block/a:0"], ["t"], name="Transpose__17")
    nodes = [_linear("m/block/a", "a"), inner, _linear("m/block/b", "b", x="t"), _linear("m/out", "o")]
    assert _scopes(*nodes) == ["block/a", "block", "block/b", "out"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["expert_0", "expert_1"], "Expert"),
        (["click_tower", "buy_tower"], "Tower"),
        (["cross_0_expert_0", "cross_1_expert_1"], "CrossExpert"),
        (["target_attention"], "TargetAttention"),
    ],
)
def test_class_names(names: list[str], expected: str) -> None:
    assert class_name(names) == expected


def test_plurals() -> None:
    found = [singular_and_plural(w)[1] for w in ("expert", "cross", "entry", "day", "box", "towers")]
    assert found == ["experts", "crosses", "entries", "days", "boxes", "towers"]
