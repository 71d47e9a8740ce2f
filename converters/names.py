"""Readable, unique Python names from TensorFlow's scopes."""

import keyword
import re

_WRAPPERS = re.compile(
    r"^(StatefulPartitionedCall|PartitionedCall|functional|model|sequential|Tensordot|batchnorm)(_\d+)*$"
)

_GENERIC = re.compile(
    r"^(embeddings?|embedding_weights|weights?|table|variable|part|concat|read|kernel)$", re.I
)


def scope_parts(node_name: str) -> list[str]:
    """The parts of a TensorFlow name without the calls and models that only wrap it."""
    parts = [p for p in node_name.split("/") if p]
    kept = [p for p in parts if not _WRAPPERS.match(p)]
    return kept or parts[-1:]


def table_name(variable: str) -> str:
    """`user_city_embedding` of `dnn/user_city_embedding/embedding_weights/part_0:0`: the last part that
    says more than that it is a table."""
    parts = [re.sub(r"(:0)?(_\d+)?$", "", p) for p in scope_parts(variable)]
    telling = [p for p in parts if not _GENERIC.match(p)]
    return identifier((telling or parts)[-1])


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
