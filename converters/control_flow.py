"""TF1 loops as one node: `Enter`, `Merge`, `Switch`, `NextIteration` and `Exit` of a frame become a `_Loop`
that the evaluator builds as a functional while loop.

TensorFlow 1 writes each loop variable as Merge(Enter, NextIteration) -> Switch -> Exit when the loop ends,
and the body from Switch:1 to NextIteration (tensorflow/core/ops/control_flow_ops.cc).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from converters.errors import ConversionError


@dataclass(frozen=True)
class LoopFrame:
    """The parts of one loop, by node name; lists are in the order of the loop variables.

    `constants` are the Enter nodes of values that the loop only reads. `condition` and `next` are tensors.
    """

    merges: list[str]
    switches: list[str]
    next: list[str]
    condition: str
    constants: list[str]


@dataclass
class LoopNode:
    """Stands for a loop among NodeDefs: its inputs are the initial values, then the constants."""

    name: str
    input: list[str]
    frame: LoopFrame
    op: str = "_Loop"


def functionalize(nodes: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes with every TF1 loop as a `LoopNode`; each Exit reads its output."""
    frames: dict[str, list[Any]] = {}
    for node in nodes.values():
        if node.op in ("Enter", "RefEnter"):
            frames.setdefault(node.attr["frame_name"].s.decode(), []).append(node)
    found = dict(nodes)
    if not frames:
        return found
    consumers: dict[str, list[Any]] = {}
    for node in nodes.values():
        for text in node.input:
            consumers.setdefault(text.split(":")[0].lstrip("^"), []).append(node)
    for frame_name, enters in frames.items():
        name = f"{frame_name.strip('/')}/loop".replace("//", "/")
        loop = _frame(name, enters, consumers, nodes)
        found[name] = loop
        for at, switch in enumerate(loop.frame.switches):
            for user in consumers.get(switch, []):
                if user.op in ("Exit", "RefExit"):
                    end = type(user)()
                    end.CopyFrom(user)
                    end.op = "Identity"
                    end.input[:] = [f"{name}:{at}"]
                    found[user.name] = end
    return found


def _frame(
    name: str, enters: list[Any], consumers: Mapping[str, list[Any]], nodes: Mapping[str, Any]
) -> LoopNode:
    merges, switches, following, starts, constants, conditions = [], [], [], [], [], set()
    for enter in enters:
        merge = next((u for u in consumers.get(enter.name, []) if u.op in ("Merge", "RefMerge")), None)
        if merge is None:
            constants.append(enter)
            continue
        switch = next((u for u in consumers.get(merge.name, []) if u.op in ("Switch", "RefSwitch")), None)
        if switch is None:
            raise ConversionError(f"{merge.name}: a TF1 loop variable without a Switch; the graph is damaged")
        merges.append(merge.name)
        switches.append(switch.name)
        starts.append(enter.input[0])
        following.append(nodes[merge.input[1].split(":")[0]].input[0])
        conditions.add(nodes[switch.input[1].split(":")[0]].input[0])
    if len(conditions) != 1:
        raise ConversionError(f"{name}: a TF1 loop with {len(conditions)} conditions; the graph is damaged")
    frame = LoopFrame(merges, switches, following, conditions.pop(), [c.name for c in constants])
    return LoopNode(name, [*starts, *(c.input[0] for c in constants)], frame)
