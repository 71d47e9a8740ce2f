"""Requests for a certificate: recorded ones read from a file, or ones drawn to fit the signature.

`read_examples` (`recorded.py`) reads `.npz`, TFRecords of `tf.Example` (`messages.proto`) and TensorFlow
Serving's warm-up files; `fitting.py` checks each request against the signature. `draw` (`drawn.py`) makes
requests from `domains.py` through `values.py` and `serialized.py`. `composites.py` knows features that travel
as several arrays, `labels.py` reads what happened after a request.
"""

from converters.examples.composites import repeat_request_rows, rows_of
from converters.examples.domains import Domain, ExampleDomain, FeatureDomain, ParsedFeature
from converters.examples.drawn import SEED, draw
from converters.examples.recorded import ROWS_PER_REQUEST, read_examples, read_labelled

__all__ = [
    "ROWS_PER_REQUEST",
    "SEED",
    "Domain",
    "ExampleDomain",
    "FeatureDomain",
    "ParsedFeature",
    "draw",
    "read_examples",
    "read_labelled",
    "repeat_request_rows",
    "rows_of",
]
