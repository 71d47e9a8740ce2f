"""Which figures are better when they are larger: one table for all suites.

The first rule whose pattern fits a figure's name, and whose unit is the figure's or any, decides. What only
describes a run and what other engines do has no better: only jaxrank is judged.
"""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from bench.results import Figure

Better = Literal["larger", "smaller", "neither"]


@dataclass(frozen=True)
class Rule:
    """What figures of a name mean.

    Attributes:
        name: pattern of `fnmatch`, case-sensitive.
        better: which direction is.
        unit: of figures that the rule is for; any where it is empty.
        floor: a worse value is no regression as long as it is not beyond this (errors within their bound,
            counts that are nothing).
        correct: whether it tells right scores from wrong ones, which no machine's speed and no chance excuse.
        over: patterns of the figures that it is a mean, an extreme or the best of; `{0}`, `{1}` are the parts
            of its own name between slashes. Without one of those it is another figure.
    """

    name: str
    better: Better
    unit: str = ""
    floor: float = 0.0
    correct: bool = False
    over: tuple[str, ...] = ()

    def members(self, name: str) -> list[str]:
        """The patterns of `over` for a figure of this name."""
        return [pattern.format(*name.split("/")) for pattern in self.over]


OTHERS = ("tensorflow*", "onnxruntime", "openvino", "jax", "torch*", "tvm", "triton*", "tfs*")
"""Names of engines and servers that are not ours, as parts of figures' names."""

OURS = "jaxrank"
_PEERS = tuple(engine for engine in (OURS, *OTHERS) if engine != "tensorflow*") + ("tensorflow_xla",)
_OF_ENGINES = tuple(f"*/{engine}/*" for engine in _PEERS)
_OF_SIZE = tuple(f"{{0}}/{engine}/{{2}}" for engine in (*_PEERS, "tensorflow"))
_OF_TENSORFLOW = (f"*/{OURS}/*", "*/tensorflow/*")
_OF_THROUGHPUT = (f"*/throughput/{OURS}", "*/throughput/tensorflow", "*/throughput_vs_tensorflow")

_NOT_OURS = [Rule(pattern, "neither") for other in OTHERS for pattern in (f"*/{other}", f"*/{other}/*")]

RULES: tuple[Rule, ...] = (
    *_NOT_OURS,
    Rule("numpy_ms_*", "neither"),
    Rule("tensorflow_ms_*", "neither"),
    Rule("ms_redis_py_*", "neither"),
    Rule("ms_mget_per_key", "neither"),
    # What was done, not how well.
    Rule("slo_ms", "neither"),
    Rule("*/client_behind_ms/*", "neither"),  # the load client's, beside whatever runs
    Rule("*/p99/*", "neither"),  # at rates that no two runs share
    Rule("zoo_models", "neither"),
    Rule("onnx_node_tests", "neither"),
    Rule("*_columns", "neither"),
    Rule("*source_mflop_per_candidate", "neither"),
    Rule("distinct_ids_per_request", "neither"),
    Rule("soak_minutes", "neither"),
    Rule("soak_swaps", "neither"),
    Rule("soak_refused", "neither"),
    Rule("soak_answered", "neither"),
    Rule("fuzzed_rpcs", "neither"),
    Rule("damaged_bundles*", "neither"),
    Rule("*kills_survived", "neither"),
    # An error is held to its bound where it is measured; a regression is what leaves it.
    Rule("*error*", "smaller", floor=1e-5, correct=True),
    Rule("auc_difference", "smaller", floor=1e-4, correct=True),
    Rule("*allocations_per_request", "smaller", floor=1.0),
    Rule("*page_faults_per_1000_requests", "smaller", floor=100.0),
    Rule("soak_memory_growth", "smaller", floor=32.0),
    Rule("harness_overhead*", "smaller", floor=0.02),
    Rule("soak_wrong_scores", "smaller", correct=True),
    Rule("soak_failed", "smaller"),
    Rule("crashes", "smaller"),
    Rule("copies_per_byte", "smaller"),
    Rule("dead_node_default_share", "smaller"),
    Rule("*lookup_cost_*", "smaller"),
    Rule("open_ms_*", "smaller"),
    Rule("load_p99_ratio", "smaller"),
    Rule("*_normal_priority", "neither"),  # what loading costs without what we do about it
    Rule("ms_per_candidate_5000_over_200", "smaller", over=(f"*/{OURS}/200", f"*/{OURS}/5000")),
    Rule("dynamic_over_static", "smaller", over=("*/dynamic_over_static/*",)),
    Rule("*_over_*", "smaller"),
    Rule("speedup_vs_best_peer_*", "larger", over=_OF_ENGINES),
    Rule("speedup_vs_tf_*", "larger", over=_OF_TENSORFLOW),
    Rule("*/speedup_vs_best_other/*", "larger", over=_OF_SIZE),
    Rule("*speedup*", "larger"),
    Rule("roofline_fraction_min", "larger", over=("roofline_fraction_*",)),
    Rule("roofline_fraction_*", "larger"),
    Rule("throughput_at_slo_vs_tf", "larger", over=_OF_THROUGHPUT),
    Rule("*throughput*", "larger"),
    Rule("*goodput*", "larger"),
    Rule("*closed_loop/*", "larger"),
    Rule("cache_hit_rate_*", "larger"),
    Rule("*_per_s_*", "larger"),
    Rule("zoo_converted", "larger"),
    Rule("onnx_node_passed", "larger"),
    *(
        Rule("*", "smaller", unit=unit)
        for unit in ("ms", "us", "ns", "s", "MFLOP", "MiB", "B", "bytes a request")
    ),
)


def rule(figure: Figure) -> Rule | None:
    """The rule for a figure; none where no rule fits, and its direction is not known."""
    fits = (r for r in RULES if fnmatchcase(figure.name, r.name) and r.unit in ("", figure.unit))
    return next(fits, None)
