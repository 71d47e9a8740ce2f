"""The generated messages are those of the .proto files, and their numbers are the public ones."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor
from tensorflow.core.example import example_pb2 as tf_example
from tensorflow.core.example import feature_pb2 as tf_feature
from tensorflow.core.framework import tensor_pb2 as tf_tensor
from tensorflow.core.framework import tensor_shape_pb2 as tf_shape
from tensorflow.core.framework import types_pb2 as tf_types
from tensorflow.core.protobuf import meta_graph_pb2 as tf_meta

from serving.wire import example_pb2, tensor_pb2

ROOT = Path(__file__).parents[2]


def test_generated_code_is_current(tmp_path: Path) -> None:
    protos = [str(path.relative_to(ROOT)) for path in (ROOT / "serving/wire").glob("*.proto")]
    outputs = [f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", "-I.", *outputs, *protos], cwd=ROOT, check=True
    )
    for made in tmp_path.rglob("*_pb2.py*"):
        assert _unversioned(made) == _unversioned(ROOT / made.relative_to(tmp_path)), "run `make proto`"


def _unversioned(path: Path) -> str:
    """Generated code without the version of protobuf that made it."""
    text = re.sub(r"# Protobuf Python Version: .*", "", path.read_text())
    return re.sub(r"(PUBLIC,\n)( +\d+,\n){3}", r"\1", text)


@pytest.mark.parametrize(
    ("ours", "public"),
    [
        (tensor_pb2.TensorProto.DESCRIPTOR, tf_tensor.TensorProto.DESCRIPTOR),
        (tensor_pb2.TensorShapeProto.DESCRIPTOR, tf_shape.TensorShapeProto.DESCRIPTOR),
        (tensor_pb2.TensorShapeProto.Dim.DESCRIPTOR, tf_shape.TensorShapeProto.Dim.DESCRIPTOR),
        (tensor_pb2.TensorInfo.DESCRIPTOR, tf_meta.TensorInfo.DESCRIPTOR),
        (tensor_pb2.SignatureDef.DESCRIPTOR, tf_meta.SignatureDef.DESCRIPTOR),
        (example_pb2.Example.DESCRIPTOR, tf_example.Example.DESCRIPTOR),
        (example_pb2.Features.DESCRIPTOR, tf_feature.Features.DESCRIPTOR),
        (example_pb2.Feature.DESCRIPTOR, tf_feature.Feature.DESCRIPTOR),
        (example_pb2.FloatList.DESCRIPTOR, tf_feature.FloatList.DESCRIPTOR),
        (example_pb2.Int64List.DESCRIPTOR, tf_feature.Int64List.DESCRIPTOR),
        (example_pb2.BytesList.DESCRIPTOR, tf_feature.BytesList.DESCRIPTOR),
    ],
)
def test_field_numbers_are_the_public_ones(ours: Descriptor, public: Descriptor) -> None:
    for field in ours.fields:
        other = public.fields_by_name[field.name]
        assert (field.number, field.type, field.is_repeated) == (other.number, other.type, other.is_repeated)


def test_dtype_numbers_are_the_public_ones() -> None:
    for name, value in tensor_pb2.DataType.items():
        assert tf_types.DataType.Value(name) == value
