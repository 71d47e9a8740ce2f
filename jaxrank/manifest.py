"""The schema of `manifest.json`: everything a reader must know about a bundle before it opens another
file."""

from typing import Literal

import msgspec

SCHEMA_VERSION = 2
DEFAULT_MAX_CANDIDATES = 5000

Scope = Literal["request", "candidate"]
Part = Literal["rows", "sparse_indices", "sparse_values", "sparse_shape", "row_splits", "flat_values"]
"""What an array is of its feature: `rows` is a plain tensor; the others are parts of a SparseTensor or a
RaggedTensor, which a client sends as several arrays."""


class TensorSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One input or output of the signature, as the TensorFlow model declares it.

    `shape` includes the leading row dimension; `None` is a dimension that the client chooses. `dtype` is
    TensorFlow's name of it ("float32", "int64", "string", ...). A request-scope tensor has the same value for
    every candidate: the server takes it once (`[1, ...]`), or repeated on every row where the signature's
    leading dimension is `None`.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    scope: Scope
    tensor_name: str
    """Name of the tensor in the source graph ("serving_default_user_id:0")."""
    part: Part = "rows"
    feature: str = ""
    """The composite feature that a part belongs to ("bag" of "bag/indices"); empty for `rows`. Parts have the
    feature's scope; only `sparse_shape` and `row_splits` tell how many rows there are."""


class Signature(msgspec.Struct, frozen=True, kw_only=True):
    """The serving signature that the bundle answers."""

    name: str
    method_name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """An embedding table: `tables/<name>.npy`, a C-contiguous `[rows, dim]` array that the server maps into
    memory."""

    name: str
    rows: int
    dim: int
    dtype: str
    bytes: int
    file: str


class Vocabulary(msgspec.Struct, frozen=True, kw_only=True):
    """A static lookup table with TensorFlow's default for unknown keys.

    Keys are `<file>.keys.npy`, values `<file>.values.npy`, sorted by key. Strings lie end to end (uint8) with
    `<file>.offsets.npy` or `<file>.value_offsets.npy` (int64, `size + 1`) beside them. A string default is
    text with surrogates for bytes that are not UTF-8.
    """

    name: str
    key_dtype: Literal["string", "int32", "int64"]
    value_dtype: Literal["string", "int32", "int64", "float32"] = "int64"
    size: int
    default_value: int | float | str
    file: str


class OpPlacement(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one op of the source graph."""

    name: str
    op: str
    place: Literal["host", "dense", "folded", "unsupported"]
    reason: str


class OutputCertificate(msgspec.Struct, frozen=True, kw_only=True):
    """How far one output is from TensorFlow's on the requests of `rows` candidates: the worst of them, and of
    all columns where an output has several."""

    output: str
    rows: int
    max_abs_error: float
    max_rel_error: float
    spearman: float
    """Spearman rank correlation of the two score lists; 1.0 for a single row."""
    top1_overlap: float
    """Share of our best row (0 or 1), ten or fifty best rows that are among TensorFlow's; its ties count."""
    top10_overlap: float
    top50_overlap: float
    inversions: int
    """Pairs of rows of one request that TensorFlow orders by more than the tolerance and we do not order the
    same way, over all requests and columns."""
    inversion_share: float
    """`inversions` over all pairs that TensorFlow orders by more than the tolerance; 0.0 without any."""


class Certificate(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence that scores did not move: what was compared with TensorFlow, and the differences seen."""

    stage: str
    """What was run: "flax" or a compile target such as "cpu"."""
    tolerance: float
    requests: int
    outputs: tuple[OutputCertificate, ...]

    @property
    def max_abs_error(self) -> float:
        return max(o.max_abs_error for o in self.outputs)


class Flops(msgspec.Struct, frozen=True, kw_only=True):
    """Floating-point operations of the dense half. For N candidates the source graph does
    `source_per_candidate * N`; the compiled program does `request + candidate * N`. A multiply-add counts as
    two."""

    source_per_candidate: int
    request: int
    candidate: int


class StateTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A value that the request tower hands to the candidate tower."""

    shape: tuple[int, ...]
    dtype: str


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled form of the dense program."""

    name: str
    """As given to `jaxrank compile --target`: "cpu", "cuda:sm_80", "vulkan"."""
    engine: str
    driver: str
    """IREE HAL driver that runs it: "local-sync", "cuda", "vulkan"."""
    module: str
    """The bundle's file; empty where the host program makes every output and there is nothing to run."""
    flags: tuple[str, ...]
    compiler: str
    instruction_sets: tuple[str, ...] = ()
    """Those of the CPU that it was compiled for and may use; empty for other devices."""
    certificate: Certificate | None
    """None where the module was compiled for a device that this machine does not have."""


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Where the bundle came from."""

    format: str
    path: str
    tensorflow: str
    jaxrank: str
    created: str


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """`manifest.json`."""

    schema_version: int
    source: Source
    signature: Signature
    max_candidates: int
    row_wise: bool = True
    """Whether every candidate's outputs depend on that candidate and the request only. Otherwise the model
    sees all candidates of a request at once, and they are never cut into slices."""
    tables: tuple[Table, ...]
    vocabularies: tuple[Vocabulary, ...]
    ops: tuple[OpPlacement, ...]
    certificate: Certificate
    flops: Flops | None = None
    state: tuple[StateTensor, ...] = ()
    targets: tuple[Target, ...] = ()
    digest: str = ""
    """sha256 of this manifest with an empty digest: a damaged one must not load either."""
    files: dict[str, str] = {}
    """sha256 of every other file of the bundle, by its path relative to the bundle."""
