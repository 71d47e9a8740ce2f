"""What TensorFlow spells as several ops and means as one, recognised as one host operator.

Each file has one meaning. A recognizer is tried on every host op of the types that it is registered for; it
adds an operator, or folds the op into an operator before it, and returns whether it did. Operators that
nothing reads any more are left out of the program.
"""

from converters.recognize.category_encoding import multi_hot
from converters.recognize.embedding_bags import (
    clipped_lookup,
    empty_rows_are_zero,
    unweighted_bag,
    weighted_mean,
    weighted_sum,
)
from converters.recognize.partitions import partitioned_lookup
from converters.recognize.vocabularies import masked_lookup, vocabulary_lookup, wrapped_ids

RECOGNIZERS = {
    "DivNoNan": (weighted_mean,),
    "DynamicStitch": (partitioned_lookup,),
    "LookupTableFindV2": (vocabulary_lookup,),
    "Max": (multi_hot,),
    "ParallelDynamicStitch": (partitioned_lookup,),
    "RealDiv": (clipped_lookup,),
    "SegmentSum": (weighted_sum,),
    "Select": (masked_lookup, wrapped_ids, empty_rows_are_zero),
    "SelectV2": (masked_lookup, wrapped_ids, empty_rows_are_zero),
    "SparseSegmentMean": (unweighted_bag,),
    "SparseSegmentSqrtN": (unweighted_bag,),
    "SparseSegmentSum": (unweighted_bag,),
}

__all__ = ["RECOGNIZERS"]
