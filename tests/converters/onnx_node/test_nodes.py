"""Every node test of the onnx package whose inputs and outputs are plain tensors passes, or fails for a
reason in `reasons.py`."""

import fnmatch

import pytest

from tests.converters.onnx_node import conformance
from tests.converters.onnx_node.reasons import XFAIL, out_of_scope, xfail_reason


def _parameters() -> list:
    """An `_expanded` test is another one's operator as the function body that defines it: operators that
    have tests of their own. `python -m bench convert` runs these, too."""
    parameters = []
    for name in conformance.cases_in_scope():
        if "_expanded" in name:
            continue
        reason = xfail_reason(name)
        marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
        parameters.append(pytest.param(name, marks=marks, id=name))
    return parameters


@pytest.mark.parametrize("name", _parameters())
def test_node(name: str) -> None:
    conformance.check(conformance.cases()[name])


def test_nine_of_ten_are_expected_to_pass() -> None:
    names = list(conformance.cases_in_scope())
    expected = [name for name in names if xfail_reason(name) is None]
    assert len(expected) >= 0.9 * len(names)


def test_every_reason_is_about_a_test() -> None:
    names = list(conformance.cases_in_scope())
    assert not [pattern for pattern in XFAIL if not fnmatch.filter(names, pattern)]


def test_only_what_is_not_a_plain_tensor_is_out_of_scope() -> None:
    """Training, optionals, sequences and strings: a few of all tests."""
    excluded = [name for name, case in conformance.cases().items() if out_of_scope(case) is not None]
    assert len(excluded) < 0.05 * len(conformance.cases())


def test_a_wrong_output_fails() -> None:
    case = conformance.cases()["test_add"]
    (inputs, (expected,)) = case.data_sets[0]
    broken = type(case)(**{**vars(case), "data_sets": [(inputs, [expected + 1])]})
    with pytest.raises(AssertionError):
        conformance.check(broken)
    assert not conformance.passes(broken)


def test_counts() -> None:
    found = conformance.counts(["test_add", "test_lstm_defaults", "test_loop11", "test_size"])
    assert (found.passed, found.folded) == (3, 1)
    assert found.total > found.in_scope > 0
    assert "strings" in conformance.table(found)
