"""The protobufs that models are saved as."""

from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf import text_format
from google.protobuf.message import DecodeError
from tensorflow.python.framework import op_def_registry

from converters.errors import ConversionError, Unsupported, UnsupportedOpsError

_LARGEST_PROTO = (1 << 31) - 1


def parse(path: Path, proto: Any) -> None:
    """Reads a binary file into a message. Raises `ConversionError` if it is too large or damaged."""
    if path.stat().st_size > _LARGEST_PROTO:
        raise ConversionError(
            f"{path} has {path.stat().st_size >> 20} MiB; a protobuf holds 2 GiB. Its weights must be "
            "variables in a checkpoint, not constants in the graph: export the model without freezing it"
        )
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, OSError) as error:
        raise ConversionError(f"{path} is damaged, it does not parse: {error}") from error


def parse_text(path: Path, proto: Any) -> None:
    """Reads a text file into a message. Raises `ConversionError` if it is damaged."""
    try:
        text_format.Parse(path.read_text(), proto)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise ConversionError(
            f"{path} is damaged, it does not parse as a {type(proto).__name__}: {error}"
        ) from error


def checkpoint_prefix(path: Path) -> Path | None:
    """The prefix of a checkpoint that has a meta graph: from the .meta file, the prefix itself, or the newest
    of a directory."""
    if path.suffix == ".meta":
        path = path.with_suffix("")
    if path.is_dir():
        latest = tf.train.latest_checkpoint(str(path))
        if latest is None:
            return None
        path = Path(latest)
    return path if Path(f"{path}.meta").is_file() else None


def refuse_unregistered(graph_def: Any, path: Path) -> None:
    """Raises `UnsupportedOpsError` with every op that this TensorFlow does not have."""
    own = {f.signature.name for f in graph_def.library.function}
    nodes = [*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)]
    missing = [
        Unsupported(
            n.name,
            n.op,
            f"{path.name} needs a custom op that this TensorFlow does not have; compute it before the model, "
            "or replace it by registered ops",
        )
        for n in nodes
        if n.op not in own and op_def_registry.get(n.op) is None
    ]
    if missing:
        raise UnsupportedOpsError(missing)


def drop_empty_attributes(graph_def: Any) -> None:
    """Reading an absent attribute of a protobuf map puts an empty one there, which TensorFlow does not
    import."""
    for node in (*graph_def.node, *(n for f in graph_def.library.function for n in f.node_def)):
        for name in [k for k, v in node.attr.items() if v.WhichOneof("value") is None]:
            del node.attr[name]


def called_function(node: Any) -> str:
    """The function that a node calls. Reading an attribute that a node has not would put an empty one there,
    with which TensorFlow does not build the graph any more."""
    return node.attr["f"].func.name if "f" in node.attr else ""
