"""Labels of recorded requests: what happened, beside what was asked."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from converters.errors import ConversionError
from jaxrank.manifest import Signature

_PREFIX = "labels/"


def is_label(name: str, signature: Signature) -> bool:
    """Whether an array of a request, `labels/<output>`, holds labels; an input of that name is an input."""
    return name.startswith(_PREFIX) and all(name != t.name for t in signature.inputs)


def read_labels(path: Path, signature: Signature) -> Mapping[str, Mapping[str, np.ndarray]]:
    """The labels of an `.npz`'s requests by request and output: bool arrays `[rows, ...]`, from 0 and 1.

    Raises `ConversionError` for an output that does not exist and for labels other than 0 and 1.
    """
    outputs = {t.name for t in signature.outputs}
    found: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as stored:
        for key in stored.files:
            request, _, name = key.partition("/")
            if not is_label(name, signature):
                continue
            output = name.removeprefix(_PREFIX)
            if output not in outputs:
                raise ConversionError(
                    f"{path}: {key} labels the output {output!r}; outputs are: {', '.join(sorted(outputs))}"
                )
            value = stored[key]
            if value.dtype.kind not in "biuf" or not np.isin(value, (0, 1)).all():
                raise ConversionError(f"{path}: {key} holds labels other than 0 and 1")
            found.setdefault(request, {})[output] = value.astype(bool)
    return found
