"""A bundle's host program on both of its paths: the native executor and the NumPy operators."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from jaxrank.host_program import HostProgram
from jaxrank.manifest import Manifest
from serving.host import HostProgramRunner
from serving.host.program import FeatureBlocks


def assert_same_blocks(program: HostProgram, found: FeatureBlocks, expected: FeatureBlocks) -> None:
    """The same bits of integers and bools; floats within a few roundings of the largest value, because sums
    run in another order."""
    for column in program.columns:
        ours, theirs = getattr(found, column.scope), getattr(expected, column.scope)
        assert ours.shape == theirs.shape, f"{column.scope} block: {ours.shape} != {theirs.shape}"
        end = column.offset + math.prod(column.shape)
        ours, theirs = ours[:, column.offset : end], theirs[:, column.offset : end]
        if column.dtype == "float32":
            finite = np.abs(theirs[np.isfinite(theirs)])
            scale = float(finite.max()) if finite.size else 0.0
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, atol=2e-6 * scale, err_msg=column.tensor)
        else:
            np.testing.assert_array_equal(ours.view(np.int32), theirs.view(np.int32), err_msg=column.tensor)
    assert found.outputs.keys() == expected.outputs.keys()
    for name, theirs in expected.outputs.items():
        ours = found.outputs[name]
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), name
        if theirs.dtype.kind == "f":
            np.testing.assert_allclose(ours, theirs, rtol=2e-6, err_msg=name)
        else:
            assert ours.tolist() == theirs.tolist(), name


def assert_native(bundle: Path, manifest: Manifest, features: Mapping[str, np.ndarray]) -> None:
    """The bundle's program is native, and gives what the NumPy operators give, in two parts, too."""
    native = HostProgramRunner(bundle, manifest)
    assert not native.not_native
    numpy = HostProgramRunner(bundle, manifest, native=False)
    expected = numpy.run(features)
    assert_same_blocks(native.program, native.run(features), expected)
    in_parts = HostProgramRunner(bundle, manifest, in_parts=True)
    assert not in_parts.not_native
    assert_same_blocks(native.program, in_parts.run(features), expected)
