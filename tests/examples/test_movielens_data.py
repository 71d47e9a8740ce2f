"""The MovieLens features against a plain reading of the data: no look-ahead, padding, shapes, dtypes, AUC."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from examples.movielens import data as movielens

# name -> (dtype, leading dimension, trailing dimensions); "S" stands for object arrays of bytes
EXPECTED = {
    "user_id": (np.int64, "request", ()),
    "user_age": (np.float32, "request", ()),
    "user_gender": ("S", "request", ()),
    "user_occupation": ("S", "request", ()),
    "user_zip_code": ("S", "request", ()),
    "history_movie_id": (np.int64, "request", (50,)),
    "history_genres": ("S", "request", (50, 6)),
    "movie_id": (np.int64, "candidate", ()),
    "movie_release_year": (np.float32, "candidate", ()),
    "movie_genres": ("S", "candidate", (6,)),
}


@pytest.fixture(scope="module")
def data(movielens_dir: Path) -> movielens.MovieLens:
    return movielens.load(movielens_dir)


@pytest.fixture(scope="module")
def periods(data: movielens.MovieLens) -> movielens.Split:
    return movielens.split(data)


def test_load_reads_all_of_it(data):
    assert len(data.users.id) == 943
    assert len(data.movies.id) == len(data.movies.title) == 1682
    assert len(data.interactions.rating) == 100_000
    assert data.movies.title[0] == "Toy Story"
    assert data.movies.genres[0].tolist() == [b"Animation", b"Children's", b"Comedy", b"", b"", b""]
    assert data.movies.release_year[266] == 0  # "unkonwn" in the file
    assert (np.diff(data.interactions.timestamp) >= 0).all()


def test_periods_cover_all_ratings_once_and_share_no_second(data, periods):
    three = (periods.train, periods.validation, periods.test)
    assert np.concatenate([period.rows for period in three]).tolist() == list(range(100_000))
    assert [len(period.rows) for period in three] == pytest.approx([80_000, 10_000, 10_000], abs=100)
    for earlier, later in zip(three, three[1:], strict=False):
        timestamp = data.interactions.timestamp
        assert timestamp[earlier.rows].max() < later.start == earlier.end <= timestamp[later.rows].min()


def test_history_is_the_last_50_strictly_earlier_ratings(data):
    ratings = data.interactions
    rows = np.random.default_rng(0).choice(100_000, 300, replace=False)
    found = movielens.histories(data, ratings.user_id[rows], ratings.timestamp[rows])
    assert found.shape == (300, 50) and found.dtype == np.int64
    for row, history in zip(rows, found, strict=True):
        earlier = (ratings.user_id == ratings.user_id[row]) & (ratings.timestamp < ratings.timestamp[row])
        expected = ratings.movie_id[earlier][-50:]
        assert history[: len(expected)].tolist() == expected.tolist()
        assert not history[len(expected) :].any()
        assert ratings.movie_id[row] not in history


def test_history_is_empty_before_the_first_rating(data):
    features = movielens.user_features(data, 1, before=0)
    assert not features["history_movie_id"].any()
    assert (features["history_genres"] == b"").all()


def test_padding_has_no_genres_and_steps_have_their_movies(data, periods):
    features = movielens.user_features(data, 405, periods.test.start)
    for movie_id, genres in zip(features["history_movie_id"][0], features["history_genres"][0], strict=True):
        expected = data.movies.genres[movie_id - 1].tolist() if movie_id else [b""] * 6
        assert genres.tolist() == expected


def test_request_has_exactly_the_features_of_the_signature(data):
    request = movielens.request(data, 13, np.array([267, 1, 50]))
    assert set(request.features) == set(EXPECTED)
    assert set(EXPECTED) == {*movielens.REQUEST_FEATURES, *movielens.CANDIDATE_FEATURES}
    for name, (dtype, scope, trailing) in EXPECTED.items():
        value = request.features[name]
        assert value.shape == (1 if scope == "request" else 3, *trailing), name
        if dtype == "S":
            assert value.dtype == object and all(type(item) is bytes for item in value.ravel()), name
        else:
            assert value.dtype == dtype, name
    assert request.features["movie_id"].tolist() == [267, 1, 50]
    assert request.titles[1:] == ("Toy Story", "Star Wars")


def test_request_offers_the_movies_not_rated_yet(data, periods):
    ratings = data.interactions
    for request in movielens.requests(data, [13, 405]):
        rated = ratings.movie_id[
            (ratings.user_id == request.user_id) & (ratings.timestamp < periods.test.start)
        ]
        assert rated.size
        assert sorted([*request.movie_ids, *rated]) == data.movies.id.tolist()


def test_labelled_requests_cover_the_period_as_of_its_start(data, periods):
    ratings, period = data.interactions, periods.test
    found = list(movielens.labelled_requests(data, period))
    assert sum(len(each.like) for each in found) == len(period.rows)
    assert len({each.request.user_id for each in found}) == len(found)
    for each in found:
        assert ((each.rating >= 4) == each.like).all()
        rated_in_period = ratings.movie_id[period.rows][ratings.user_id[period.rows] == each.request.user_id]
        assert sorted(each.request.movie_ids) == sorted(rated_in_period)
        assert not np.isin(rated_in_period, each.request.features["history_movie_id"]).any()


@pytest.mark.parametrize("kind, unknown", [("user", (9999, [1])), ("movie", (1, [1, 9999]))])
def test_an_unknown_id_is_an_error_that_names_it(data, kind, unknown):
    user_id, movie_ids = unknown
    with pytest.raises(movielens.MovieLensError, match=rf"no such {kind} id: \[9999\]"):
        movielens.request(data, user_id, np.array(movie_ids))


def test_auc_counts_pairs():
    rng = np.random.default_rng(1)
    like = rng.random(200) < 0.4
    score = np.round(rng.random(200), 1)  # many ties
    pairs = np.sign(score[like][:, None] - score[~like][None, :]) / 2 + 0.5
    assert movielens.auc(like, score) == pytest.approx(pairs.mean(), abs=1e-12)


def test_auc_refuses_nan():
    with pytest.raises(movielens.MovieLensError, match="NaN"):
        movielens.auc(np.array([True, False]), np.array([0.5, np.nan]))


def test_missing_and_malformed_files_are_named(tmp_path):
    with pytest.raises(movielens.MovieLensError, match=r"ml-100k\.user is missing"):
        movielens.load(tmp_path)
    (tmp_path / "ml-100k.user").write_text("header\n1\t24\n")
    with pytest.raises(movielens.MovieLensError, match=r"ml-100k\.user:2 has 2 columns, not 5"):
        movielens.load(tmp_path)


def test_fetch_skips_a_complete_directory(tmp_path):
    directory = tmp_path / "ml-100k"
    directory.mkdir()
    for suffix in ("inter", "item", "user"):
        (directory / f"ml-100k.{suffix}").touch()
    assert movielens.fetch(tmp_path) == directory


def test_a_client_needs_no_tensorflow():
    code = (
        "import sys, examples.movielens.data; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    )
    root = Path(movielens.__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root).returncode == 0
