import numpy as np

def hash_bucket_fast(strings: list[bytes], buckets: int, out: np.ndarray) -> None:
    """Writes TensorFlow's string_to_hash_bucket_fast of each bytes object in `strings` to int64 `out`."""
