"""Files of a vocabulary that do not fit are refused before native code goes where they say."""

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from jaxrank.errors import BundleError
from jaxrank.manifest import Vocabulary
from serving.host.lookups import open_vocabulary, vocabulary_parts

WORDS = [b"a", b"", b"long word"]
GOOD = {
    "keys": np.frombuffer(b"".join(WORDS), np.uint8),
    "offsets": np.array([0, 1, 1, 10]),
    "values": np.array([5, 6, 7]),
}
VOCABULARY = msgspec.convert(
    {
        "name": "v", "key_dtype": "string", "value_dtype": "int64", "size": 3, "default_value": -1,
        "file": "v",
    },
    Vocabulary,
)  # fmt: skip


def _write(directory: Path, **parts: Any) -> Path:
    for name, value in (GOOD | parts).items():
        np.save(directory / f"v.{name}.npy", value)
    return directory


def test_files_that_fit(tmp_path: Path) -> None:
    find = open_vocabulary(_write(tmp_path), VOCABULARY)
    assert find(np.array([b"long word", b"", b"b"], object)).tolist() == [7, 6, -1]
    (text, offsets), values, default = vocabulary_parts(tmp_path, VOCABULARY)
    assert bytes(text) == b"along word" and offsets.tolist() == [0, 1, 1, 10]
    assert values.tolist() == [5, 6, 7] and default == -1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"offsets": np.array([0, 1, 10])}, "3 of them"),
        ({"offsets": np.array([0, 1, 1, 11])}, "does not cut the 10 bytes"),
        ({"offsets": np.array([0, 1 << 40, 1, 10])}, "does not cut"),
        ({"offsets": np.array([0, 1, -(1 << 40), 10])}, "does not cut"),
        ({"offsets": np.array([1, 1, 1, 10])}, "does not cut"),
        ({"offsets": np.array([0, 1, 1, 10], np.uint64)}, "uint64"),
        ({"offsets": np.array([[0, 1], [1, 10]])}, r"\[2, 2\]"),
        ({"keys": GOOD["keys"].astype(np.float32)}, "float32"),
        ({"keys": GOOD["keys"][:5]}, "does not cut the 5 bytes"),
        ({"values": np.array([5, 6])}, "2 values, and the manifest says 3"),
        ({"values": np.array([[5, 6, 7]])}, r"\[1, 3\]"),
        ({"values": np.array([5.0, 6.0, 7.0])}, "float64"),
    ],
)
def test_files_that_do_not_fit(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    _write(tmp_path, **parts)
    for read in (vocabulary_parts, open_vocabulary):
        with pytest.raises(BundleError, match=message):
            read(tmp_path, VOCABULARY)
