"""Which module gets which format."""

import pytest

from jaxrank.manifest import PrecisionFormat
from mlir_pipeline.errors import CompileError
from mlir_pipeline.precision.rules import BODY, as_rules, check_rules, formats_of, parse_rules

MODULES = ["experts.0.hidden", "experts.0.out", "experts.1.hidden", "tower", "tower_2", BODY]


@pytest.mark.parametrize(
    ("texts", "small"),
    [
        (["experts.*=f16"], {"experts.0.hidden": "f16", "experts.0.out": "f16", "experts.1.hidden": "f16"}),
        (["experts.0=bf16"], {"experts.0.hidden": "bf16", "experts.0.out": "bf16"}),
        (["*.hidden=f16", "experts.1.*=f32"], {"experts.0.hidden": "f16"}),
        (["tower_?=f16_storage"], {"tower_2": "f16_storage"}),
        ([".=bf16"], {BODY: "bf16"}),
        (["f16", ".=f32"], dict.fromkeys(MODULES[:-1], "f16")),
    ],
)
def test_the_last_rule_that_covers_a_module_wins(texts: list[str], small: dict[str, PrecisionFormat]) -> None:
    rules = parse_rules(texts)
    check_rules(rules, MODULES)
    assert formats_of(rules, MODULES) == {**dict.fromkeys(MODULES, "f32"), **small}


def test_a_pattern_that_covers_nothing_lists_the_closest_modules_first() -> None:
    with pytest.raises(CompileError, match=r"no module .* matches 'towers'; there are: tower, tower_2, "):
        check_rules(parse_rules(["tower=f16", "towers=f16"]), MODULES)
    with pytest.raises(CompileError, match="there are: none, this model has no matrix product"):
        check_rules(parse_rules(["f16"]), [])


@pytest.mark.parametrize("text", ["experts.*=f17", "f8", "", "tower=", "tower"])
def test_a_format_that_does_not_exist_lists_those_that_do(text: str) -> None:
    with pytest.raises(CompileError, match="formats are: f32, f16, bf16, f16_storage, bf16_storage"):
        parse_rules([text])


def test_an_empty_pattern() -> None:
    with pytest.raises(CompileError, match="give a pattern"):
        parse_rules(["=f16"])


def test_rules_of_a_choice_give_the_choice_back() -> None:
    """An outer module's rule covers what is inside of it, whose own format must win."""
    modules = ["a", "a.b", "a.b.c", "d", "d.e", BODY]
    formats: dict[str, PrecisionFormat] = {"a.b": "f16", "a.b.c": "bf16", "d": "f16"}
    assert formats_of(as_rules(formats, modules), modules) == {**dict.fromkeys(modules, "f32"), **formats}
