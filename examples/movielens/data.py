"""MovieLens 100k as numpy arrays, and the raw features of a ranking request built from them.

Imports numpy and the standard library only, because client processes use this module too.

Strings are object arrays of UTF-8 `bytes`, as TensorFlow returns them. Timestamps are Unix seconds.
Nothing here looks ahead: a history holds only ratings strictly earlier than the moment it is built for.
"""

import csv
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HISTORY_LENGTH = 50
MAX_GENRES = 6  # the most genres one movie has
LIKE_THRESHOLD = 4.0  # stars; a rating of at least this is a like

REQUEST_FEATURES = (
    "user_id",
    "user_age",
    "user_gender",
    "user_occupation",
    "user_zip_code",
    "history_movie_id",
    "history_genres",
)
CANDIDATE_FEATURES = ("movie_id", "movie_release_year", "movie_genres")

_WHEEL = "recbole==1.2.1"
_FILES = ("ml-100k.inter", "ml-100k.item", "ml-100k.user")
_FOLDER_IN_WHEEL = "recbole/dataset_example/ml-100k/"

Features = dict[str, NDArray]


class MovieLensError(RuntimeError):
    """The data could not be fetched, read or addressed; the message says what to do."""


@dataclass(frozen=True)
class Users:
    """One entry per user, sorted by id."""

    id: NDArray[np.int64]  # [U]
    age: NDArray[np.float32]  # [U], years
    gender: NDArray[np.object_]  # [U], b"M" or b"F"
    occupation: NDArray[np.object_]  # [U]
    zip_code: NDArray[np.object_]  # [U]


@dataclass(frozen=True)
class Movies:
    """One entry per movie, sorted by id."""

    id: NDArray[np.int64]  # [M], from 1: 0 is padding
    title: tuple[str, ...]  # M titles
    release_year: NDArray[np.float32]  # [M], 0 when unknown
    genres: NDArray[np.object_]  # [M, MAX_GENRES], b"" is padding


@dataclass(frozen=True)
class Interactions:
    """One entry per rating, sorted by time."""

    user_id: NDArray[np.int64]  # [R]
    movie_id: NDArray[np.int64]  # [R]
    rating: NDArray[np.float32]  # [R], 1 to 5 stars
    timestamp: NDArray[np.int64]  # [R], Unix seconds


@dataclass(frozen=True)
class MovieLens:
    users: Users
    movies: Movies
    interactions: Interactions


@dataclass(frozen=True)
class Period:
    """The interactions with `start <= timestamp < end`; `rows` indexes `MovieLens.interactions`."""

    start: int
    end: int
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    train: Period
    validation: Period
    test: Period


@dataclass(frozen=True)
class Request:
    """One user and N candidates: `features` is exactly what the model's signature takes."""

    user_id: int
    movie_ids: NDArray[np.int64]  # [N]
    titles: tuple[str, ...]  # N titles
    features: Features


@dataclass(frozen=True)
class LabelledRequest:
    """A request whose candidates the user went on to rate."""

    request: Request
    like: NDArray[np.bool_]  # [N]
    rating: NDArray[np.float32]  # [N], 1 to 5 stars


def fetch(cache_dir: Path | str) -> Path:
    """Returns the directory that holds `ml-100k.{inter,item,user}`, downloading it on first use (about 2 MB).

    The files come out of a Python wheel that pip fetches from whichever index it is configured for. The
    directory appears under `cache_dir` in one rename, so an interrupted call never leaves half of it.

    Raises:
        MovieLensError: pip could not download the wheel, or the wheel lacks the files.
    """
    cache_dir = Path(cache_dir)
    target = cache_dir / "ml-100k"
    if _is_complete(target):
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".ml-100k-") as scratch:
        wheel = _download_wheel(Path(scratch))
        unpacked = Path(scratch) / "ml-100k"
        unpacked.mkdir()
        with zipfile.ZipFile(wheel) as archive:
            for name in _FILES:
                try:
                    source = archive.open(_FOLDER_IN_WHEEL + name)
                except KeyError:
                    raise MovieLensError(
                        f"{wheel.name} has no {_FOLDER_IN_WHEEL}{name}; the package index served another "
                        f"{_WHEEL} than the published one. Check pip's index settings."
                    ) from None
                with source, open(unpacked / name, "wb") as destination:
                    shutil.copyfileobj(source, destination)
        try:
            os.rename(unpacked, target)
        except OSError as error:
            if not _is_complete(target):  # else another process won the race: its copy is as good
                raise MovieLensError(
                    f"cannot put the data at {target}: {error}. Remove it and retry."
                ) from error
    return target


def load(directory: Path | str) -> MovieLens:
    """Reads `ml-100k.{inter,item,user}` (tab-separated, one header line) from `directory`.

    Raises:
        MovieLensError: a file is missing or malformed.
    """
    directory = Path(directory)
    users = sorted(_read(directory / "ml-100k.user", 5), key=lambda row: int(row[0]))
    movies = sorted(_read(directory / "ml-100k.item", 4), key=lambda row: int(row[0]))
    ratings = np.array(_read(directory / "ml-100k.inter", 4), dtype=np.int64)
    # By time; ties by user and movie, so that the order does not depend on the file's.
    ratings = ratings[np.lexsort((ratings[:, 1], ratings[:, 0], ratings[:, 3]))]

    genres = np.full((len(movies), MAX_GENRES), b"", dtype=object)
    for row, (_, _, _, names) in enumerate(movies):
        for column, name in enumerate(names.split()):
            genres[row, column] = name.encode()
    return MovieLens(
        users=Users(
            id=np.array([int(row[0]) for row in users], dtype=np.int64),
            age=np.array([row[1] for row in users], dtype=np.float32),
            gender=_bytes(row[2] for row in users),
            occupation=_bytes(row[3] for row in users),
            zip_code=_bytes(row[4] for row in users),
        ),
        movies=Movies(
            id=np.array([int(row[0]) for row in movies], dtype=np.int64),
            title=tuple(row[1] for row in movies),
            # One movie's year is spelt "unkonwn" in the file.
            release_year=np.array([row[2] if row[2].isdigit() else 0 for row in movies], dtype=np.float32),
            genres=genres,
        ),
        interactions=Interactions(
            user_id=ratings[:, 0].copy(),
            movie_id=ratings[:, 1].copy(),
            rating=ratings[:, 2].astype(np.float32),
            timestamp=ratings[:, 3].copy(),
        ),
    )


def split(data: MovieLens) -> Split:
    """Cuts all interactions by time, the earliest 80 % for training, then 10 % and 10 %.

    The cuts are moments, the same for every user: ratings that share a second stay on one side.
    """
    timestamp = data.interactions.timestamp
    cuts = [int(timestamp[len(timestamp) * tenths // 10]) for tenths in (0, 8, 9)] + [int(timestamp[-1]) + 1]
    periods = [
        Period(start, end, np.flatnonzero((timestamp >= start) & (timestamp < end)))
        for start, end in zip(cuts, cuts[1:], strict=False)
    ]
    return Split(*periods)


def histories(data: MovieLens, user_ids: NDArray[np.int64], before: NDArray[np.int64]) -> NDArray[np.int64]:
    """The last 50 movies that each user rated strictly before a moment, oldest first, then 0 as padding.

    Args:
        user_ids: [R].
        before: [R], Unix seconds.

    Returns:
        Movie ids [R, HISTORY_LENGTH].
    """
    ratings = data.interactions
    order = np.argsort(ratings.user_id, kind="stable")  # by user, and by time within a user
    by_user, times, movies = ratings.user_id[order], ratings.timestamp[order], ratings.movie_id[order]
    result = np.zeros((len(user_ids), HISTORY_LENGTH), dtype=np.int64)
    for row, (user_id, moment) in enumerate(zip(user_ids, before, strict=True)):
        first, last = np.searchsorted(by_user, [user_id, user_id + 1])
        end = first + int(np.searchsorted(times[first:last], moment, side="left"))
        recent = movies[max(first, end - HISTORY_LENGTH) : end]
        result[row, : len(recent)] = recent
    return result


def user_features(data: MovieLens, user_id: int, before: int) -> Features:
    """The request-scope features of one user as of a moment (Unix seconds); every leading dimension is 1."""
    at = _positions(data.users.id, np.array([user_id], dtype=np.int64), "user")
    history = histories(data, data.users.id[at], np.array([before]))
    return {
        "user_id": data.users.id[at],
        "user_age": data.users.age[at],
        "user_gender": data.users.gender[at],
        "user_occupation": data.users.occupation[at],
        "user_zip_code": data.users.zip_code[at],
        "history_movie_id": history,
        "history_genres": movie_genres(data, history),
    }


def candidate_features(data: MovieLens, movie_ids: NDArray[np.int64]) -> Features:
    """The candidate-scope features of N movies; every leading dimension is N."""
    movie_ids = np.asarray(movie_ids, dtype=np.int64)
    at = _positions(data.movies.id, movie_ids, "movie")
    return {
        "movie_id": movie_ids,
        "movie_release_year": data.movies.release_year[at],
        "movie_genres": data.movies.genres[at],
    }


def movie_genres(data: MovieLens, movie_ids: NDArray[np.int64]) -> NDArray[np.object_]:
    """The genres of movies of any shape [...]: [..., MAX_GENRES]; movie id 0 (padding) has none."""
    genres = np.full((*movie_ids.shape, MAX_GENRES), b"", dtype=object)
    real = movie_ids != 0
    genres[real] = data.movies.genres[_positions(data.movies.id, movie_ids[real], "movie")]
    return genres


def request(
    data: MovieLens, user_id: int, movie_ids: NDArray[np.int64] | None = None, before: int | None = None
) -> Request:
    """One ranking request.

    Args:
        movie_ids: the candidates [N]; by default every movie the user has not rated before the moment.
        before: the moment of the request, Unix seconds; by default the start of the test period.

    Raises:
        MovieLensError: an id is not in the data.
    """
    if before is None:
        before = split(data).test.start
    if movie_ids is None:
        ratings = data.interactions
        rated = ratings.movie_id[(ratings.user_id == user_id) & (ratings.timestamp < before)]
        movie_ids = np.setdiff1d(data.movies.id, rated)
    candidates = candidate_features(data, movie_ids)
    at = _positions(data.movies.id, candidates["movie_id"], "movie")
    return Request(
        user_id=int(user_id),
        movie_ids=candidates["movie_id"],
        titles=tuple(data.movies.title[position] for position in at),
        features={**user_features(data, user_id, before), **candidates},
    )


def requests(
    data: MovieLens,
    user_ids: Iterable[int],
    movie_ids: NDArray[np.int64] | None = None,
    before: int | None = None,
) -> Iterator[Request]:
    """One `request` per user, with the same defaults."""
    if before is None:
        before = split(data).test.start
    for user_id in user_ids:
        yield request(data, user_id, movie_ids, before)


def labelled_requests(data: MovieLens, period: Period) -> Iterator[LabelledRequest]:
    """One request per user active in `period`: its candidates are all that the user rated in the period.

    The user's features and history are as of the START of the period for every candidate. That is harder than
    history as of each rating, but a server answers it with one call per user. TensorFlow's AUC and the served
    one both use this definition.
    """
    ratings = data.interactions
    for user_id in np.unique(ratings.user_id[period.rows]):
        rows = period.rows[ratings.user_id[period.rows] == user_id]
        yield LabelledRequest(
            request=request(data, int(user_id), ratings.movie_id[rows], before=period.start),
            like=ratings.rating[rows] >= LIKE_THRESHOLD,
            rating=ratings.rating[rows],
        )


def auc(like: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Area under the ROC curve: the chance that a liked row outscores one not liked; a tie counts one half.

    Computed from mid-ranks (the Mann-Whitney U statistic). NaN when only one class is present.
    """
    like = np.asarray(like, dtype=bool)
    values, inverse, counts = np.unique(score, return_inverse=True, return_counts=True)
    if np.isnan(values).any():
        raise MovieLensError("a score is NaN; look at the model's output for that request")
    mid_rank = np.cumsum(counts) - (counts - 1) / 2
    likes, others = int(like.sum()), int((~like).sum())
    if not likes or not others:
        return float("nan")
    return float((mid_rank[inverse][like].sum() - likes * (likes + 1) / 2) / (likes * others))


def _is_complete(directory: Path) -> bool:
    return all((directory / name).is_file() for name in _FILES)


def _download_wheel(directory: Path) -> Path:
    # Nothing is installed: the wheel only serves as a container of data.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--dest", str(directory), _WHEEL]
    done = subprocess.run(command, capture_output=True, text=True)
    wheels = sorted(directory.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        reason = done.stderr.strip() or f"pip exited with status {done.returncode} and left no wheel"
        raise MovieLensError(
            f"cannot download {_WHEEL}, which carries MovieLens 100k:\n{reason}\n"
            f"Check that `{' '.join(command[:4])}` works here, or put {', '.join(_FILES)} in place yourself."
        )
    return wheels[0]


def _read(path: Path, columns: int) -> list[list[str]]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[1:]
    except FileNotFoundError:
        raise MovieLensError(f"{path} is missing; `examples.movielens.data.fetch` downloads it") from None
    for line, row in enumerate(rows, start=2):
        if len(row) != columns:
            raise MovieLensError(f"{path}:{line} has {len(row)} columns, not {columns}; fetch it again")
    return rows


def _bytes(values: Iterable[str]) -> NDArray[np.object_]:
    return np.array([value.encode() for value in values], dtype=object)


def _positions(sorted_ids: NDArray[np.int64], ids: NDArray[np.int64], what: str) -> NDArray[np.int64]:
    at = np.minimum(np.searchsorted(sorted_ids, ids), len(sorted_ids) - 1)
    unknown = np.unique(ids[sorted_ids[at] != ids])
    if unknown.size:
        raise MovieLensError(f"no such {what} id: {unknown[:5].tolist()}; ids run up to {sorted_ids[-1]}")
    return at
