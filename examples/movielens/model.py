"""The ranker: Keras preprocessing, target attention over the history, two heads; and its serving signature.

Two parts, as Keras models with lookups usually are. The *preprocessing* models turn raw features into indices
and multi-hot floats (string work: on the CPU, in tf.data while training); the *ranker* is what is trained.

Shapes below write B for rows (training rows, or candidates), H for history steps and G for known genres.
"""

from dataclasses import dataclass

import keras
import numpy as np
import tensorflow as tf
from keras import layers, ops

from examples.movielens.data import HISTORY_LENGTH, MAX_GENRES, MovieLens, Period

ZIP_CODE_BUCKETS = 1000
PADDING = 0  # the index that IntegerLookup and StringLookup give to their mask token

# The specs are named, or else the exported inputs would be called features, features_1, ...
RAW_SIGNATURE = {
    "user_id": tf.TensorSpec([1], tf.int64, "user_id"),
    "user_age": tf.TensorSpec([1], tf.float32, "user_age"),
    "user_gender": tf.TensorSpec([1], tf.string, "user_gender"),
    "user_occupation": tf.TensorSpec([1], tf.string, "user_occupation"),
    "user_zip_code": tf.TensorSpec([1], tf.string, "user_zip_code"),
    "history_movie_id": tf.TensorSpec([1, HISTORY_LENGTH], tf.int64, "history_movie_id"),
    "history_genres": tf.TensorSpec([1, HISTORY_LENGTH, MAX_GENRES], tf.string, "history_genres"),
    "movie_id": tf.TensorSpec([None], tf.int64, "movie_id"),
    "movie_release_year": tf.TensorSpec([None], tf.float32, "movie_release_year"),
    "movie_genres": tf.TensorSpec([None, MAX_GENRES], tf.string, "movie_genres"),
}


@dataclass(frozen=True)
class Vocabularies:
    """What the lookups know; anything else maps to their out-of-vocabulary index."""

    user_id: list[int]
    movie_id: list[int]
    gender: list[str]
    occupation: list[str]
    genre: list[str]

    @classmethod
    def of(cls, data: MovieLens, train: Period) -> "Vocabularies":
        """Ids seen in the training period; genders, occupations and genres of the whole catalogue."""

        def strings(values: np.ndarray) -> list[str]:
            return sorted({value.decode() for value in values.ravel() if value})

        return cls(
            user_id=np.unique(data.interactions.user_id[train.rows]).tolist(),
            movie_id=np.unique(data.interactions.movie_id[train.rows]).tolist(),
            gender=strings(data.users.gender),
            occupation=strings(data.users.occupation),
            genre=strings(data.movies.genres),
        )


class MultiHotGenres(layers.Layer):
    """Genre names [..., MAX_GENRES] to a float32 multi-hot [..., G + 1]: column 0 is "unseen genre".

    Not `StringLookup(output_mode="multi_hot")`: that reduces rank-3 input over the wrong axis.
    """

    def __init__(self, lookup: layers.StringLookup, **kwargs):
        super().__init__(**kwargs)
        self.lookup = lookup
        self.depth = lookup.vocabulary_size()

    def call(self, genres):
        one_hot = ops.one_hot(self.lookup(genres), self.depth)
        return ops.max(one_hot, axis=-2)[..., PADDING + 1 :]

    def compute_output_spec(self, genres):
        return keras.KerasTensor((*genres.shape[:-1], self.depth - 1), dtype="float32")


class Standardize(layers.Layer):
    """[B] to [B, 1]: `(x - mean) / scale`, and 0 where x is not positive, which means unknown."""

    def __init__(self, mean: float, scale: float, **kwargs):
        super().__init__(**kwargs)
        self.mean, self.scale = mean, scale

    def call(self, x):
        standardized = ops.where(x > 0, (x - self.mean) / self.scale, 0.0)
        return ops.expand_dims(standardized, -1)


class TargetAttention(layers.Layer):
    """Pools a history by each step's relevance to the candidate (Zhou et al., Deep Interest Network, 2018).

    Weights: `softmax(dense(1)(dense(units)([q, k, q - k, q * k])))` over the real steps.
    An empty history pools to 0.
    """

    def __init__(self, units: int, **kwargs):
        super().__init__(**kwargs)
        self.hidden = layers.Dense(units, activation="relu", name="target_attention_hidden")
        self.score = layers.Dense(1, name="target_attention_score")

    def build(self, candidate_shape, history_shape, is_step_shape):
        self.hidden.build((*history_shape[:-1], 4 * history_shape[-1]))
        self.score.build((*history_shape[:-1], self.hidden.units))

    def call(self, candidate, history, is_step):
        """candidate [B, D], history [B, H, D], is_step [B, H] bool (false for padding) -> [B, D]."""
        query = ops.broadcast_to(ops.expand_dims(candidate, 1), ops.shape(history))
        pairs = ops.concatenate([query, history, query - history, query * history], axis=-1)
        scores = ops.squeeze(self.score(self.hidden(pairs)), -1)
        weights = ops.softmax(ops.where(is_step, scores, -1e9), axis=-1)
        # Without a real step softmax spreads over the padding; is_step takes that away again.
        weights = weights * ops.cast(is_step, weights.dtype)
        return ops.sum(ops.expand_dims(weights, -1) * history, axis=1)


def build_preprocessing(vocabularies: Vocabularies) -> tuple[keras.Model, keras.Model]:
    """Two models, users and movies: raw features (dicts of [B, ...]) to the ranker's inputs."""
    movie_lookup = layers.IntegerLookup(
        vocabulary=vocabularies.movie_id, mask_token=0, name="movie_id_lookup"
    )
    genre_lookup = layers.StringLookup(vocabulary=vocabularies.genre, mask_token="", name="genre_lookup")
    raw = {
        name: keras.Input(spec.shape[1:], dtype=spec.dtype.name, name=name)
        for name, spec in RAW_SIGNATURE.items()
    }

    def lookup(feature: str, layer: type, vocabulary: list, mask_token):
        return layer(vocabulary=vocabulary, mask_token=mask_token, name=f"{feature}_lookup")(raw[feature])

    user = {
        "user": lookup("user_id", layers.IntegerLookup, vocabularies.user_id, 0),
        "gender": lookup("user_gender", layers.StringLookup, vocabularies.gender, ""),
        "occupation": lookup("user_occupation", layers.StringLookup, vocabularies.occupation, ""),
        "zip_code": layers.Hashing(ZIP_CODE_BUCKETS, name="user_zip_code_hash")(raw["user_zip_code"]),
        "age": raw["user_age"],
        "history_movie": movie_lookup(raw["history_movie_id"]),
        "history_genres": MultiHotGenres(genre_lookup, name="history_genres_multi_hot")(
            raw["history_genres"]
        ),
    }
    movie = {
        "movie": movie_lookup(raw["movie_id"]),
        "movie_genres": MultiHotGenres(genre_lookup, name="movie_genres_multi_hot")(raw["movie_genres"]),
        "release_year": raw["movie_release_year"],
    }
    user_raw = {name: tensor for name, tensor in raw.items() if not name.startswith("movie_")}
    movie_raw = {name: tensor for name, tensor in raw.items() if name.startswith("movie_")}
    return (
        keras.Model(user_raw, user, name="user_preprocessing"),
        keras.Model(movie_raw, movie, name="movie_preprocessing"),
    )


class Ranker(keras.Model):
    """Preprocessed user and movie, row by row -> `score` [B] (chance of a like) and `rating` [B] (stars)."""

    def __init__(self, vocabularies: Vocabularies, embedding_l2: float = 1e-5, dropout: float = 0.3):
        super().__init__(name="ranker")

        def embedding(name: str, size: int, width: int) -> layers.Embedding:
            penalty = keras.regularizers.L2(embedding_l2)
            return layers.Embedding(size, width, embeddings_regularizer=penalty, name=f"{name}_embedding")

        known = 2  # indices 0 (padding) and 1 (out of vocabulary) come before the vocabulary
        self.user = embedding("user", len(vocabularies.user_id) + known, 16)
        self.gender = embedding("gender", len(vocabularies.gender) + known, 4)
        self.occupation = embedding("occupation", len(vocabularies.occupation) + known, 8)
        self.zip_code = embedding("zip_code", ZIP_CODE_BUCKETS, 8)
        self.movie = embedding("movie", len(vocabularies.movie_id) + known, 32)
        self.genres = layers.Dense(16, activation="relu", name="genres")
        self.age = Standardize(mean=34.0, scale=12.0, name="age")
        self.release_year = Standardize(mean=1990.0, scale=14.0, name="release_year")
        self.attention = TargetAttention(64, name="target_attention")
        self.mlp_1 = layers.Dense(256, activation="relu", name="mlp_1")
        self.mlp_1_norm = layers.BatchNormalization(name="mlp_1_norm")
        self.mlp_1_dropout = layers.Dropout(dropout, name="mlp_1_dropout")
        self.mlp_2 = layers.Dense(128, activation="relu", name="mlp_2")
        self.mlp_2_dropout = layers.Dropout(dropout, name="mlp_2_dropout")
        self.score = layers.Dense(1, activation="sigmoid", name="score")
        self.rating = layers.Dense(1, bias_initializer=keras.initializers.Constant(3.5), name="rating")

    def call(self, inputs, training=False):
        user = [
            self.user(inputs["user"]),
            self.gender(inputs["gender"]),
            self.occupation(inputs["occupation"]),
            self.zip_code(inputs["zip_code"]),
            self.age(inputs["age"]),
        ]
        item = self._item(inputs["movie"], inputs["movie_genres"])
        history = self._item(inputs["history_movie"], inputs["history_genres"])
        pooled = self.attention(item, history, inputs["history_movie"] != PADDING)

        year = self.release_year(inputs["release_year"])
        x = ops.concatenate([*user, pooled, item, item * pooled, year], axis=-1)
        x = self.mlp_1_norm(self.mlp_1(x), training=training)
        x = self.mlp_1_dropout(x, training=training)
        x = self.mlp_2_dropout(self.mlp_2(x), training=training)
        return {"score": ops.squeeze(self.score(x), -1), "rating": ops.squeeze(self.rating(x), -1)}

    def _item(self, movie, genres):
        """A movie as a vector [..., 48], the same for candidates [B] and history steps [B, H]."""
        return ops.concatenate([self.movie(movie), self.genres(genres)], axis=-1)


class Serving(tf.Module):
    """The SavedModel: raw features of one user and N candidates -> `score` [N] and `rating` [N]."""

    def __init__(self, user_preprocessing: keras.Model, movie_preprocessing: keras.Model, ranker: Ranker):
        super().__init__(name="movielens_ranker")
        self.user_preprocessing = user_preprocessing
        self.movie_preprocessing = movie_preprocessing
        self.ranker = ranker
        self.serve = tf.function(self._serve, input_signature=[RAW_SIGNATURE])

    def _serve(self, features):
        user = self.user_preprocessing({name: features[name] for name in self.user_preprocessing.input})
        movie = self.movie_preprocessing({name: features[name] for name in self.movie_preprocessing.input})
        candidates = tf.shape(features["movie_id"])[0]
        # The user's strings are looked up once; only the resulting numbers are repeated per candidate.
        repeated = {name: tf.repeat(value, candidates, axis=0) for name, value in user.items()}
        return self.ranker({**repeated, **movie}, training=False)

    def save(self, directory: str) -> None:
        tf.saved_model.save(self, directory, signatures={"serving_default": self.serve})
