"""The schema of `manifest.json`: everything a reader must know about a bundle before it opens another
file."""

from typing import Literal

import msgspec

SCHEMA_VERSION = 5
DEFAULT_MAX_CANDIDATES = 5000

MAX_CANDIDATES = 100_000
"""That a bundle can be made for. Plans and certificates are made for so many rows, too."""


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
    """An embedding table: a file that the server maps into memory (docs/tables.md)."""

    name: str
    rows: int
    dim: int
    dtype: str
    """Of the rows that a lookup gives: that of the variable."""
    row_format: Literal["f32", "f16", "bf16", "int8", "f64", "i32", "i64"]
    """In which the file holds them."""
    keyed: bool = False
    """Whether ids are int64 keys of rows; else they are row numbers."""
    bytes: int
    """Of the file."""
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
    """Of float32. A program in lower precision is held to the manifest's `kept` instead, where there are
    some; pairs that TensorFlow orders by less count for no inversion in both cases."""
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
    uncounted_loops: int = 0
    """Loops of the compiled program whose number of trips the data decide: what they repeat is counted once,
    here and in the source graph. The body of any other loop counts as often as it runs."""


class StateTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A value that the request tower hands to the candidate tower."""

    shape: tuple[int, ...]
    dtype: str
    name: str = ""
    """The module of `model.py` and the primitive that make it ("attention.hidden/dot_general"), unique in
    the bundle; empty in bundles of before it was written."""


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """The candidate tower once more, for an exact number of rows (a tile), or for many tiles at once."""

    function: str
    """"candidate_tower_32" for tiles of 32 rows, "candidate_tiles" for many tiles."""
    rows: int
    """Of one tile."""
    module: str
    """The bundle's file."""
    data_tiling: bool
    """Whether matrices are packed into tiles before they are multiplied."""
    flags: tuple[str, ...]
    """Given to the compiler."""


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """Measured CPU time of one call of a candidate tower on one stream."""

    function: str
    """A program's, or "candidate_tower" for the one that takes any number of rows."""
    rows: int
    ms: float


PrecisionFormat = Literal["f32", "f16", "bf16", "f16_storage", "bf16_storage"]
"""Number format of a module's matrix products: operands in that type, sums in float32; `_storage` keeps the
weights in that type and widens them before a float32 product."""


class PrecisionRule(msgspec.Struct, frozen=True, kw_only=True):
    """Modules and the format of their products. A later rule wins over an earlier one."""

    pattern: str
    """Shell pattern of module paths ("experts.*"); what matches a module covers those inside of it; "." is
    the model's own body."""
    format: PrecisionFormat


class KeptMetric(msgspec.Struct, frozen=True, kw_only=True):
    """A bound that the scores of a lower precision were held to, and the value that was found."""

    metric: str
    """"auc", "gauc", "inversions", "abs", or "top<k>"."""
    bound: float
    """The largest change that is allowed; of "top<k>" the smallest overlap."""
    value: float
    """The worst of all targets that were run."""


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """One compiled form of the dense program."""

    name: str
    """As given to `jaxrank compile --target`: "cpu", "cpu:x86-64-v3", "cuda:sm_80", "vulkan"."""
    engine: str
    driver: str
    """What runs it: an IREE HAL driver ("local-sync", "cuda", "vulkan"), or the platform of another engine
    ("cpu", "cuda")."""
    module: str
    """The file that the engine opens first. For IREE the module with the request tower, where there is state,
    and the candidate tower for any number of rows. Empty where the host program makes every output and there
    is nothing to run."""
    flags: tuple[str, ...]
    compiler: str
    data_tiling: bool = False
    """Whether the module packs matrices into tiles before it multiplies them."""
    data_tiling_ms: tuple[float, float] | None = None
    """Milliseconds of the candidate tower without and with data tiling, where that was measured."""
    programs: tuple[Program, ...] = ()
    """More entry points, which share the module's weights and state."""
    batch: Program | None = None
    """Scores the candidates of many requests in one call: "candidate_tiles" of a module that has
    "request_batch" too. Only for models with state whose candidates are independent."""
    instruction_sets: tuple[str, ...] = ()
    """Those of the CPU that it was compiled for and may use; empty for other devices."""
    slice_rows: int = 0
    """Candidates of a call of ONNX Runtime on a CPU, where `jaxrank compile --engine auto` timed several; 0:
    by `Manifest.slice_rows`."""
    costs: tuple[Cost, ...] = ()
    """Measured by `jaxrank compile --tune`; the engine's plans are made of it."""
    notes: tuple[str, ...] = ()
    """What was decided while compiling, and why."""
    certificate: Certificate | None
    """None where the module was compiled for a device that this machine does not have."""

    @property
    def on_cpu(self) -> bool:
        return self.driver == "cpu" or self.driver.startswith("local")

    @property
    def modules(self) -> tuple[str, ...]:
        """Its files, each once."""
        batch = (self.batch,) if self.batch is not None else ()
        files = (self.module, *(p.module for p in (*self.programs, *batch)))
        return tuple(dict.fromkeys(f for f in files if f))


class EngineTime(msgspec.Struct, frozen=True, kw_only=True):
    """How an engine did when the engines of a target were compared on the machine that compiled."""

    target: str
    engine: str
    load_seconds: float = 0.0
    milliseconds: dict[str, float] = {}
    """Median of the dense half by number of candidates, in interleaved runs; empty where it did not run."""
    refused: str = ""
    """Why the engine does not run this model; empty where it does."""


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
    slice_rows: int = 64
    """Candidates of one call on a CPU, where no costs were measured."""
    state: tuple[StateTensor, ...] = ()
    precision: tuple[PrecisionRule, ...] = ()
    """Empty where every product is in float32."""
    kept: tuple[KeptMetric, ...] = ()
    """The bounds that lower precision was held to, on the requests of `warmup/precision.npz` or, without it,
    those of the certificate."""
    targets: tuple[Target, ...] = ()
    """At most one for each target and engine."""
    chosen_engines: dict[str, str] = {}
    """By target, the engine that runs it unless another is asked for; the first of the target's without."""
    engine_times: tuple[EngineTime, ...] = ()
    digest: str = ""
    """sha256 of this manifest with an empty digest: a damaged one must not load either."""
    files: dict[str, str] = {}
    """sha256 of every other file of the bundle, by its path relative to the bundle."""

    def target(self, name: str, engine: str | None = None) -> Target | None:
        """The program of a target: of `engine`, or of the one that was chosen; None where there is none."""
        found = {t.engine: t for t in self.targets if t.name == name}
        first = next(iter(found), "")
        return found.get(engine or self.chosen_engines.get(name, first))
