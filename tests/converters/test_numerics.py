"""`--debug-numerics` names the first tensor that differs; `--op-plugin` supplies the difference."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from converters.convert import convert
from jaxrank.certificate import CertificateError

_RNG = np.random.default_rng(6)
W = tf.constant(_RNG.standard_normal((8, 8)), tf.float32)
V = tf.constant(_RNG.standard_normal((8, 1)), tf.float32)
PLUGIN = """
import tensorflow as tf
LOWERINGS = {{"{op}": lambda attributes, inputs: [{body}]}}
"""


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    module = tf.Module()

    def score(ids: Any, x: Any) -> dict[str, Any]:
        hidden = tf.tanh(tf.gather(W, ids % 8) + x @ W, name="hidden_tanh")
        return {"y": tf.sigmoid(tf.nn.relu(hidden) @ V)[:, 0]}

    specs = [tf.TensorSpec([None], tf.int64), tf.TensorSpec([None, 8], tf.float32)]
    module.f = tf.function(score, input_signature=specs)
    tf.saved_model.save(module, str(tmp_path / "m"), signatures=module.f)
    return tmp_path / "m"


def _plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, op: str, body: str) -> str:
    name = f"plugin_{op.lower()}_{tmp_path.name}".replace("-", "_")
    (tmp_path / f"{name}.py").write_text(PLUGIN.format(op=op, body=body))
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop(name, None)
    return name


def test_the_first_dense_tensor_that_differs_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = _plugin(tmp_path, monkeypatch, "Tanh", "tf.sin(inputs[0])")
    with pytest.raises(CertificateError, match=r"first difference: .*hidden_tanh:0 .*dense"):
        convert(saved, tmp_path / "b", op_plugins=[wrong], debug_numerics=True)
    with pytest.raises(CertificateError, match="--debug-numerics"):
        convert(saved, tmp_path / "b", op_plugins=[wrong])
    assert not (tmp_path / "b").exists()


def test_the_first_host_tensor_that_differs_is_named(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = _plugin(tmp_path, monkeypatch, "FloorMod", "tf.math.floormod(inputs[0] + 1, inputs[1])")
    with pytest.raises(CertificateError, match=r"first difference: .*made by the host"):
        convert(saved, tmp_path / "b", op_plugins=[wrong], debug_numerics=True)


def test_a_right_lowering_converts(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = _plugin(tmp_path, monkeypatch, "Tanh", "2.0 * tf.sigmoid(2.0 * inputs[0]) - 1.0")
    manifest = convert(saved, tmp_path / "b", op_plugins=[right])
    assert not any(op.op == "Tanh" for op in manifest.ops if op.place == "dense")
    assert manifest.certificate.max_abs_error < 1e-5


def test_rounding_is_not_blamed_on_a_tensor(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(CertificateError, match="builds up over many"):
        convert(saved, tmp_path / "b", tolerance=1e-12, debug_numerics=True)
