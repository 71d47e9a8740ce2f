"""A host program of 100 features as ranking models have them, its bundle, its requests, and the same in
TensorFlow.

What the features are, 30 of them the user's and 70 one for each candidate:

| features | what is done with each |
|---|---|
| 35 int64 ids (15 + 20) | row of an embedding table; tables of 1,000 to 1,000,000 rows of 16 |
| 20 strings (5 + 15) | FarmHash bucket, row of a table of 100,000 rows of 16 |
| 15 strings (5 + 10) | entry of a vocabulary of 50,000 words, row of a table of 50,001 rows of 8 |
| 20 floats (5 + 15) | log1p, one of 32 buckets, row of a table of 33 rows of 8 |
| 10 lists of 10 ids (0 + 10) | mean of the rows of those that are not -1, of 100,000 rows of 16 |

The popularity of rows follows Zipf's law with exponent 1 (half of the lookups in a table of n rows go to √n
of them), and popular rows are scattered over the table. The tables together take about 900 MiB.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from jaxrank import bundle as files
from jaxrank.host_program import HOST_SCHEMA_VERSION, BlockColumn, HostOperator, HostProgram
from jaxrank.manifest import (
    SCHEMA_VERSION,
    Certificate,
    Manifest,
    Scope,
    Signature,
    Source,
    Table,
    TensorSpec,
    Vocabulary,
)
from serving.tables import TableWriter, open_table

_BOUNDARIES = np.linspace(0.1, 6, 32).astype(np.float32).tolist()
_LIST = 10
_WORDS = 50_000
_HASHED = 100_000
LARGEST = 1_000_000
"""Rows of the largest table."""


@dataclass(frozen=True)
class Feature:
    """One raw feature, `kind` "id", "hash", "word", "float" or "list"; `rows` and `dim` of its table."""

    name: str
    kind: str
    scope: Scope
    rows: int
    dim: int

    @property
    def dtype(self) -> str:
        return {"hash": "string", "word": "string", "float": "float32"}.get(self.kind, "int64")


def features(largest: int = LARGEST) -> list[Feature]:
    """The table above; with less than `largest` rows, of tables that are cut to it."""
    counts: dict[str, tuple[int, int]] = {
        "id": (15, 20),
        "hash": (5, 15),
        "word": (5, 10),
        "float": (5, 15),
        "list": (0, 10),
    }
    sizes = {"hash": _HASHED, "word": _WORDS + 1, "float": len(_BOUNDARIES) + 1, "list": 100_000}
    dims = {"id": 16, "hash": 16, "word": 8, "float": 8, "list": 16}
    found = []
    for kind, (user, item) in counts.items():
        for i in range(user + item):
            scope: Scope = "request" if i < user else "candidate"
            rows = sizes.get(kind) or (1_000, 10_000, 100_000, 200_000, LARGEST)[i % 5]
            found.append(Feature(f"{kind}_{i}", kind, scope, min(rows, largest), dims[kind]))
    return found


def request(candidates: int, seed: int, largest: int = LARGEST) -> dict[str, np.ndarray]:
    """Features of one request: user features `[1, 1]`, candidate features `[N, 1]`, lists `[N, 10]` padded
    with -1."""
    rng = np.random.default_rng(seed)
    out: dict[str, np.ndarray] = {}
    for feature in features(largest):
        n = candidates if feature.scope == "candidate" else 1
        popular = _popular(rng, feature.rows, (n, _LIST if feature.kind == "list" else 1))
        match feature.kind:
            case "id":
                out[feature.name] = popular
            case "list":
                empty = np.arange(_LIST) >= rng.integers(0, _LIST + 1, (n, 1))
                out[feature.name] = np.where(empty, -1, popular)
            case "float":
                out[feature.name] = rng.exponential(20, (n, 1)).astype(np.float32)
            case _:
                # One in fifty words is not in the vocabulary.
                unknown = rng.random((n, 1)) < 0.02
                texts = [
                    b"new_%d" % v if u else word(v)
                    for v, u in zip(popular.ravel(), unknown.ravel(), strict=True)
                ]
                out[feature.name] = np.array(texts, object).reshape(n, 1)
    return out


def _popular(rng: np.random.Generator, rows: int, shape: tuple[int, int]) -> np.ndarray:
    """Row numbers: rank r is drawn in proportion to 1 / r, and neighbours in rank are not neighbours in
    memory."""
    ranks = np.floor(rows ** rng.random(shape)).astype(np.int64) - 1
    return ranks * 2_654_435_761 % rows


def _words(largest: int) -> int:
    """Entries of the vocabulary."""
    return min(_WORDS, largest - 1)


def word(number: int) -> bytes:
    """A key of 8 to 30 bytes, as brands and categories have."""
    return b"%s/%d" % (b"category" * (number % 3 + 1), number)


def table(feature: Feature) -> np.ndarray:
    seed = abs(hash((feature.rows, feature.dim))) % 2**32
    return np.random.default_rng(seed).standard_normal((feature.rows, feature.dim), np.float32)


def program(largest: int = LARGEST) -> HostProgram:
    """The host program, as the converter writes one."""
    operators: list[HostOperator] = []
    columns: list[BlockColumn] = []
    offsets = {"request": 0, "candidate": 0}

    def add(
        op: str, feature: Feature, inputs: tuple[str, ...], output: str, constants: Any = None, **attrs: Any
    ) -> str:
        operators.append(
            HostOperator(
                op=op, name=feature.name, inputs=inputs, outputs=(output,), scope=feature.scope, attrs=attrs,
                constants=constants or {},
            )
        )  # fmt: skip
        return output

    for f in features(largest):
        value, n = f.name, f.name
        if f.kind == "list":
            zero = {"1": {"dtype": "int64", "shape": [], "values": [0]}}
            found = add("greater_equal", f, (n,), f"{n}_found", zero)
            places = add("where", f, (found,), f"{n}_indices")
            ids = add("gather_nd", f, (n, places), f"{n}_ids")
            shape = add("shape", f, (n,), f"{n}_shape", out_type="int64")
            value = add(
                "embedding_bag", f, (places, ids, shape), f"{n}_bag", table=n, combiner="mean", safe=True
            )
        else:
            if f.kind == "hash":
                value = add("string_to_hash_bucket_fast", f, (n,), f"{n}_bucket", num_buckets=f.rows)
            elif f.kind == "word":
                value = add("vocabulary_lookup", f, (n,), f"{n}_entry", vocabulary="words")
            elif f.kind == "float":
                value = add("log1p", f, (n,), f"{n}_log")
                value = add("bucketize", f, (value,), f"{n}_bucket", boundaries=_BOUNDARIES)
            value = add("embedding_lookup", f, (value,), f"{n}_rows", table=n)
            value = add("squeeze", f, (value,), f"{n}_row", squeeze_dims=[1])
        columns.append(
            BlockColumn(
                tensor=value,
                feature=n,
                scope=f.scope,
                offset=offsets[f.scope],
                shape=(f.dim,),
                dtype="float32",
            )
        )
        offsets[f.scope] += f.dim
    return HostProgram(schema_version=HOST_SCHEMA_VERSION, operators=tuple(operators), columns=tuple(columns))


def write_bundle(directory: Path, largest: int = LARGEST) -> None:
    """The program with its tables and vocabulary, for `HostProgramRunner`; without a dense half."""
    (directory / "tables").mkdir(parents=True, exist_ok=True)
    (directory / files.HOST_PROGRAM).write_bytes(msgspec.json.encode(program(largest)))
    for f in features(largest):
        with TableWriter(directory / "tables" / f"{f.name}.table", f.dim, "f32") as writer:
            writer.append(table(f))
    words = sorted((word(i), i) for i in range(_words(largest)))
    prefix = directory / "tables" / "words"
    np.save(f"{prefix}.keys.npy", np.frombuffer(b"".join(w for w, _ in words), np.uint8))
    np.save(f"{prefix}.offsets.npy", np.cumsum([0, *(len(w) for w, _ in words)]))
    np.save(f"{prefix}.values.npy", np.array([i for _, i in words]))


def manifest(largest: int = LARGEST) -> Manifest:
    """What the bundle's manifest would say of the host half."""
    tables = tuple(
        Table(
            name=f.name,
            rows=f.rows,
            dim=f.dim,
            dtype="float32",
            bytes=4 * f.rows * f.dim,
            row_format="f32",
            file=f"tables/{f.name}.table",
        )
        for f in features(largest)
    )
    vocabulary = Vocabulary(
        name="words",
        key_dtype="string",
        size=_words(largest),
        default_value=_words(largest),
        file="tables/words",
    )
    inputs = tuple(
        TensorSpec(
            name=f.name,
            dtype=f.dtype,
            shape=(1 if f.scope == "request" else None, _LIST if f.kind == "list" else 1),
            scope=f.scope,
            tensor_name=f.name,
        )
        for f in features(largest)
    )
    return Manifest(
        schema_version=SCHEMA_VERSION,
        source=Source(format="generated", path="", tensorflow="", jaxrank="", created=""),
        signature=Signature(name="serving_default", method_name="", inputs=inputs, outputs=()),
        max_candidates=5000,
        tables=tables,
        vocabularies=(vocabulary,),
        ops=(),
        certificate=Certificate(stage="none", tolerance=0.0, requests=0, outputs=()),
    )


def tensorflow_graph(
    directory: Path, largest: int = LARGEST
) -> Callable[[dict[str, np.ndarray]], tuple[Any, Any]]:
    """The same host half as TensorFlow's own graph: both blocks of a request."""
    import tensorflow as tf

    tables = {
        f.name: tf.constant(open_table(directory / f"tables/{f.name}.table").array) for f in features(largest)
    }
    count = _words(largest)
    keys, values = tf.constant([word(i) for i in range(count)]), tf.range(count, dtype=tf.int64)
    words = tf.lookup.StaticHashTable(tf.lookup.KeyValueTensorInitializer(keys, values), count)

    def row(f: Feature, value: Any) -> Any:
        match f.kind:
            case "list":
                places = tf.where(value >= 0)
                bag = tf.SparseTensor(places, tf.gather_nd(value, places), tf.shape(value, out_type=tf.int64))
                return tf.nn.safe_embedding_lookup_sparse(tables[f.name], bag, combiner="mean")
            case "hash":
                value = tf.strings.to_hash_bucket_fast(value, f.rows)
            case "word":
                value = words.lookup(value)
            case "float":
                value = tf.raw_ops.Bucketize(input=tf.math.log1p(value), boundaries=_BOUNDARIES)
        return tf.squeeze(tf.gather(tables[f.name], value), 1)

    @tf.function(
        input_signature=[
            {
                f.name: tf.TensorSpec((None, _LIST if f.kind == "list" else 1), f.dtype, name=f.name)
                for f in features(largest)
            }
        ]
    )
    def blocks(raw: dict[str, Any]) -> tuple[Any, Any]:
        parts = {
            scope: [row(f, raw[f.name]) for f in features(largest) if f.scope == scope]
            for scope in ("request", "candidate")
        }
        return tf.concat(parts["request"], 1), tf.concat(parts["candidate"], 1)

    concrete = blocks.get_concrete_function()

    def run(raw: dict[str, np.ndarray]) -> tuple[Any, Any]:
        return concrete({name: tf.constant(value) for name, value in raw.items()})

    run.words = words  # type: ignore[attr-defined]  # the table lives as long as the graph that reads it
    return run
