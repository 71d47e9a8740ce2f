"""MovieLens 100k as ranking requests: one user at one moment, and the movies to rank.

Raw features as a client would send them. Request-scope arrays have one row, candidate-scope arrays one row per movie.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

HISTORY = 50
"""Most recent ratings that a request carries."""
GENRES = 6
"""Genre slots of a movie; the longest list in the data set has six."""
LIKE = 4.0
"""A rating from here on counts as liked."""

_PACKAGE = "recbole==1.2.1"  # its wheel carries the data set; the package itself is not installed
_INSIDE = "recbole/dataset_example/ml-100k/"
_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")


class DataError(Exception):
    """The data set is missing or not what this example expects."""


@dataclass(frozen=True)
class User:
    """One user as MovieLens describes them."""

    user_id: int
    age: float
    gender: bytes
    occupation: bytes
    zip_code: bytes


@dataclass(frozen=True)
class Movie:
    """One movie; `year` is 0 where the data set has none."""

    movie_id: int
    title: str
    year: float
    genres: tuple[bytes, ...]


@dataclass(frozen=True)
class Ratings:
    """All ratings in order of time: int64 ids and timestamps (seconds), float32 ratings, each `[100000]`."""

    user_id: np.ndarray
    movie_id: np.ndarray
    rating: np.ndarray
    timestamp: np.ndarray


@dataclass(frozen=True)
class MovieLens:
    """The whole data set with its temporal split: training ratings come before `validation_start`, test ratings from
    `test_start` on (positions in `ratings`)."""

    users: dict[int, User]
    movies: dict[int, Movie]
    ratings: Ratings
    validation_start: int
    test_start: int


def fetch(cache: Path) -> Path:
    """Downloads the data set once. Returns the directory of its three files. Raises `DataError`."""
    target = cache / "ml-100k"
    if all((target / name).is_file() for name in _FILES):
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as work:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, _PACKAGE]
        done = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(work).glob("*.whl"))
        if done.returncode or not wheels:
            raise DataError(f"could not download {_PACKAGE}, which carries MovieLens 100k:\n{done.stderr.strip()}")
        unpacked = Path(work) / "ml-100k"
        unpacked.mkdir()
        with zipfile.ZipFile(wheels[0]) as wheel:
            for name in _FILES:
                (unpacked / name).write_bytes(wheel.read(_INSIDE + name))
        shutil.rmtree(target, ignore_errors=True)
        unpacked.rename(target)
    return target


def load(directory: Path) -> MovieLens:
    """Reads the data set and splits it by time: the first 80% of ratings, the next 10%, the last 10%."""
    users = {
        int(uid): User(int(uid), float(age), gender.encode(), occupation.encode(), zip_code.encode())
        for uid, age, gender, occupation, zip_code in _rows(directory / "ml-100k.user", 5)
    }
    movies = {
        int(mid): Movie(int(mid), title, float(year) if year.isdigit() else 0.0, tuple(g.encode() for g in genres.split()))
        for mid, title, year, genres in _rows(directory / "ml-100k.item", 4)
    }
    columns = np.array(_rows(directory / "ml-100k.inter", 4), dtype=np.float64).T
    # Many ratings share a second; the user and movie make the order, and so the split, the same everywhere.
    order = np.lexsort((columns[1], columns[0], columns[3]))
    user_id, movie_id, rating, timestamp = columns[:, order]
    ratings = Ratings(
        user_id.astype(np.int64), movie_id.astype(np.int64), rating.astype(np.float32), timestamp.astype(np.int64)
    )
    count = len(rating)
    return MovieLens(users, movies, ratings, validation_start=count * 8 // 10, test_start=count * 9 // 10)


def user_features(data: MovieLens, user_id: int, history: np.ndarray) -> dict[str, np.ndarray]:
    """Request-scope features. `history` are movie ids, oldest first; the last 50 are kept, padded with 0 at the end."""
    user = data.users[user_id]
    recent = history[-HISTORY:]
    movie_ids = np.zeros((1, HISTORY), np.int64)
    movie_ids[0, : len(recent)] = recent
    genres = np.full((1, HISTORY, GENRES), b"", object)
    for i, movie_id in enumerate(recent):
        genres[0, i] = _genre_row(data.movies[int(movie_id)])
    return {
        "user_id": np.array([user.user_id], np.int64),
        "user_age": np.array([user.age], np.float32),
        "user_gender": np.array([user.gender], object),
        "user_occupation": np.array([user.occupation], object),
        "user_zip_code": np.array([user.zip_code], object),
        "history_movie_id": movie_ids,
        "history_genres": genres,
    }


def candidate_features(data: MovieLens, movie_ids: np.ndarray) -> dict[str, np.ndarray]:
    """Candidate-scope features, one row for each movie id."""
    movies = [data.movies[int(m)] for m in movie_ids]
    genres = np.full((len(movies), GENRES), b"", object)
    for i, movie in enumerate(movies):
        genres[i] = _genre_row(movie)
    return {
        "movie_id": np.asarray(movie_ids, np.int64),
        "movie_release_year": np.array([m.year for m in movies], np.float32),
        "movie_genres": genres,
    }


def history_before(data: MovieLens, user_id: int, position: int) -> np.ndarray:
    """Movie ids that the user rated before the rating at `position`, oldest first."""
    mine = np.flatnonzero(data.ratings.user_id[:position] == user_id)
    return data.ratings.movie_id[mine]


def request(data: MovieLens, user_id: int, movie_ids: np.ndarray, position: int) -> dict[str, np.ndarray]:
    """A whole request: the user as of the rating at `position`, against the given movies."""
    history = history_before(data, user_id, position)
    return user_features(data, user_id, history) | candidate_features(data, movie_ids)


def unseen_movies(data: MovieLens, user_id: int) -> np.ndarray:
    """Ids of all movies that the user never rated, ascending."""
    seen = data.ratings.movie_id[data.ratings.user_id == user_id]
    return np.setdiff1d(np.array(sorted(data.movies), np.int64), seen)


def evaluation_requests(data: MovieLens, start: int, stop: int) -> list[tuple[dict[str, np.ndarray], np.ndarray]]:
    """One request for each user with ratings in `[start, stop)`: those movies as candidates, the history as of `start`.

    Returns pairs of features and float32 labels (1.0 where liked), in order of user id. A user's history stops at `start`, so
    nothing of the period that is scored leaks into it.
    """
    users = data.ratings.user_id[start:stop]
    pairs = []
    for user_id in np.unique(users):
        rows = start + np.flatnonzero(users == user_id)
        features = request(data, int(user_id), data.ratings.movie_id[rows], start)
        pairs.append((features, (data.ratings.rating[rows] >= LIKE).astype(np.float32)))
    return pairs


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    """Area under the ROC curve: the chance that a liked row scores above one that is not; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = ((ends - counts + ends + 1) / 2)[inverse]
    positive = labels > 0.5
    wins = ranks[positive].sum() - positive.sum() * (positive.sum() + 1) / 2
    return float(wins / (positive.sum() * (~positive).sum()))


def _genre_row(movie: Movie) -> np.ndarray:
    row = np.full(GENRES, b"", object)
    row[: len(movie.genres)] = movie.genres
    return row


def _rows(path: Path, columns: int) -> list[list[str]]:
    """Tab-separated rows without their header."""
    if not path.is_file():
        raise DataError(f"{path} does not exist; run `make demo`, which fetches MovieLens 100k")
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    if not rows or any(len(row) != columns for row in rows):
        raise DataError(f"{path} does not have {columns} tab-separated columns in every row; fetch it again")
    return rows
