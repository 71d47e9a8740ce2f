"""Trains the MovieLens ranker and exports it as a TensorFlow SavedModel that takes raw features.

    python -m examples.movielens.train --data .cache/ml-100k --out demo/saved_model
"""

import argparse
import os
import shutil
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

from examples.movielens import data as movielens
from examples.movielens.model import Preprocessing, ServingModule, build_ranker

_BATCH = 512


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train a target-attention ranker on MovieLens 100k; about a minute.")
    parser.add_argument("--data", type=Path, required=True, help="directory with ml-100k.inter, .item and .user")
    parser.add_argument("--out", type=Path, required=True, help="SavedModel directory to write")
    parser.add_argument("--epochs", type=int, default=3, help="passes over the training ratings (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=7, help="seed of weights and shuffling (default: %(default)s)")
    arguments = parser.parse_args()
    train(movielens.load(arguments.data), arguments.out, epochs=arguments.epochs, seed=arguments.seed)


def train(data: movielens.MovieLens, out: Path, *, epochs: int, seed: int) -> None:
    """Trains on the first 80% of ratings, keeps the epoch with the best validation AUC, and writes the SavedModel whole."""
    start = time.monotonic()
    keras.utils.set_random_seed(seed)
    preprocessing = Preprocessing(
        user_ids=sorted(data.users),
        movie_ids=sorted(data.movies),
        occupations=sorted({u.occupation.decode() for u in data.users.values()}),
        genres=sorted({g.decode() for m in data.movies.values() for g in m.genres}),
    )
    ranker = build_ranker(preprocessing)
    ranker.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss={"score": "binary_crossentropy", "rating": "mse"},
        loss_weights={"score": 1.0, "rating": 0.3},
    )
    module = ServingModule(preprocessing, ranker)
    rows = _training_rows(data, preprocessing, data.validation_start)
    validation = movielens.evaluation_requests(data, data.validation_start, data.test_start)
    best, best_weights = 0.0, ranker.get_weights()
    for epoch in range(epochs):
        ranker.fit(rows, epochs=1, verbose=0)
        found = evaluate(module, validation)
        print(f"epoch {epoch + 1}/{epochs}: validation AUC {found:.4f}, {time.monotonic() - start:.0f} s", flush=True)
        if found > best:
            best, best_weights = found, ranker.get_weights()
    ranker.set_weights(best_weights)
    test = evaluate(module, movielens.evaluation_requests(data, data.test_start, len(data.ratings.rating)))
    print(f"validation AUC {best:.4f}, test AUC {test:.4f}, trained in {time.monotonic() - start:.0f} s", flush=True)
    export(module, out)


def evaluate(module: ServingModule, requests: list[tuple[dict[str, np.ndarray], np.ndarray]]) -> float:
    """AUC of `score` over all rows of all requests."""
    scores = [module.rank({k: tf.constant(v) for k, v in features.items()})["score"].numpy() for features, _ in requests]
    return movielens.auc(np.concatenate([labels for _, labels in requests]), np.concatenate(scores))


def export(module: ServingModule, out: Path) -> None:
    """Writes the SavedModel in one step: `out` is complete or as it was."""
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=".saved_model.", dir=out.parent))
    tf.saved_model.save(module, str(work), signatures=module.rank.get_concrete_function())
    shutil.rmtree(out, ignore_errors=True)
    work.rename(out)


def _training_rows(data: movielens.MovieLens, preprocessing: Preprocessing, stop: int) -> tf.data.Dataset:
    """Preprocessed rows of the ratings before `stop`, shuffled and batched; each row's history ends before its rating."""
    ratings = data.ratings
    all_ids = np.array(sorted(data.movies), np.int64)
    raw = movielens.candidate_features(data, all_ids)
    movies = {k: v.numpy() for k, v in preprocessing.candidate_side({k: tf.constant(v) for k, v in raw.items()}).items()}
    empty = np.array([], np.int64)
    users = [movielens.user_features(data, u, empty) for u in sorted(data.users)]
    stacked = {k: np.concatenate([u[k] for u in users]) for k in users[0]}
    profiles = preprocessing.user_side({k: tf.constant(v) for k, v in stacked.items()})
    profiles = {k: v.numpy() for k, v in profiles.items() if not k.startswith("history")}

    histories = np.zeros((stop, movielens.HISTORY), np.int64)
    seen: dict[int, list[int]] = {}
    pending: dict[int, list[int]] = {}
    for i in range(stop):
        user = int(ratings.user_id[i])
        recent = seen.setdefault(user, [])[-movielens.HISTORY :]
        histories[i, : len(recent)] = recent
        pending.setdefault(user, []).append(int(ratings.movie_id[i]))
        if i + 1 == stop or ratings.timestamp[i + 1] != ratings.timestamp[i]:
            # Ratings of the same second must not see each other.
            for who, rated in pending.items():
                seen[who].extend(rated)
            pending.clear()
    # Row 0 stands for padding: movie 0, no genre.
    index = np.searchsorted(all_ids, histories) + 1
    index[histories == 0] = 0
    movie = np.concatenate([[0], movies["movie"]])
    genres = np.concatenate([np.zeros((1, movies["genres"].shape[1]), np.float32), movies["genres"]])
    at_user = np.searchsorted(np.array(sorted(data.users)), ratings.user_id[:stop])
    at_movie = np.searchsorted(all_ids, ratings.movie_id[:stop])

    base = tf.data.Dataset.from_tensor_slices(
        (
            {k: v[at_user] for k, v in profiles.items()} | {k: v[at_movie] for k, v in movies.items()},
            index,
            {"score": (ratings.rating[:stop] >= movielens.LIKE).astype(np.float32), "rating": ratings.rating[:stop]},
        )
    )

    def with_history(row: dict[str, tf.Tensor], steps: tf.Tensor, labels: dict[str, tf.Tensor]) -> tuple:
        return row | {"history_movie": tf.gather(movie, steps), "history_genres": tf.gather(genres, steps)}, labels

    return base.shuffle(stop, reshuffle_each_iteration=True).batch(_BATCH).map(with_history).prefetch(2)


if __name__ == "__main__":
    main()
