"""String operators. Strings are bytes; only where `encoding` or `unit` says so are they read as UTF-8."""

import base64
import binascii
from collections.abc import Callable, Sequence

import numpy as np

from serving.host.operators.registry import Lookups, Operator, axis_of, check, refuse, scalar, strings
from serving.native import _core

_SPACE = b" \t\n\v\f\r"


def _each(texts: np.ndarray, function: Callable[[bytes], bytes]) -> np.ndarray:
    return strings([function(text) for text in texts.ravel().tolist()], texts.shape)


def string_to_hash_bucket(lookups: Lookups, texts: np.ndarray, *, num_buckets: int) -> np.ndarray:
    """int64 bucket of each string by TensorFlow's first hash."""
    out = np.empty(texts.size, np.int64)
    _core.hash_bucket(texts.ravel().tolist(), num_buckets, out)
    return out.reshape(texts.shape)


def string_to_hash_bucket_fast(lookups: Lookups, texts: np.ndarray, *, num_buckets: int) -> np.ndarray:
    """int64 bucket of each string by FarmHash's Fingerprint64."""
    out = np.empty(texts.size, np.int64)
    _core.hash_bucket_fast(texts.ravel().tolist(), num_buckets, out)
    return out.reshape(texts.shape)


def string_to_hash_bucket_strong(
    lookups: Lookups, texts: np.ndarray, *, num_buckets: int, key: Sequence[int]
) -> np.ndarray:
    """int64 bucket of each string by SipHash with a key of two int64."""
    check(len(key) == 2, f"the key of a strong hash has two values, found {list(key)}")
    out = np.empty(texts.size, np.int64)
    _core.hash_bucket_strong(
        texts.ravel().tolist(), num_buckets, int(key[0]) % 2**64, int(key[1]) % 2**64, out
    )
    return out.reshape(texts.shape)


def hash_bucket_fast(lookups: Lookups, texts: np.ndarray, *, buckets: int) -> np.ndarray:
    """`string_to_hash_bucket_fast` under the name that older bundles use."""
    return string_to_hash_bucket_fast(lookups, texts, num_buckets=buckets)


def _character_starts(text: bytes) -> list[int]:
    """Where characters begin: every byte that does not continue one."""
    return [i for i, byte in enumerate(text) if byte & 0xC0 != 0x80]


def string_length(lookups: Lookups, texts: np.ndarray, *, unit: str = "BYTE") -> np.ndarray:
    """int32 number of bytes, or of UTF-8 characters."""
    measure: Callable[[bytes], int] = (
        len if unit == "BYTE" else lambda text: sum(byte & 0xC0 != 0x80 for byte in text)
    )
    return np.array([measure(text) for text in texts.ravel().tolist()], np.int32).reshape(texts.shape)


def _change_case(texts: np.ndarray, encoding: str, change: Callable) -> np.ndarray:
    if encoding == "":
        return _each(texts, lambda text: change(text))
    check(encoding.lower() == "utf-8", f"encoding {encoding!r} is not supported, only '' and 'utf-8'")
    # TensorFlow hands a C string to ICU: what follows a NUL is lost.
    return _each(texts, lambda text: change(text.split(b"\0")[0].decode("utf-8", "replace")).encode())


def string_lower(lookups: Lookups, texts: np.ndarray, *, encoding: str = "") -> np.ndarray:
    """Lower case of ASCII letters, or of all letters of UTF-8."""
    return _change_case(texts, encoding, lambda text: text.lower())


def string_upper(lookups: Lookups, texts: np.ndarray, *, encoding: str = "") -> np.ndarray:
    """Upper case of ASCII letters, or of all letters of UTF-8."""
    return _change_case(texts, encoding, lambda text: text.upper())


def string_strip(lookups: Lookups, texts: np.ndarray) -> np.ndarray:
    """Without ASCII white space at both ends."""
    return _each(texts, lambda text: text.strip(_SPACE))


def string_join(lookups: Lookups, *inputs: np.ndarray, separator: str = "") -> np.ndarray:
    """Strings of one shape (scalars stand for all) joined element by element."""
    shapes = {value.shape for value in inputs if value.ndim}
    check(len(shapes) <= 1, f"strings of shapes {sorted(map(list, shapes))} to join")
    shape = shapes.pop() if shapes else ()
    size = int(np.prod(shape, dtype=np.int64))
    flat = [v.ravel().tolist() if v.ndim or not shape else v.ravel().tolist() * size for v in inputs]
    between = separator.encode("utf-8", "surrogateescape")
    return strings([between.join(parts) for parts in zip(*flat, strict=True)], shape)


def _sparse_rows(rows: Sequence[list[bytes]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.array([len(row) for row in rows], np.int64)
    total = int(lengths.sum())
    column = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    indices = np.column_stack([np.repeat(np.arange(len(rows)), lengths), column]).astype(np.int64)
    shape = np.array([len(rows), lengths.max(initial=0)], np.int64)
    return indices, strings([text for row in rows for text in row]), shape


def string_split(
    lookups: Lookups, texts: np.ndarray, delimiter: np.ndarray, *, skip_empty: bool = True
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sparse matrix of the pieces of each string. Every byte of the delimiter delimits; an empty one cuts
    after each byte."""
    check(texts.ndim == 1 and delimiter.ndim == 0, "string_split takes a vector and a scalar delimiter")
    marks: bytes = scalar(delimiter, "delimiter")

    def split(text: bytes) -> list[bytes]:
        if not marks:
            return [text[i : i + 1] for i in range(len(text))]
        if not text:
            return []
        pieces = text.translate(bytes.maketrans(marks, marks[:1] * len(marks))).split(marks[:1])
        at, out = 0, []
        for piece in pieces:  # cut from the original: the translation has other bytes only at delimiters
            out.append(text[at : at + len(piece)])
            at += len(piece) + 1
        return [piece for piece in out if piece] if skip_empty else out

    return _sparse_rows([split(text) for text in texts.tolist()])


def string_split_v2(
    lookups: Lookups, texts: np.ndarray, sep: np.ndarray, *, maxsplit: int = -1
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A sparse matrix of the pieces of each string, as `bytes.split`; an empty separator means runs of white
    space."""
    check(texts.ndim == 1 and sep.ndim == 0, "string_split_v2 takes a vector and a scalar separator")
    separator = scalar(sep, "sep") or None

    def split(text: bytes) -> list[bytes]:
        if maxsplit == 0:
            return [text]
        pieces = text.split(separator, maxsplit)
        if separator is None and len(pieces) == maxsplit:
            pieces.append(b"")  # TensorFlow adds what is left after the last split, be it empty
        return pieces

    return _sparse_rows([split(text) for text in texts.tolist()])


def substr(
    lookups: Lookups, texts: np.ndarray, pos: np.ndarray, length: np.ndarray, *, unit: str = "BYTE"
) -> np.ndarray:
    """`length` bytes or characters from `pos` on; a negative `pos` counts from the end. `pos` and `length`
    are of one shape and broadcast with the strings."""
    check(
        pos.shape == length.shape, f"pos {list(pos.shape)} and len {list(length.shape)} of different shapes"
    )
    try:
        shape = np.broadcast_shapes(texts.shape, pos.shape)
    except ValueError:
        refuse(f"pos of shape {list(pos.shape)} for strings of shape {list(texts.shape)}")

    def cut(text: bytes, first: int, count: int) -> bytes:
        starts = [*_character_starts(text), len(text)] if unit == "UTF8_CHAR" else range(len(text) + 1)
        size = len(starts) - 1
        check(-size <= first <= size, f"pos {first} out of range for string {text!r}")
        if unit == "UTF8_CHAR" and count < 0:  # in bytes it means "to the end"
            check(first >= 0, f"pos {first} with len {count} in characters")
            return b""
        begin = first + size if first < 0 else first
        end = size if count < 0 else min(begin + count, size)
        return text[starts[begin] : starts[end]]

    flat = [np.broadcast_to(v, shape).ravel().tolist() for v in (texts, pos, length)]
    return strings([cut(*args) for args in zip(*flat, strict=True)], shape)


def reduce_join(
    lookups: Lookups,
    inputs: np.ndarray,
    reduction_indices: np.ndarray,
    *,
    keep_dims: bool = False,
    separator: str = "",
) -> np.ndarray:
    """Strings joined over dimensions, in the order in which the dimensions are named; no dimension named
    joins nothing."""
    axes = [axis_of(int(a), inputs.ndim) for a in reduction_indices.ravel()]
    check(len(set(axes)) == len(axes), f"dimensions {reduction_indices.tolist()} name one twice")
    kept = [i for i in range(inputs.ndim) if i not in axes]
    sizes = [inputs.shape[i] for i in kept]
    rows = inputs.transpose([*kept, *reversed(axes)]).reshape(
        int(np.prod(sizes, dtype=np.int64)), int(np.prod([inputs.shape[i] for i in axes], dtype=np.int64))
    )
    joined = strings([separator.encode().join(row) for row in rows.tolist()])
    return joined.reshape(
        [1 if i in axes else inputs.shape[i] for i in range(inputs.ndim)] if keep_dims else sizes
    )


def string_n_grams(
    lookups: Lookups,
    data: np.ndarray,
    data_splits: np.ndarray,
    *,
    separator: str,
    ngram_widths: Sequence[int],
    left_pad: str,
    right_pad: str,
    pad_width: int,
    preserve_short_sequences: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """n-grams of each ragged row, all of the first width before those of the next, and their row splits."""
    check(data_splits.size == 0 or data_splits[0] == 0, "row splits must begin with 0")
    check(
        data_splits.size == 0 or data_splits[-1] == data.size,
        "row splits do not end with the number of strings",
    )
    check((np.diff(data_splits) >= 0).all(), "row splits decrease")
    between, left, right = (s.encode() for s in (separator, left_pad, right_pad))
    texts, counts, out = data.tolist(), [], []
    for first, stop in zip(data_splits[:-1].tolist(), data_splits[1:].tolist(), strict=True):
        row, before = texts[first:stop], len(out)
        for width in ngram_widths:
            # A pad wider than the n-gram less one would make n-grams of pads alone.
            pad = min(width - 1, pad_width) if pad_width >= 0 else width - 1
            padded = [left] * pad + row + [right] * pad if row or pad else row
            out += [between.join(padded[i : i + width]) for i in range(len(padded) - width + 1)]
        if preserve_short_sequences and len(out) == before and row:
            width = min(ngram_widths)
            pad = min(width - 1, pad_width) if pad_width >= 0 else width - 1
            out.append(between.join([left] * pad + row + [right] * pad))
        counts.append(len(out) - before)
    splits = np.concatenate([[0], np.cumsum(counts)]) if data_splits.size else np.zeros(0)
    return strings(out), splits.astype(data_splits.dtype)


def encode_base64(lookups: Lookups, texts: np.ndarray, *, pad: bool = False) -> np.ndarray:
    """Web-safe base64, with `=` at the end if `pad`."""
    encode = base64.urlsafe_b64encode
    return _each(texts, encode if pad else lambda text: encode(text).rstrip(b"="))


_WEB_SAFE = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


def decode_base64(lookups: Lookups, texts: np.ndarray) -> np.ndarray:
    """The bytes of web-safe base64, with or without `=` at the end."""

    def decode(text: bytes) -> bytes:
        digits = text.rstrip(b"=")
        padding = len(text) - len(digits)
        fits = padding == 0 or (padding <= 2 and len(text) % 4 == 0)
        check(
            fits and len(digits) % 4 != 1 and _WEB_SAFE.issuperset(digits), f"{text!r} is not web-safe base64"
        )
        try:
            return base64.urlsafe_b64decode(digits + b"=" * (-len(digits) % 4))
        except binascii.Error as error:
            refuse(f"{text!r} is not base64: {error}")

    return _each(texts, decode)


def decode_raw(
    lookups: Lookups, texts: np.ndarray, *, out_type: str, little_endian: bool = True
) -> np.ndarray:
    """The bytes of each string as numbers, `[..., numbers]`; all strings are of one length."""
    dtype = np.dtype(out_type)
    if texts.size == 0:
        return np.zeros((*texts.shape, 0), dtype)
    lengths = {len(text) for text in texts.ravel().tolist()}
    check(len(lengths) == 1, f"strings of lengths {sorted(lengths)} to decode")
    size = lengths.pop()
    check(size % dtype.itemsize == 0, f"{size} bytes are not a multiple of {dtype.itemsize}")
    ordered = dtype.newbyteorder("<" if little_endian else ">")
    values = np.frombuffer(b"".join(texts.ravel().tolist()), ordered)
    return values.astype(dtype).reshape(*texts.shape, size // dtype.itemsize)


OPERATORS: dict[str, Operator] = {
    "hash_bucket_fast": hash_bucket_fast,
    "string_to_hash_bucket": string_to_hash_bucket,
    "string_to_hash_bucket_fast": string_to_hash_bucket_fast,
    "string_to_hash_bucket_strong": string_to_hash_bucket_strong,
    "string_length": string_length,
    "string_lower": string_lower,
    "string_upper": string_upper,
    "string_strip": string_strip,
    "string_join": string_join,
    "string_split": string_split,
    "string_split_v2": string_split_v2,
    "substr": substr,
    "reduce_join": reduce_join,
    "string_n_grams": string_n_grams,
    "encode_base64": encode_base64,
    "decode_base64": decode_base64,
    "decode_raw": decode_raw,
}
