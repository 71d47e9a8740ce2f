"""Trains the MovieLens ranker and writes it as a SavedModel: `python -m examples.movielens.train --help`."""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from converters.tensorflow_logs import import_quietly
from examples.movielens import data as movielens
from examples.movielens.data import MovieLens, Period

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    from examples.movielens.model import Serving

UNSEEN_USER = -1  # in no vocabulary
# Most users of later periods are new: this share of the training rows poses as one, or else the embedding
# of unseen users keeps its random start.
UNSEEN_USER_FRACTION = 0.3


def main() -> None:
    arguments = _parse_arguments()
    os.environ["KERAS_BACKEND"] = "tensorflow"
    import_quietly()
    started = time.monotonic()
    data = movielens.load(arguments.data)
    serving, seconds = train(data, arguments.epochs, arguments.batch_size, arguments.seed)
    periods = movielens.split(data)
    print(f"validation AUC {evaluate(serving, data, periods.validation):.4f}")
    print(f"test AUC       {evaluate(serving, data, periods.test):.4f}")
    save(serving, arguments.out)
    print(f"{arguments.out}: trained in {seconds:.1f} s, {time.monotonic() - started:.1f} s in all")


def train(data: MovieLens, epochs: int, batch_size: int, seed: int) -> tuple["Serving", float]:
    """Fits the ranker on the training period, keeping the epoch with the best validation AUC.

    Returns:
        The model ready to save, and the seconds that fitting took.
    """
    import keras
    import tensorflow as tf

    from examples.movielens.model import Ranker, Serving, Vocabularies, build_preprocessing

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    periods = movielens.split(data)
    vocabularies = Vocabularies.of(data, periods.train)
    preprocessing = build_preprocessing(vocabularies)
    ranker = Ranker(vocabularies)
    ranker.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss={"score": "binary_crossentropy", "rating": "mean_squared_error"},
        loss_weights={"score": 1.0, "rating": 0.2},
        metrics={"score": [keras.metrics.AUC(name="auc")]},
        jit_compile=False,
    )
    train_set = _batches(data, periods.train, preprocessing, batch_size, seed=seed)
    validation_set = _batches(data, periods.validation, preprocessing, 1024, seed=None)
    started = time.monotonic()
    stop = keras.callbacks.EarlyStopping("val_score_auc", mode="max", patience=2, restore_best_weights=True)
    report = keras.callbacks.LambdaCallback(
        on_epoch_end=lambda epoch, logs: print(
            f"epoch {epoch + 1}/{epochs}  loss {logs['loss']:.4f}  AUC {logs['score_auc']:.4f}  "
            f"validation AUC {logs['val_score_auc']:.4f}  {time.monotonic() - started:.0f} s",
            flush=True,
        )
    )
    # The data set shuffles itself.
    ranker.fit(
        train_set,
        validation_data=validation_set,
        epochs=epochs,
        shuffle=False,
        verbose=0,
        callbacks=[stop, report],
    )
    return Serving(*preprocessing, ranker), time.monotonic() - started


def evaluate(serving: "Serving", data: MovieLens, period: Period) -> float:
    """The AUC of `score` over all rows of `movielens.labelled_requests`, through the serving signature."""
    import tensorflow as tf

    likes, scores = [], []
    for labelled in movielens.labelled_requests(data, period):
        features = {name: tf.constant(value) for name, value in labelled.request.features.items()}
        scores.append(serving.serve(features)["score"].numpy())
        likes.append(labelled.like)
    return movielens.auc(np.concatenate(likes), np.concatenate(scores))


def save(serving: "Serving", out: Path) -> None:
    """Writes the SavedModel beside `out` and renames it into place, replacing what was there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as scratch:
        new, old = Path(scratch) / "new", Path(scratch) / "old"
        serving.save(str(new))
        if out.exists():
            os.rename(out, old)
        os.rename(new, out)


def _batches(
    data: MovieLens,
    period: Period,
    preprocessing: "tuple[keras.Model, keras.Model]",
    batch_size: int,
    seed: int | None,
) -> "tf.data.Dataset":
    """Preprocessed (features, labels) batches of one period.

    With a seed: for training, shuffled, each row's history as of that row. Without: for evaluation, in order,
    with histories as of the start of the period, as `movielens.labelled_requests` defines it.
    """
    import tensorflow as tf

    user_preprocessing, movie_preprocessing = preprocessing
    ratings = data.interactions
    user_id, movie_id = ratings.user_id[period.rows], ratings.movie_id[period.rows]
    before = ratings.timestamp[period.rows] if seed is not None else np.full(len(period.rows), period.start)
    user_at = np.searchsorted(data.users.id, user_id)
    rows = {
        "user_id": user_id,
        "user_age": data.users.age[user_at],
        "user_gender": data.users.gender[user_at],
        "user_occupation": data.users.occupation[user_at],
        "user_zip_code": data.users.zip_code[user_at],
        "history_movie_id": movielens.histories(data, user_id, before),
        **movielens.candidate_features(data, movie_id),
    }
    if seed is not None:
        draw = np.random.default_rng(seed).random(len(user_id))
        rows["user_id"] = np.where(draw < UNSEEN_USER_FRACTION, UNSEEN_USER, user_id)
    rating = ratings.rating[period.rows]
    labels = {"score": (rating >= movielens.LIKE_THRESHOLD).astype(np.float32), "rating": rating}

    # Genre names of all histories at once would take gigabytes; they are gathered batch by batch.
    known_ids = np.arange(data.movies.id[-1] + 1) * np.isin(np.arange(data.movies.id[-1] + 1), data.movies.id)
    genre_names = tf.constant(movielens.movie_genres(data, known_ids))

    def preprocess(features, labels):
        features = {**features, "history_genres": tf.gather(genre_names, features["history_movie_id"])}
        user = user_preprocessing({name: features[name] for name in user_preprocessing.input})
        movie = movie_preprocessing({name: features[name] for name in movie_preprocessing.input})
        return {**user, **movie}, labels

    dataset = tf.data.Dataset.from_tensor_slices((rows, labels))
    if seed is not None:
        dataset = dataset.shuffle(len(user_id), seed=seed)
    return dataset.batch(batch_size).map(preprocess, num_parallel_calls=2).prefetch(4)


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m examples.movielens.train",
        description="Train the MovieLens 100k ranker (under a minute on two cores) and save it.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="directory with ml-100k.{inter,item,user}",
        default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="SavedModel directory to write; replaced if present",
        default=argparse.SUPPRESS,
    )
    parser.add_argument("--epochs", type=int, default=4, help="passes over the training rows at most")
    parser.add_argument("--batch-size", type=int, default=512, help="rows per step")
    parser.add_argument("--seed", type=int, default=7, help="of initial weights, shuffling and dropout")
    return parser.parse_args()


if __name__ == "__main__":
    main()
