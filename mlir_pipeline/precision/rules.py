"""Which Flax module computes in which format: `PATTERN=FORMAT` rules over module paths."""

import difflib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import get_args

from jaxrank.manifest import PrecisionFormat, PrecisionRule
from mlir_pipeline.errors import CompileError

FORMATS: tuple[PrecisionFormat, ...] = get_args(PrecisionFormat)
BODY = "."
"""The path of products that the model's own body makes, outside of every submodule."""

_SHOWN = 12


def parse_rules(texts: Sequence[str]) -> tuple[PrecisionRule, ...]:
    """Rules of `PATTERN=FORMAT` texts, in order; a FORMAT alone is for every module.

    Raises `CompileError` for an empty pattern and for a format that does not exist (all are listed).
    """
    rules: list[PrecisionRule] = []
    for text in texts:
        pattern, equals, name = text.rpartition("=")
        pattern = pattern.strip() if equals else "*"
        chosen: PrecisionFormat | None = next((f for f in FORMATS if f == name.strip()), None)
        if chosen is None:
            raise CompileError(
                f"--precision {text}: there is no format {name.strip()!r}; formats are: {', '.join(FORMATS)} "
                "(or auto, which chooses)"
            )
        if not pattern:
            raise CompileError(f"--precision {text}: give a pattern of module paths before the '='")
        rules.append(PrecisionRule(pattern=pattern, format=chosen))
    return tuple(rules)


def formats_of(rules: Sequence[PrecisionRule], modules: Sequence[str]) -> dict[str, PrecisionFormat]:
    """The format of each module path: that of the last rule that covers it, float32 where none does."""
    chosen: dict[str, PrecisionFormat] = dict.fromkeys(modules, "f32")
    for rule in rules:
        chosen.update({path: rule.format for path in modules if covers(rule.pattern, path)})
    return chosen


def check_rules(rules: Sequence[PrecisionRule], modules: Sequence[str]) -> None:
    """Raises `CompileError` for a pattern that covers no module, with the paths there are, closest first."""
    for rule in rules:
        if not any(covers(rule.pattern, path) for path in modules):
            raise CompileError(
                f"--precision {rule.pattern}={rule.format}: no module with a matrix product matches "
                f"{rule.pattern!r}; there are: {_closest(rule.pattern, modules)}"
            )


def covers(pattern: str, path: str) -> bool:
    """Whether a pattern matches a module path or one of the modules that it is inside of."""
    parts = path.split(".") if path != BODY else []
    outer = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return fnmatchcase(path, pattern) or any(fnmatchcase(module, pattern) for module in outer)


def as_rules(formats: Mapping[str, PrecisionFormat], modules: Sequence[str]) -> tuple[PrecisionRule, ...]:
    """Rules that give each of `modules` its format (float32 where there is none): a rule for each module
    that is not in float32, outer modules first, and one for each that would take its outer module's
    otherwise."""
    rules: list[PrecisionRule] = []
    for path in sorted(modules, key=lambda p: p.count(".")):
        wanted = formats.get(path, "f32")
        if formats_of(rules, [path])[path] != wanted:
            rules.append(PrecisionRule(pattern=path, format=wanted))
    return tuple(rules)


def _closest(pattern: str, modules: Sequence[str]) -> str:
    ranked = sorted(modules, key=lambda path: -difflib.SequenceMatcher(None, pattern, path).ratio())
    names = [f"{BODY} (the model's own body)" if path == BODY else path for path in ranked]
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return (", ".join(names[:_SHOWN]) or "none, this model has no matrix product") + more
