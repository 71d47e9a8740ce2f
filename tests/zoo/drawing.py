"""Draws raw features of requests, with what real traffic has: unknown ids, empty strings and bags, other
scripts."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

CITIES = ("amsterdam", "berlin", "köln", "łódź", "paris", "東京")
DEVICES = ("phone", "tv", "tablet", "a rather long device name, 中文 included")
GENRES = ("action", "comédie", "drama", "horror", "sci-fi", "война", "western")
BRANDS = ("acme", "big-co", "façade", "größe", "niche", "zed")
QUERIES = ("Red Shoes", "wireless  HEADPHONES 2x", "café crème", "usb-c cable", "shoes", "")


class Draw:
    """A source of features for one request."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def strings(self, pool: Sequence[str], *shape: int) -> np.ndarray:
        """Bytes of the pool's words, of the empty string and of words outside of the pool."""
        words = np.array([w.encode() for w in (*pool, *pool, "", "unknown ☃")], object)
        return self.rng.choice(words, shape)

    def ids(self, high: int, *shape: int, low: int = -2) -> np.ndarray:
        """int64 ids in `[low, high + high / 8)`: some are below or above those of a table of `high` rows."""
        return self.rng.integers(low, high + high // 8, shape)

    def floats(self, *shape: int) -> np.ndarray:
        """float32, standard normal."""
        return self.rng.standard_normal(shape).astype(np.float32)

    def prices(self, *shape: int) -> np.ndarray:
        """float32 in [0, 500), most of them small, some zero."""
        values = self.rng.gamma(1.5, 40.0, shape) * (self.rng.random(shape) > 0.1)
        return np.minimum(values, 499.0).astype(np.float32)

    def lengths(self, steps: int, rows: int) -> np.ndarray:
        """Lengths of `rows` lists of at most `steps`; the empty list is one of them."""
        return self.rng.integers(0, steps + 1, rows)

    def history(self, high: int, rows: int, steps: int) -> np.ndarray:
        """int64 `[rows, steps]`: ids from 1, padded with 0 at the end."""
        ids = self.rng.integers(1, high + high // 8, (rows, steps))
        return np.where(np.arange(steps) < self.lengths(steps, rows)[:, None], ids, 0)

    def joined(self, pool: Sequence[str], rows: int, most: int) -> np.ndarray:
        """`[rows]` strings of up to `most` words joined by commas; the empty string is the empty list."""
        lists = [self.strings(pool, n).tolist() for n in self.lengths(most, rows)]
        return np.array([b",".join(words) for words in lists], object)

    def values(self, high: int, counts: np.ndarray, low: int = 0) -> np.ndarray:
        """int64 ids in `[low, high)` of bags with these counts, one after the other."""
        return self.rng.integers(low, high, int(counts.sum()))


def example(**features: Sequence[bytes] | Sequence[int] | Sequence[float] | np.ndarray) -> bytes:
    """A serialized `tf.Example`; a feature's kind is that of its values."""
    message = tf.train.Example()
    for name, values in features.items():
        feature = message.features.feature[name]
        values = list(values)
        if not values:
            feature.SetInParent()
        elif isinstance(values[0], bytes):
            feature.bytes_list.value.extend(values)
        elif isinstance(values[0], int | np.integer):
            feature.int64_list.value.extend(int(v) for v in values)
        else:
            feature.float_list.value.extend(float(v) for v in values)
    return message.SerializeToString()
