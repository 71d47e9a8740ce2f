# TensorFlow's stubs do not know tensors inside of shapes and slices.
# pyright: reportArgumentType=false
"""Ranking models at the width that production has, for the suite `dense`.

Proportions follow what is published and what ranking teams describe: the user's features (profile, context,
history) are several times wider than a candidate's, histories have 64 to 100 steps of 64 columns, experts are
512-256. Vocabularies are small: the tables are no part of what is measured. Every model is one
`tf.Module` with one user row, which it tiles itself, as models that are exported for TensorFlow Serving do.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from keras import layers

from tests.zoo.drawing import Draw
from tests.zoo.model import Features
from tests.zoo.saving import FLOAT, INT, Tensors, save_module, spec
from tests.zoo.sequence import Dice

VOCABULARY = 2_000
"""Rows of every embedding table."""


@dataclass(frozen=True)
class DenseModel:
    """One model of the suite: how to build it, and the shapes of its inputs."""

    name: str
    build: Callable[[], Any]
    """`() -> tf.Module` that takes features by name and returns scores by name."""

    inputs: dict[str, tuple[int | None, ...]]
    """Shapes by input name; a first dimension of 1 is the user's, None the candidates'. Names that end in
    `_stats` are float32, all others are ids."""

    request_side: bool
    """Whether at least half of what goes into the dense half is the same for all candidates."""

    shape: str
    """Its sizes, for people."""

    candidates: int = 200
    """Of a request in the suite `serve`."""

    slo_ms: float = 100.0
    """Within which 99% of all requests are to be answered."""

    def save(self, directory: Path) -> Path:
        """Writes the SavedModel, its weights drawn as trained ones are. Returns its path."""
        specs = {n: spec(FLOAT if _is_number(n) else INT, *s) for n, s in self.inputs.items()}
        return save_module(self.build(), specs, directory, seed=len(self.name))

    def request(self, rows: int, seed: int) -> Features:
        """Raw features of one user against `rows` candidates."""
        draw = Draw(seed)
        found: Features = {}
        for name, dims in self.inputs.items():
            shape = tuple(rows if d is None else d for d in dims)
            if _is_number(name):
                found[name] = draw.floats(*shape)
            elif name == "user_history":
                # From a short history to a full one; padding is at the end.
                length = draw.rng.integers(shape[1] // 2, shape[1] + 1)
                ids = draw.rng.integers(1, VOCABULARY, shape)
                found[name] = np.where(np.arange(shape[1]) < length, ids, 0)
            else:
                found[name] = draw.rng.integers(0, VOCABULARY, shape)
        return found


def _is_number(name: str) -> bool:
    return name.endswith("_stats")


class Fields(tf.Module):
    """`[N, fields]` ids to `[N, fields * rank]`: one vector for each field, side by side."""

    def __init__(self, fields: int, rank: int) -> None:
        super().__init__()
        self.fields, self.rank = fields, rank
        self.table = tf.Variable(tf.zeros([VOCABULARY, rank]), name="embedding")

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        return tf.reshape(
            tf.gather(self.table, tf.math.floormod(ids, VOCABULARY)), [-1, self.fields * self.rank]
        )


class Items(tf.Module):
    """Item and category vectors side by side, for candidates and for histories."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        self.item = tf.Variable(tf.zeros([VOCABULARY, rank // 2]), name="item_embedding")
        self.category = tf.Variable(tf.zeros([VOCABULARY // 8, rank // 2]), name="category_embedding")

    def __call__(self, ids: tf.Tensor) -> tf.Tensor:
        categories = tf.gather(self.category, tf.math.floormod(ids, VOCABULARY // 8))
        return tf.concat([tf.gather(self.item, tf.math.floormod(ids, VOCABULARY)), categories], axis=-1)


class Stack(tf.Module):
    """Dense layers one after the other."""

    def __init__(self, sizes: Sequence[int], activation: str, name: str) -> None:
        super().__init__()
        self.layers = [layers.Dense(s, activation, name=f"{name}_{i}") for i, s in enumerate(sizes)]

    def __call__(self, x: tf.Tensor) -> tf.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class DIN(tf.Module):
    """Deep interest network (Zhou et al., 2018): an activation unit on `[q, k, q - k, q * k]` for each
    (candidate, step), a masked softmax, an MLP with Dice."""

    def __init__(self, rank: int, attention: Sequence[int], user: int, item: int, hidden: Sequence[int]):
        super().__init__()
        self.items = Items(rank)
        self.user, self.item = Fields(user, 16), Fields(item, 16)
        self.attention = Stack(attention, "sigmoid", "attention")
        self.logit = layers.Dense(1, name="attention_logit")
        self.hidden = [layers.Dense(s, name=f"hidden_{i}") for i, s in enumerate(hidden)]
        self.dice = [Dice(s) for s in hidden]
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows, steps = tf.shape(f["item_id"])[0], f["user_history"].shape[1]
        history = tf.tile(f["user_history"], [rows, 1])
        query, keys = self.items(f["item_id"]), self.items(history)
        queries = tf.tile(query[:, None, :], [1, steps, 1])
        unit = self.attention(tf.concat([queries, keys, queries - keys, queries * keys], axis=-1))
        logits = tf.where(history > 0, self.logit(unit)[..., 0], -1e9)
        interest = tf.einsum("nt,ntd->nd", tf.nn.softmax(logits), keys)
        user = tf.tile(self.user(f["user_fields"]), [rows, 1])
        x = tf.concat([user, interest, query, interest * query, self.item(f["item_fields"])], axis=-1)
        for layer, dice in zip(self.hidden, self.dice, strict=True):
            x = dice(layer(x))
        return {"ctr": self.out(x)[:, 0]}


class BST(tf.Module):
    """Behaviour sequence transformer (Chen et al., 2019): one post-norm block over history and candidate;
    all of its positions, the profile and the candidate's fields go into the MLP."""

    def __init__(self, rank: int, heads: int, inner: int, user: int, item: int, hidden: Sequence[int]):
        super().__init__()
        self.items = Items(rank)
        self.user, self.item = Fields(user, 16), Fields(item, 16)
        self.position = layers.Embedding(256, rank, name="position_embedding")
        self.attention = layers.MultiHeadAttention(heads, rank // heads, name="attention")
        self.norms = [layers.LayerNormalization(epsilon=1e-6, name=f"norm_{i}") for i in range(2)]
        self.inner, self.outer = layers.Dense(inner, name="inner"), layers.Dense(rank, name="outer")
        self.hidden = [layers.Dense(s, name=f"hidden_{i}") for i, s in enumerate(hidden)]
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        rows, steps = tf.shape(f["item_id"])[0], f["user_history"].shape[1]
        history = tf.tile(f["user_history"], [rows, 1])
        x = tf.concat([self.items(history), self.items(f["item_id"])[:, None]], axis=1)
        x += self.position(tf.range(steps + 1))[None]
        held = tf.concat([history > 0, tf.ones([rows, 1], tf.bool)], axis=1)
        x = self.norms[0](x + self.attention(x, x, attention_mask=held[:, None, :]))
        x = self.norms[1](x + self.outer(tf.nn.leaky_relu(self.inner(x), alpha=0.01)))
        flat = tf.reshape(x * tf.cast(held, tf.float32)[..., None], [-1, (steps + 1) * x.shape[-1]])
        user = tf.tile(self.user(f["user_fields"]), [rows, 1])
        x = tf.concat([flat, user, self.item(f["item_fields"])], axis=-1)
        for layer in self.hidden:
            x = tf.nn.leaky_relu(layer(x), alpha=0.01)
        return {"ctr": self.out(x)[:, 0]}


class SharedInput(tf.Module):
    """User fields and a pooled history, repeated for every candidate, beside the candidate's features."""

    def __init__(self, user: int, item: int) -> None:
        super().__init__()
        self.user, self.item, self.items = Fields(user, 16), Fields(item, 16), Items(64)

    def __call__(self, f: Tensors) -> tf.Tensor:
        rows = tf.shape(f["item_id"])[0]
        held = tf.cast(f["user_history"] > 0, tf.float32)[..., None]
        total = tf.reduce_sum(self.items(f["user_history"]) * held, axis=1)
        pooled = total / tf.maximum(tf.reduce_sum(held, axis=1), 1.0)
        user = tf.concat([self.user(f["user_fields"]), f["user_stats"], pooled], axis=-1)
        item = [self.items(f["item_id"]), self.item(f["item_fields"]), f["item_stats"]]
        return tf.concat([tf.tile(user, [rows, 1]), *item], axis=-1)


class MMoE(tf.Module):
    """Multi-gate mixture of experts (Ma et al., 2018): shared experts, a gate and a tower for each task."""

    def __init__(self, user: int, item: int, experts: int, expert: Sequence[int], tower: Sequence[int]):
        super().__init__()
        self.shared = SharedInput(user, item)
        self.experts = [Stack(expert, "relu", f"expert_{i}") for i in range(experts)]
        self.tasks = ("click", "like", "share")
        self.gates = [layers.Dense(experts, "softmax", name=f"{t}_gate") for t in self.tasks]
        self.towers = [Stack(tower, "relu", f"{t}_tower") for t in self.tasks]
        self.heads = [layers.Dense(1, "sigmoid", name=f"{t}_head") for t in self.tasks]

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        x = self.shared(f)
        experts = tf.stack([expert(x) for expert in self.experts], axis=1)
        outputs = {}
        for task, gate, tower, head in zip(self.tasks, self.gates, self.towers, self.heads, strict=True):
            outputs[task] = head(tower(tf.einsum("ne,ned->nd", gate(x), experts)))[:, 0]
        return outputs


class Extraction(tf.Module):
    """One level of PLE: two experts for each of two tasks and two shared ones; one gate for each task and,
    except on the last level, one for the shared experts."""

    def __init__(self, expert: Sequence[int], level: int, last: bool) -> None:
        super().__init__()
        self.last = last
        kinds = ("finish", "share", "shared")
        self.experts = [[Stack(expert, "relu", f"level_{level}_{k}_{i}") for i in range(2)] for k in kinds]
        self.gates = [layers.Dense(4, "softmax", name=f"level_{level}_{k}_gate") for k in kinds[:2]]
        self.shared_gate = layers.Dense(6, "softmax", name=f"level_{level}_shared_gate")

    def __call__(self, inputs: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        made = [[e(x) for e in experts] for experts, x in zip(self.experts, inputs, strict=True)]
        mixed = [
            tf.einsum("ne,ned->nd", gate(x), tf.stack(own + made[2], axis=1))
            for gate, x, own in zip(self.gates, inputs, made, strict=False)
        ]
        if not self.last:
            gate = self.shared_gate(inputs[2])
            mixed.append(tf.einsum("ne,ned->nd", gate, tf.stack(sum(made, []), axis=1)))
        return mixed


class PLE(tf.Module):
    """Progressive layered extraction (Tang et al., 2020): two levels, two tasks."""

    def __init__(self, user: int, item: int, levels: Sequence[Sequence[int]], tower: Sequence[int]) -> None:
        super().__init__()
        self.shared = SharedInput(user, item)
        self.levels = [Extraction(sizes, i, last=i + 1 == len(levels)) for i, sizes in enumerate(levels)]
        self.towers = [Stack(tower, "relu", f"tower_{t}") for t in range(2)]
        self.heads = [layers.Dense(1, "sigmoid", name=f"head_{t}") for t in range(2)]

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        outputs = [self.shared(f)] * 3
        for level in self.levels:
            # The last level has no output for its shared experts; those read the level before.
            outputs = level(outputs)
        finish, share = (h(t(x))[:, 0] for h, t, x in zip(self.heads, self.towers, outputs, strict=True))
        return {"finish": finish, "share": share}


class DLRM(tf.Module):
    """Deep learning recommendation model (Naumov et al., 2019): bottom MLP, dot products of all pairs of
    fields, top MLP."""

    def __init__(self, rank: int, fields: int, bottom: Sequence[int], top: Sequence[int]) -> None:
        super().__init__()
        self.rank, self.count = rank, fields + 1
        self.fields = Fields(fields, rank)
        self.bottom, self.top = Stack([*bottom, rank], "relu", "bottom"), Stack(top, "relu", "top")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        x = self.bottom(tf.math.log(1.0 + tf.nn.relu(f["item_stats"])))
        vectors = tf.reshape(self.fields(f["item_fields"]), [-1, self.count - 1, self.rank])
        vectors = tf.concat([x[:, None], vectors], axis=1)
        dots = tf.reshape(tf.matmul(vectors, vectors, transpose_b=True), [-1, self.count * self.count])
        pairs = [i * self.count + j for i in range(self.count) for j in range(i)]
        hidden = tf.concat([x, tf.gather(dots, tf.constant(pairs), axis=1)], axis=-1)
        return {"ctr": self.out(self.top(hidden))[:, 0]}


class DCN(tf.Module):
    """DCN-v2 (Wang et al., 2021), parallel form: full-rank cross layers beside a deep tower."""

    def __init__(self, fields: int, numbers: int, crosses: int, deep: Sequence[int]) -> None:
        super().__init__()
        self.fields = Fields(fields, 16)
        self.crosses = [layers.Dense(fields * 16 + numbers, name=f"cross_{i}") for i in range(crosses)]
        self.deep = Stack(deep, "relu", "deep")
        self.out = layers.Dense(1, "sigmoid", name="ctr")

    def __call__(self, f: Tensors) -> dict[str, tf.Tensor]:
        # A product of three cross layers makes 1e6 of an outlier of 100: numbers are clipped.
        numbers = tf.clip_by_value(f["item_stats"], -3.0, 3.0)
        first = tf.concat([self.fields(f["item_fields"]), numbers], axis=-1)
        x = first
        for cross in self.crosses:
            x = first * cross(x) + x
        return {"ctr": self.out(0.3 * tf.concat([x, self.deep(first)], axis=-1))[:, 0]}


_HISTORY = {"user_history": (1, 100), "user_fields": (1, 24), "item_id": (None,), "item_fields": (None, 8)}
_MIXTURE = {
    "user_history": (1, 64),
    "user_fields": (1, 28),
    "user_stats": (1, 16),
    "item_id": (None,),
    "item_fields": (None, 8),
    "item_stats": (None, 16),
}

MODELS: tuple[DenseModel, ...] = (
    DenseModel(
        "din", lambda: DIN(64, (64, 32), 24, 8, (512, 256)), _HISTORY, True,
        "history 100 x 64, attention 256-64-32-1, MLP 512-256",
    ),
    DenseModel(
        "bst", lambda: BST(64, 4, 128, 24, 8, (512, 256, 128)), {**_HISTORY, "user_history": (1, 64)}, True,
        "history 64 x 64 + candidate, 4 heads, inner 128, MLP 512-256-128",
    ),
    DenseModel(
        "mmoe", lambda: MMoE(28, 8, 6, (512, 256), (128,)), _MIXTURE, True,
        "6 experts 512-256, 3 gates, 3 towers of 128",
    ),
    DenseModel(
        "ple", lambda: PLE(28, 8, ((512, 256), (256,)), (128,)), _MIXTURE, True,
        "levels of 6 experts 512-256 and 256, 2 towers of 128",
    ),
    DenseModel(
        "dlrm", lambda: DLRM(64, 26, (512, 256), (1024, 1024, 512, 256)),
        {"item_stats": (None, 13), "item_fields": (None, 26)}, False,
        "26 fields x 64, bottom 512-256-64, top 1024-1024-512-256",
    ),
    DenseModel(
        "dcn_v2", lambda: DCN(31, 16, 3, (1024, 512, 256)),
        {"item_stats": (None, 16), "item_fields": (None, 31)}, False,
        "width 512, 3 cross layers, deep 1024-512-256",
    ),
)  # fmt: skip
