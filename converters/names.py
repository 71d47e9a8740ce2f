"""Readable, unique Python names from TensorFlow's scopes."""

import keyword
import re

_WRAPPERS = re.compile(
    r"^(StatefulPartitionedCall|PartitionedCall|functional|model|sequential|Tensordot|batchnorm)(_\d+)*$"
)


def scope_parts(node_name: str) -> list[str]:
    """The parts of a TensorFlow name without the calls and models that only wrap it."""
    parts = [p for p in node_name.split("/") if p]
    kept = [p for p in parts if not _WRAPPERS.match(p)]
    return kept or parts[-1:]


def layer_name(node_name: str) -> str:
    """The layer a node belongs to: the last scope before the op, without the counter that Keras adds at each
    call."""
    parts = scope_parts(node_name)
    return identifier(re.sub(r"_\d+$", "", parts[-2]) if len(parts) > 1 else parts[-1])


def identifier(text: str) -> str:
    """A valid lower-case Python name."""
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", text)
    name = re.sub(r"\W+", "_", name).strip("_").lower() or "value"
    if name[0].isdigit():
        name = f"v{name}"
    return f"{name}_" if keyword.iskeyword(name) else name


class UniqueNames:
    """Hands out each name once; a second taker gets `name_2`, a third `name_3`."""

    def __init__(self, reserved: tuple[str, ...] = ()):
        self._taken = set(reserved)

    def take(self, name: str) -> str:
        unique, count = name, 1
        while unique in self._taken:
            count += 1
            unique = f"{name}_{count}"
        self._taken.add(unique)
        return unique
