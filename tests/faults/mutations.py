"""Valid requests, and what makes hostile ones of them.

A mutation is data, so that hypothesis can draw and shrink it: what to do, where (a share of the length or of
the fields), and a number to do it with.
"""

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from hypothesis import strategies as st

NUMBERS = (0, 1, -1, 2, 7, 127, -128, 255, 2**31 - 1, -(2**31), 2**32, 2**53 + 1, 2**63 - 1, -(2**63))
TEXTS = ("", "x", "ranker", "../ranker", "serving_default", "click", "item_id", "\0", "☃" * 50, "9" * 400)
MANY = (10_000, 200_000)
"""Elements that a flood adds, at least and at most."""
LARGEST = (2**63 - 1, 2**31 - 1, 1)
"""What a flood is of: numbers whose product is long. The first one that a field takes."""
FLOATS = (0.0, -1.0, 1e38, 1e-45, float("inf"), float("-inf"), float("nan"))


class Mutation(NamedTuple):
    """`where` is from 0 to 1, `number` chooses a value."""

    kind: str
    where: float
    number: int


MUTATIONS = st.lists(
    st.builds(
        Mutation,
        st.sampled_from(["set", "set", "clear", "repeat", "flip", "cut", "insert", "copy"]),
        st.floats(0, 1, exclude_max=True),
        st.integers(0, 2**16),
    ),
    min_size=1,
    max_size=4,
)


def mutated(message: Message, mutations: Sequence[Mutation]) -> bytes:
    """The bytes of a message after mutations: of its fields first, then of its bytes."""
    changed = type(message).FromString(message.SerializeToString())
    for mutation in mutations:
        if mutation.kind in ("set", "clear", "repeat"):
            _change(changed, mutation)
        elif mutation.kind == "flood" and (places := floodable(changed)):
            _flood(*_pick(places, mutation.where), mutation.number)
    return bytes_mutated(changed.SerializeToString(), mutations)


def bytes_mutated(data: bytes, mutations: Sequence[Mutation]) -> bytes:
    """Flips, cuts, insertions and copies, wherever they fall."""
    for kind, where, number in mutations:
        at = int(where * len(data))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << number % 8)]) + data[at + 1 :]
        elif kind == "cut":
            data = data[:at] + data[at + number % 64 :]
        elif kind == "insert":
            data = data[:at] + number.to_bytes(3, "little") * (1 + number % 5) + data[at:]
        elif kind == "copy":
            data = data[:at] + data[at : at + number % 200] + data[at:]
    return data


def json_mutated(document: Any, mutations: Sequence[Mutation]) -> bytes:
    """The text of a JSON document after mutations of its values, then of its bytes."""
    document = json.loads(json.dumps(document))
    for kind, where, number in mutations:
        if kind == "flood":
            container, key = _pick(lists(document), where)
            first = container[key][0] if container[key] else 0
            container[key] += [LARGEST[0] if isinstance(first, int) else first] * _many(number)
        elif kind in ("set", "clear", "repeat"):
            parent, key = _pick(_places(document), where)
            if kind == "clear":
                del parent[key]
            elif kind == "repeat" and isinstance(parent, list):
                parent.extend([parent[key]] * (number % 50))
            else:
                values = (*NUMBERS, *TEXTS, *FLOATS, None, True, [], {}, [[]], [[[[1]]]], {"b64": "!"})
                parent[key] = values[number % len(values)]
        if not document:
            break
    return bytes_mutated(json.dumps(document).encode(), mutations)


def lists(document: Any) -> list[tuple[Any, Any]]:
    """Every list in a document, as its (container, key)."""
    return [(parent, key) for parent, key in _places(document) if isinstance(parent[key], list)]


def floodable(message: Message) -> list[tuple[Message, FieldDescriptor]]:
    """The repeated fields, but for maps, in a message and in those inside of it: one place of each field."""
    found = {}
    for inside in _messages(message):
        for field in inside.DESCRIPTOR.fields:
            if field.is_repeated and not _is_map(field):
                found.setdefault(field.full_name, (inside, field))
    return list(found.values())


def _many(number: int) -> int:
    least, most = MANY
    return least + number * (most - least) // 2**16


def _flood(message: Message, field: FieldDescriptor, number: int) -> None:
    """More elements than anybody sends, all at once."""
    values = getattr(message, field.name)
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        one = values[0] if values else values.add()
        values.extend([type(one).FromString(one.SerializeToString())] * _many(number))
        return
    for value in (*LARGEST, "x", b"x"):
        try:
            values.extend([value] * _many(number))
        except (ValueError, TypeError):  # out of the field's range, or of another type
            continue
        return


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else []
    found = []
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found


def _pick(places: list, where: float) -> Any:
    return places[int(where * len(places))]


def _messages(message: Message) -> list[Message]:
    """A message and all that are inside of it."""
    found = [message]
    for field, value in message.ListFields():
        if field.type != FieldDescriptor.TYPE_MESSAGE:
            continue
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].type == FieldDescriptor.TYPE_MESSAGE:
                for key in sorted(value):
                    found += _messages(value[key])
        else:
            for each in value if field.is_repeated else (value,):
                found += _messages(each)
    return found


def _change(message: Message, mutation: Mutation) -> None:
    inside = _messages(message)
    target = _pick(inside, mutation.where)
    fields = [f for f in target.DESCRIPTOR.fields if not _is_map(f)]
    maps = [f for f in target.DESCRIPTOR.fields if _is_map(f)]
    if mutation.kind == "clear" or not fields:
        names = [f.name for f, _ in target.ListFields()] or [f.name for f in maps]
        if names:
            target.ClearField(names[mutation.number % len(names)])
        return
    field = fields[mutation.number % len(fields)]
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        value = getattr(target, field.name)
        value.add() if field.is_repeated else value.SetInParent()
        return
    value = _value(field, mutation.number)
    try:
        if not field.is_repeated:
            setattr(target, field.name, value)
        else:
            getattr(target, field.name).extend([value] * (1 + mutation.number % 40))
    except (ValueError, TypeError, DecodeError):
        return  # the value is out of the field's range


def _is_map(field: FieldDescriptor) -> bool:
    return field.type == FieldDescriptor.TYPE_MESSAGE and field.message_type.GetOptions().map_entry


def _value(field: FieldDescriptor, number: int) -> Any:
    number //= 7
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            text = TEXTS[number % len(TEXTS)]
            return text.encode() if field.type == FieldDescriptor.TYPE_BYTES else text
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return FLOATS[number % len(FLOATS)]
        case FieldDescriptor.CPPTYPE_BOOL:
            return bool(number % 2)
        case FieldDescriptor.CPPTYPE_ENUM:
            return number % 30
    return NUMBERS[number % len(NUMBERS)]
