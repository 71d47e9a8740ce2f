"""Conditionals and loops of a graph that is evaluated: a known condition takes its branch; otherwise both
branches are computed and the condition chooses. Loops stay, without what no trip changes.

TF1 conditionals: the values of a branch are tagged with what they depend on; where two meet, the condition
chooses.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf

from converters.dataflow import Body, argument_itself
from converters.errors import ConversionError
from converters.flat_graph import Dead
from converters.tf_ops import valid_name

if TYPE_CHECKING:
    from converters.evaluate import Evaluator


def switch(
    run: "Evaluator", inputs: list[Any], tags: dict[tuple[str, int], frozenset], name: str, above: frozenset
) -> dict[int, Any]:
    data, condition = inputs
    known = run.static(condition)
    if known is not None:
        return {int(known): data, 1 - int(known): Dead()}
    tags[name, 0] = above | {(id(condition), False)}
    tags[name, 1] = above | {(id(condition), True)}
    run.made.setdefault(("condition", id(condition)), [condition])
    return {0: data, 1: data}


def merge(run: "Evaluator", inputs: list[Any], tags: list[frozenset], name: str) -> tuple[Any, frozenset]:
    alive = [(v, t) for v, t in zip(inputs, tags, strict=True) if not isinstance(v, Dead)]
    if len(alive) < 2:
        return alive[0] if alive else (Dead(), frozenset())
    (a, tags_a), (b, tags_b) = alive
    for condition, side in tags_a:
        if (condition, not side) in tags_b:
            (predicate,) = run.made["condition", condition]
            then, otherwise = (a, b) if side else (b, a)
            rest = frozenset(t for t in tags_a | tags_b if t[0] != condition)
            return _select(run, predicate, then, otherwise, name), rest
    raise ConversionError(f"{name} merges two branches of different conditions; TensorFlow 1 writes none")


def _select(run: "Evaluator", condition: Any, then: Any, otherwise: Any, name: str) -> Any:
    if then is otherwise:
        return then
    made = tf.raw_ops.SelectV2(
        condition=condition,
        t=run.tensor(then, name),
        e=run.tensor(otherwise, name),
        name=valid_name(name),
    )
    run.flat.sources.setdefault(made.op.name, name)
    return made


def conditional(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    condition, *arguments = inputs
    branches = [node.attr[f"{side}_branch"].func.name for side in ("then", "else")]
    known = run.static(condition)
    if known is not None:
        run.gone(name, node.op, "its condition is a constant")
        return run.call(branches[0 if known.reshape(()) else 1], arguments, f"{name}/")
    if condition.dtype != tf.bool:
        condition = tf.not_equal(condition, tf.zeros([], condition.dtype))
    then, otherwise = (
        run.call(b, arguments, f"{name}/{s}/") for b, s in zip(branches, ("then", "else"), strict=True)
    )
    run.gone(name, node.op, "both branches are computed and the condition chooses")
    return [_select(run, condition, a, b, name) for a, b in zip(then, otherwise, strict=True)]


def case(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    index, *arguments = inputs
    branches = [f.name for f in node.attr["branches"].list.func]
    known = run.static(index)
    last = len(branches) - 1
    if known is not None:
        run.gone(name, node.op, "its branch is a constant")
        at = int(known) if 0 <= int(known) <= last else last
        return run.call(branches[at], arguments, f"{name}/")
    found = run.call(branches[last], arguments, f"{name}/branch{last}/")
    for i in range(last):
        branch = run.call(branches[i], arguments, f"{name}/branch{i}/")
        found = [_select(run, tf.equal(index, i), a, b, name) for a, b in zip(branch, found, strict=True)]
    run.gone(name, node.op, "all branches are computed and the index chooses")
    return found


def functional_loop(run: "Evaluator", node: Any, inputs: list[Any], name: str) -> list[Any]:
    """A While of TensorFlow 2."""
    condition, loop = node.attr["cond"].func.name, node.attr["body"].func.name
    return _loop(
        run,
        lambda values: run.call(condition, values, f"{name}/cond/")[0],
        lambda values, wanted: run.call(loop, values, f"{name}/", wanted),
        _unchanging(run.body(loop)),
        inputs,
        name,
    )


def _loop(
    run: "Evaluator",
    condition: Callable[[list[Any]], Any],
    loop: Callable[[list[Any], Sequence[int]], list[Any]],
    never: set[int],
    inputs: list[Any],
    name: str,
) -> list[Any]:
    """A loop. `never` are the variables that no trip changes: its parts read them from outside."""
    fixed = {i for i, v in enumerate(inputs) if i in never or not isinstance(v, tf.Tensor)}
    varying = [i for i in range(len(inputs)) if i not in fixed]

    def values(current: Sequence[Any]) -> list[Any]:
        found = list(inputs)
        for i, value in zip(varying, current, strict=True):
            found[i] = value
        return found

    def step(*current: Any) -> list[Any]:
        outputs = [run.tensor(v, name) for v in loop(values(current), varying)]
        for i, output in zip(varying, outputs, strict=True):
            # Lists forget their elements' shapes; a loop variable has the shape that it starts with.
            if output.shape.is_compatible_with(inputs[i].shape):
                output.set_shape(inputs[i].shape)
        return outputs

    found = tf.while_loop(
        lambda *current: run.tensor(condition(values(current)), name),
        step,
        [inputs[i] for i in varying],
        shape_invariants=[inputs[i].shape for i in varying],
        name=valid_name(name.rsplit("/", 1)[-1]),
    )
    run.kept.add(name)
    flat = list(found) if isinstance(found, (list, tuple)) else [found]
    for tensor in flat:
        run.flat.sources.setdefault(tensor.op.name, name)
    return values(flat)


def loop_frame(
    run: "Evaluator", node: Any, inputs: list[Any], env: dict[str, dict[int, Any]], body: Body, prefix: str
) -> list[Any]:
    """A TF1 loop (see `control_flow.functionalize`)."""
    frame = node.frame
    outer = {name: {0: v} for name, v in zip(frame.constants, inputs[len(frame.merges) :], strict=True)}
    merged = Body(body.nodes, [], frame.merges)
    switched = Body(body.nodes, [], [f"{s}:1" for s in frame.switches])

    def start(names: list[str], values: list[Any], port: int) -> dict[str, dict[int, Any]]:
        inner = {k: dict(v) for k, v in outer.items()}
        inner.update((n, {port: v}) for n, v in zip(names, values, strict=True))
        return inner

    def condition(values: list[Any]) -> Any:
        return run.frame(merged, start(frame.merges, values, 0), [frame.condition], prefix)[0]

    def loop(values: list[Any], wanted: Sequence[int]) -> list[Any]:
        inner = start(frame.switches, values, 1)
        inner.update((n, {0: v}) for n, v in zip(frame.merges, values, strict=True))
        return run.frame(switched, inner, [frame.next[i] for i in wanted], prefix)

    never = {i for i, n in enumerate(frame.next) if n.split(":")[0] == frame.switches[i]}
    return _loop(run, condition, loop, never, inputs[: len(frame.merges)], prefix + node.name)


def _unchanging(loop: Body) -> set[int]:
    """Positions of a loop's variables that its body hands on as they are."""
    return {i for i, result in enumerate(loop.results) if argument_itself(loop, result) == i}
