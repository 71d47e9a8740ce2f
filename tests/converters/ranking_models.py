"""Small ranking models as teams write them in Keras, with dense inputs: what the writer should give back as
classes and loops."""

import numpy as np
import tensorflow as tf
from tensorflow import keras

layers, ops = keras.layers, keras.ops


def mmoe() -> keras.Model:
    """Four experts, two gates, two towers, as layers that hold their parts."""

    class Expert(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = layers.Dense(16, activation="relu", name="hidden")
            self.out = layers.Dense(8, activation="relu", name="out")

        def call(self, x):
            return self.out(self.hidden(x))

    class Tower(layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.hidden = layers.Dense(8, activation="relu", name="hidden")
            self.logit = layers.Dense(1, name="logit")

        def call(self, x):
            return ops.squeeze(ops.sigmoid(self.logit(self.hidden(x))), -1)

    user = keras.Input((6,), name="user")
    item = keras.Input((10,), name="item")
    x = layers.Concatenate(name="features")([user, item])
    experts = [Expert(name=f"expert_{i}")(x) for i in range(4)]
    stacked = ops.stack(experts, axis=1)
    outputs = {}
    for task in ("click", "buy"):
        gate = layers.Dense(4, activation="softmax", name=f"{task}_gate")(x)
        mixed = ops.sum(ops.expand_dims(gate, -1) * stacked, axis=1)
        outputs[task] = Tower(name=f"{task}_tower")(mixed)
    return keras.Model({"user": user, "item": item}, outputs, name="mmoe")


def functional_mmoe() -> keras.Model:
    """The same with flat layer names, as functional models often have."""
    x = keras.Input((16,), name="features")
    experts = []
    for i in range(3):
        hidden = layers.Dense(16, activation="relu", name=f"expert_{i}_dense_0")(x)
        experts.append(layers.Dense(8, activation="relu", name=f"expert_{i}_dense_1")(hidden))
    stacked = ops.stack(experts, axis=1)
    outputs = {}
    for task in ("click", "buy"):
        gate = layers.Dense(3, activation="softmax", name=f"gate_{task}")(x)
        mixed = ops.einsum("be,bed->bd", gate, stacked)
        hidden = layers.Dense(8, activation="relu", name=f"tower_{task}_hidden")(mixed)
        logit = layers.Dense(1, activation="sigmoid", name=f"tower_{task}_logit")(hidden)
        outputs[task] = logit[:, 0]
    return keras.Model({"features": x}, outputs, name="mmoe")


class Dice(layers.Layer):
    """Deep Interest Network's activation: a PReLU whose knee follows the batch statistics."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm = layers.BatchNormalization(center=False, scale=False, epsilon=1e-8, name="norm")

    def build(self, shape):
        self.alpha = self.add_weight(shape=(shape[-1],), initializer="random_normal", name="alpha")
        self.norm.build(shape)

    def call(self, x):
        p = ops.sigmoid(self.norm(x, training=False))
        return self.alpha * (1.0 - p) * x + p * x


def din() -> keras.Model:
    """Target attention over a masked history, Dice in the MLP."""
    item = keras.Input((8,), name="item")
    history = keras.Input((5, 8), name="history")
    mask = keras.Input((5,), name="mask")
    query = ops.repeat(ops.expand_dims(item, 1), 5, axis=1)
    pairs = ops.concatenate([query, history, query - history, query * history], axis=-1)
    hidden = layers.Dense(16, activation="sigmoid", name="attention_hidden")(pairs)
    scores = ops.squeeze(layers.Dense(1, name="attention_score")(hidden), -1)
    scores = ops.where(mask > 0, scores, -1e9)
    weights = ops.softmax(scores / 8**0.5)
    interest = ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), history), 1)
    x = ops.concatenate([interest, item, interest * item], axis=-1)
    for i, units in enumerate((16, 8)):
        x = layers.Dense(units, name=f"mlp_{i}")(x)
        x = Dice(name=f"dice_{i}")(x)
    score = layers.Dense(1, activation="sigmoid", name="score")(x)
    return keras.Model({"item": item, "history": history, "mask": mask}, {"score": score[:, 0]}, name="din")


class TransformerBlock(layers.Layer):
    """Post-norm self-attention and a GELU feed-forward net."""

    def __init__(self, width: int, heads: int, **kwargs):
        super().__init__(**kwargs)
        self.attention = layers.MultiHeadAttention(heads, width // heads, name="attention")
        self.norm_1 = layers.LayerNormalization(epsilon=1e-6, name="norm_1")
        self.norm_2 = layers.LayerNormalization(epsilon=1e-6, name="norm_2")
        self.hidden = layers.Dense(4 * width, activation="gelu", name="hidden")
        self.out = layers.Dense(width, name="out")

    def build(self, shape):
        self.attention.build(shape, shape)
        self.norm_1.build(shape)
        self.norm_2.build(shape)
        self.hidden.build(shape)
        self.out.build((*shape[:-1], self.hidden.units))

    def call(self, x):
        x = self.norm_1(x + self.attention(x, x))
        return self.norm_2(x + self.out(self.hidden(x)))


def transformer() -> keras.Model:
    """Behaviour-sequence transformer: two blocks over the history and the candidate."""
    item = keras.Input((8,), name="item")
    history = keras.Input((4, 8), name="history")
    x = ops.concatenate([history, ops.expand_dims(item, 1)], axis=1)
    for i in range(2):
        x = TransformerBlock(8, 2, name=f"block_{i}")(x)
    x = layers.Flatten()(x)
    x = layers.Dense(16, activation="leaky_relu", name="mlp")(x)
    score = layers.Dense(1, activation="sigmoid", name="score")(x)
    return keras.Model({"item": item, "history": history}, {"score": score[:, 0]}, name="bst")


class Cross(layers.Layer):
    """DCN-v2: `x0 * (x W + b) + x`."""

    def build(self, shape):
        self.dense = layers.Dense(shape[-1], name="dense")
        self.dense.build(shape)

    def call(self, x0, x):
        return x0 * self.dense(x) + x

    def compute_output_shape(self, shape):
        return shape


def dcn() -> keras.Model:
    """Three cross layers beside an MLP with batch norm."""
    x0 = keras.Input((12,), name="features")
    x = x0
    for i in range(3):
        x = Cross(name=f"cross_{i}")(x0, x)
    deep = x0
    for i, units in enumerate((32, 32, 16)):
        deep = layers.Dense(units, name=f"deep_{i}")(deep)
        deep = layers.BatchNormalization(name=f"deep_norm_{i}")(deep)
        deep = layers.Activation("relu", name=f"deep_relu_{i}")(deep)
    score = layers.Dense(1, activation="sigmoid", name="score")(layers.Concatenate()([x, deep]))
    return keras.Model({"features": x0}, {"score": score[:, 0]}, name="dcn")


def deepfm() -> keras.Model:
    """Second-order interactions of six fields beside an MLP with PReLU."""
    fields = keras.Input((6, 4), name="fields")
    linear = keras.Input((6,), name="linear")
    summed = ops.sum(fields, axis=1)
    second = 0.5 * ops.sum(ops.square(summed) - ops.sum(ops.square(fields), axis=1), axis=-1, keepdims=True)
    deep = layers.Flatten()(fields)
    for i in range(2):
        deep = layers.Dense(16, name=f"deep_{i}")(deep)
        deep = layers.PReLU(alpha_initializer="random_normal", name=f"prelu_{i}")(deep)
    deep = layers.Dense(1, name="deep_logit")(deep)
    score = ops.sigmoid(ops.sum(linear, axis=-1, keepdims=True) + second + deep)
    return keras.Model({"fields": fields, "linear": linear}, {"score": score[:, 0]}, name="deepfm")


MODELS = {f.__name__: f for f in (mmoe, functional_mmoe, din, transformer, dcn, deepfm)}


def randomize(model: keras.Model, seed: int = 0) -> None:
    """Weights away from their zeros and ones, so that a norm or bias that got lost shows."""
    rng = np.random.default_rng(seed)
    for variable in model.variables:
        spread = rng.uniform(0.5, 1.5, variable.shape) if "variance" in variable.path else None
        value = rng.normal(0.0, 0.3, variable.shape) if spread is None else spread
        if "gamma" in variable.path:
            value = 1.0 + value
        variable.assign(value.astype(np.float32))


def save(model: keras.Model, path: str) -> None:
    """A SavedModel whose signature has one tensor for each input, with the inputs' names."""
    specs = {n: tf.TensorSpec((None, *t.shape[1:]), tf.float32, n) for n, t in model.input.items()}
    serve = tf.function(lambda **features: model(features, training=False))
    module = tf.Module()
    module.model = model  # pyright: ignore[reportAttributeAccessIssue]
    tf.saved_model.save(module, path, signatures=serve.get_concrete_function(**specs))
