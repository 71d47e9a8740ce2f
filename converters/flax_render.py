"""A block's body as the source of a class: loops found, names given, members declared."""

import ast
import builtins
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from converters.flax_body import Body, Member
from converters.flax_loops import (
    MEMBER,
    OUTSIDE,
    VALUE,
    Comprehension,
    Loop,
    MemberKind,
    Statement,
    Step,
    merge,
    roll,
    texts,
)
from converters.names import UniqueNames, identifier
from converters.scope_names import base_name, singular_and_plural

# What nnx.Module itself has under these names.
_MODULE_NAMES = ("sow", "perturb", "iter_modules", "iter_children", "set_attributes", "train", "eval", "rngs")
RESERVED = (
    "self", "jax", "jnp", "nnx", "layers", "request", "candidate", "concatenate", "stack",
    "factorization_machine", "l2_normalize",
)  # fmt: skip
_GENERIC = {"dense", "linear", "fc", "layer"}


@dataclass(frozen=True)
class ClassBody:
    """Lines of `__init__` and `__call__`, the texts of the results, and the parameters by attribute path."""

    members: list[str]
    statements: list[str]
    results: list[str]
    weights: dict[str, np.ndarray] = field(hash=False)


def render(body: Body, inputs: Sequence[str], taken: Sequence[str], outputs: Sequence[str] = ()) -> ClassBody:
    """`inputs` are what the block's inputs are called, `taken` names that its variables must not have, and
    `outputs` what its results should be called."""
    return _Renderer(body, inputs, taken, outputs).run()


class _Renderer:
    def __init__(self, body: Body, inputs: Sequence[str], taken: Sequence[str], outputs: Sequence[str]):
        self.body = body
        kinds = {n: MemberKind(m.hint, m.constructor) for n, m in body.members.items()}
        separator = " ;; "
        steps, results = roll(body.statements, kinds, separator.join(body.outputs), len(body.hints))
        self.steps = merge(steps, results)
        self.results = results.split(separator) if body.outputs else []
        self.names = dict(zip(body.inputs, inputs, strict=True))
        self.locals = UniqueNames((*RESERVED, *dir(builtins), *taken))
        self.attributes = UniqueNames(_MODULE_NAMES)
        self.member_names: dict[int, str] = {}
        self.lists: dict[int, tuple[str, int]] = {}
        self.loop_variables: dict[str, str] = {}
        self.declared: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.wanted = {t: name for t, name in zip(self.results, outputs, strict=False)}
        self.texts = [text for step in self.steps for text in texts(step)] + self.results

    def run(self) -> ClassBody:
        listed = [members for step in self.steps for members in _lists(step)]
        alone = set(self.body.members) - {n for members in listed for n in members}
        for members in sorted([*listed, *([n] for n in alone)], key=min):
            if members[0] in alone:
                self._declare(members[0])
            else:
                self._declare_list(members)
        lines = [line for step in self.steps for line in self._lines(step)]
        return ClassBody(self.declared, lines, [self._text(r) for r in self.results], self.weights)

    def _declare(self, number: int) -> None:
        member = self.body.members[number]
        name = self.attributes.take(member.hint)
        self.member_names[number] = name
        self.declared.append(f"self.{name} = {member.constructor}")
        self._keep_weights(name, member)

    def _declare_list(self, numbers: list[int]) -> None:
        members = [self.body.members[n] for n in numbers]
        base = base_name(members[0].hint)
        singular, plural = singular_and_plural(base)
        name = plural
        if members[0].constructor.startswith("nnx."):
            name = "layers" if base in _GENERIC else singular
        name = self.attributes.take(name)
        constructors = [m.constructor for m in members]
        if len(set(constructors)) == 1:
            self.declared.append(
                f"self.{name} = nnx.List([{constructors[0]} for _ in range({len(members)})])"
            )
        else:
            self.declared.append(f"self.{name} = nnx.List([{', '.join(constructors)}])")
        for i, (number, member) in enumerate(zip(numbers, members, strict=True)):
            self.lists[number] = (name, i)
            self._keep_weights(f"{name}.{i}", member)

    def _keep_weights(self, path: str, member: Member) -> None:
        for role, value in member.weights.items():
            self.weights[f"{path}.{role}" if role else path] = value

    def _lines(self, step: Step) -> list[str]:
        if isinstance(step, Statement):
            for number in map(int, VALUE.findall(" ".join(step.lines))):
                if number not in self.names:
                    self._name(number, self.body.hints[number])
            lines = [self._substituted(line) for line in step.lines]
            text = self._text(step.text)
            for out in step.outs:
                if out not in self.names:
                    self._name(out, self._unified_hint(out, step.hint))
            return [*lines, f"{', '.join(self.names[o] for o in step.outs)} = {text}"]
        if isinstance(step, Comprehension):
            variable = self._loop_variable(step.members)
            text = self._text(step.text, {step.members[0]: variable})
            self.names[step.out] = self.locals.take(_list_name(step.hint))
            return [
                f"{self.names[step.out]} = [{text} for {variable} in self.{self.lists[step.members[0]][0]}]"
            ]
        return self._loop(step)

    def _name(self, number: int, hint: str) -> None:
        unused = number < len(self.body.hints) and self.body.hints[number] == "_"
        self.names[number] = "_" if unused else self.locals.take(hint)

    def _loop(self, loop: Loop) -> list[str]:
        variables = {members[0]: self._loop_variable(members) for members in loop.lists}
        lines: list[str] = []
        carried = loop.carried[0]
        start = self.names[loop.start]
        if self._only_carried(loop) and start.isidentifier():
            self.names[carried] = start
        else:
            self.names[carried] = self.locals.take(self._carried_hint(loop))
            lines.append(f"{self.names[carried]} = {start}")
        for later in loop.carried:
            self.names[later] = self.names[carried]
        sequences = [f"self.{self.lists[members[0]][0]}" for members in loop.lists]
        source = sequences[0] if len(sequences) == 1 else f"zip({', '.join(sequences)}, strict=True)"
        lines.append(f"for {', '.join(variables.values())} in {source}:")
        outside = self.names[loop.start]
        self.names[loop.start] = self.names[carried]
        lines.extend(self._loop_body(loop, variables, outside))
        self.names[loop.start] = outside
        return lines

    def _loop_body(self, loop: Loop, variables: dict[int, str], outside: str) -> list[str]:
        """`loop.start` is written as the carried value only where it is carried, not where all iterations
        read it."""
        lines = []
        for statement in loop.body:
            rendered = self._text(statement.text, variables).replace(OUTSIDE, outside)
            out = statement.outs[0]
            if out not in self.names:
                self.names[out] = self.locals.take(base_name(statement.hint))
            lines.append(f"    {self.names[out]} = {rendered}")
        return lines

    def _only_carried(self, loop: Loop) -> bool:
        """Whether nothing but the loop's first step reads the start."""
        mentions = sum(len(re.findall(rf"\b_v{loop.start}_\b", t)) for t in self.texts)
        inside = sum(len(re.findall(rf"\b_v{loop.start}_\b", s.text)) for s in loop.body)
        return mentions == inside and not any(OUTSIDE in s.text for s in loop.body)

    def _carried_hint(self, loop: Loop) -> str:
        hint = base_name(loop.body[-1].hint)
        return "x" if hint in (self._variable_hint(members) for members in loop.lists) else hint

    def _unified_hint(self, out: int, hint: str) -> str:
        """A value that only starts a loop is called what the loop calls it, a result what it is for."""
        if f"_v{out}_" in self.wanted:
            return identifier(self.wanted[f"_v{out}_"])
        for step in self.steps:
            if isinstance(step, Loop) and step.start == out and self._only_carried(step):
                return self._carried_hint(step)
        return hint

    def _loop_variable(self, members: list[int]) -> str:
        name = self._variable_hint(members)
        if name not in self.loop_variables:
            self.loop_variables[name] = self.locals.take(name)
        return self.loop_variables[name]

    def _variable_hint(self, members: list[int]) -> str:
        member = self.body.members[members[0]]
        return "layer" if member.constructor.startswith("nnx.Linear") else base_name(member.hint)

    def _text(self, text: str, loop_variables: dict[int, str] | None = None) -> str:
        return polished(self._substituted(text, loop_variables))

    def _substituted(self, text: str, loop_variables: dict[int, str] | None = None) -> str:
        def member(match: re.Match[str]) -> str:
            number = int(match.group(1))
            if loop_variables and number in loop_variables:
                return loop_variables[number]
            if number in self.lists:
                name, i = self.lists[number]
                return f"self.{name}[{i}]"
            return f"self.{self.member_names[number]}"

        return VALUE.sub(lambda m: self.names[int(m.group(1))], MEMBER.sub(member, text))


def polished(expression: str) -> str:
    """The expression without the parentheses that do not change how Python reads it, one axis as a number."""
    expression = re.sub(r"axis=\((\d+),\)", r"axis=\1", expression)
    meaning = ast.dump(ast.parse(expression, mode="eval"))
    at = 0
    while (at := expression.find("(", at)) >= 0:
        end = _closing(expression, at)
        shorter = f"{expression[:at]}{expression[at + 1 : end]}{expression[end + 1 :]}"
        try:
            same = ast.dump(ast.parse(shorter, mode="eval")) == meaning
        except SyntaxError:
            same = False
        expression, at = (shorter, at) if same else (expression, at + 1)
    return expression


def _closing(text: str, opening: int) -> int:
    depth = 0
    for i in range(opening, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError(f"unbalanced parentheses in {text!r}")


def _list_name(hint: str) -> str:
    singular, plural = singular_and_plural(base_name(hint))
    return plural if plural != singular else f"{singular}_list"


def _lists(step: Step) -> list[list[int]]:
    if isinstance(step, Loop):
        return step.lists
    return [step.members] if isinstance(step, Comprehension) else []
