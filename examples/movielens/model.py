"""A Keras 3 ranker in the usual two parts: preprocessing of raw features, and the ranking network on its results."""

from collections.abc import Sequence

import keras
import tensorflow as tf

from examples.movielens.data import GENRES, HISTORY

REQUEST = {
    "user_id": tf.TensorSpec([1], tf.int64, "user_id"),
    "user_age": tf.TensorSpec([1], tf.float32, "user_age"),
    "user_gender": tf.TensorSpec([1], tf.string, "user_gender"),
    "user_occupation": tf.TensorSpec([1], tf.string, "user_occupation"),
    "user_zip_code": tf.TensorSpec([1], tf.string, "user_zip_code"),
    "history_movie_id": tf.TensorSpec([1, HISTORY], tf.int64, "history_movie_id"),
    "history_genres": tf.TensorSpec([1, HISTORY, GENRES], tf.string, "history_genres"),
}
CANDIDATE = {
    "movie_id": tf.TensorSpec([None], tf.int64, "movie_id"),
    "movie_release_year": tf.TensorSpec([None], tf.float32, "movie_release_year"),
    "movie_genres": tf.TensorSpec([None, GENRES], tf.string, "movie_genres"),
}


class Preprocessing:
    """Raw features to ids, multi-hot rows and scaled numbers. Works on any number of rows."""

    def __init__(
        self, user_ids: Sequence[int], movie_ids: Sequence[int], occupations: Sequence[str], genres: Sequence[str]
    ):
        layers = keras.layers
        self.user = layers.IntegerLookup(vocabulary=list(user_ids), name="user_vocabulary")
        self.movie = layers.IntegerLookup(vocabulary=list(movie_ids), mask_token=0, name="movie_vocabulary")
        self.gender = layers.StringLookup(vocabulary=["F", "M"], name="gender_vocabulary")
        self.occupation = layers.StringLookup(vocabulary=list(occupations), name="occupation_vocabulary")
        self.zip_code = layers.Hashing(num_bins=512, name="zip_code_hash")
        self.genre = layers.StringLookup(vocabulary=list(genres), mask_token="", name="genre_vocabulary")

    def user_side(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Everything that is the same for all candidates of a request."""
        return {
            "user": self.user(features["user_id"]),
            "age": (features["user_age"] - 35.0) / 12.0,
            "gender": self.gender(features["user_gender"]),
            "occupation": self.occupation(features["user_occupation"]),
            "zip_code": self.zip_code(features["user_zip_code"]),
            "history_movie": self.movie(features["history_movie_id"]),
            "history_genres": self._multi_hot(features["history_genres"]),
        }

    def candidate_side(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """What each candidate brings. A release year of 0 is unknown and takes the mean."""
        year = features["movie_release_year"]
        return {
            "movie": self.movie(features["movie_id"]),
            "year": tf.where(year > 0.0, (year - 1989.0) / 14.0, tf.zeros_like(year)),
            "genres": self._multi_hot(features["movie_genres"]),
        }

    def _multi_hot(self, genres: tf.Tensor) -> tf.Tensor:
        """`[..., 6]` strings to `[..., 1 + genres]`: column 0 is unknown; padding sets nothing."""
        index = self.genre(genres)
        return tf.reduce_max(tf.one_hot(index - 1, self.genre.vocabulary_size() - 1), axis=-2)


def build_ranker(preprocessing: Preprocessing) -> keras.Model:
    """Target attention over the history (as in Deep Interest Network), then an MLP with two heads.

    Outputs: `score`, the probability that the user likes the movie, and `rating`, the expected stars; each `[rows]`.
    """
    layers, ops = keras.layers, keras.ops
    genres = preprocessing.genre.vocabulary_size() - 1

    def value(name: str, dtype: str, *shape: int) -> keras.KerasTensor:
        return keras.Input(shape, name=name, dtype=dtype)

    inputs = {
        "user": value("user", "int64"),
        "age": value("age", "float32"),
        "gender": value("gender", "int64"),
        "occupation": value("occupation", "int64"),
        "zip_code": value("zip_code", "int64"),
        "history_movie": value("history_movie", "int64", HISTORY),
        "history_genres": value("history_genres", "float32", HISTORY, genres),
        "movie": value("movie", "int64"),
        "year": value("year", "float32"),
        "genres": value("genres", "float32", genres),
    }
    small = keras.regularizers.L2(1e-5)

    def embedding(name: str, rows: int, dim: int) -> keras.layers.Embedding:
        return layers.Embedding(rows, dim, embeddings_regularizer=small, name=f"{name}_embedding")

    movie = embedding("movie", preprocessing.movie.vocabulary_size(), 32)
    genre = layers.Dense(16, activation="relu", name="genre_projection")
    item = layers.Concatenate(name="item")([movie(inputs["movie"]), genre(inputs["genres"])])
    steps = layers.Concatenate(name="history")([movie(inputs["history_movie"]), genre(inputs["history_genres"])])

    query = layers.RepeatVector(HISTORY, name="query")(item)
    pairs = layers.Concatenate(name="attention_pairs")([query, steps, query - steps, query * steps])
    hidden = layers.Dense(64, activation="relu", name="attention_hidden")(pairs)
    logits = ops.squeeze(layers.Dense(1, name="attention_logit")(hidden), -1)
    padding = ops.cast(ops.equal(inputs["history_movie"], 0), "float32")
    weights = layers.Softmax(name="attention_weights")(logits - 1e9 * padding)
    # A user without history gets no interest instead of a mean over padding.
    weights = weights * (1.0 - padding)
    interest = ops.sum(ops.expand_dims(weights, -1) * steps, axis=1)

    user = layers.Concatenate(name="user_profile")(
        [
            embedding("user", preprocessing.user.vocabulary_size(), 16)(inputs["user"]),
            embedding("gender", preprocessing.gender.vocabulary_size(), 4)(inputs["gender"]),
            embedding("occupation", preprocessing.occupation.vocabulary_size(), 8)(inputs["occupation"]),
            embedding("zip_code", 512, 8)(inputs["zip_code"]),
            ops.expand_dims(inputs["age"], -1),
        ]
    )
    x = layers.Concatenate(name="ranking_features")(
        [user, interest, item, item * interest, ops.expand_dims(inputs["year"], -1)]
    )
    x = layers.Dense(256, activation="relu", name="mlp_1")(x)
    x = layers.BatchNormalization(name="mlp_1_norm")(x)
    x = layers.Dropout(0.3, name="mlp_1_dropout")(x)
    x = layers.Dense(128, activation="relu", name="mlp_2")(x)
    x = layers.Dropout(0.2, name="mlp_2_dropout")(x)
    score = ops.squeeze(layers.Dense(1, activation="sigmoid", name="score_head")(x), -1)
    rating = 3.5 + ops.squeeze(layers.Dense(1, name="rating_head")(x), -1)
    outputs = {
        "score": layers.Identity(name="score")(score),
        "rating": layers.Identity(name="rating")(rating),
    }
    return keras.Model(inputs, outputs, name="ranker")


class ServingModule(tf.Module):
    """The exported graph: one user and N movies as raw features in, N scores out.

    As teams write it: strings are looked up once, then the user's side is repeated for every candidate and the network runs on
    rows.
    """

    def __init__(self, preprocessing: Preprocessing, ranker: keras.Model):
        super().__init__()
        self._ranker = ranker
        self._preprocessing = preprocessing
        self._tracked = [ranker, *vars(preprocessing).values()]

    @tf.function(input_signature=[REQUEST | CANDIDATE])
    def rank(self, features: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """The `serving_default` signature."""
        candidates = self._preprocessing.candidate_side(features)
        count = tf.shape(features["movie_id"])[0]
        user = {name: tf.repeat(v, count, axis=0) for name, v in self._preprocessing.user_side(features).items()}
        return self._ranker({**user, **candidates}, training=False)
