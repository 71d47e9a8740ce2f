"""`python -m tests.native.messages_subject [CORE]`: finds the tensors of damaged requests. CORE is another
build of the native core, with sanitizers."""

import random
import sys

import numpy as np

from tests.host.hostile_subject import load_core


def main() -> None:
    """Prints how many messages were taken, and how many were left to Protocol Buffers' parser."""
    if len(sys.argv) > 1:
        load_core(sys.argv[1])
    from serving.native import _core
    from serving.wire import predict_pb2 as pb
    from serving.wire.codec import encode_content

    request = pb.PredictRequest(model_spec=pb.ModelSpec(name="m"), output_filter=["a"])
    for name, value in {"x": np.ones((3, 2), np.float32), "id": np.arange(3), "y": np.ones(3)}.items():
        request.inputs[name].CopyFrom(encode_content(value))
    data, draw, taken = request.SerializeToString(), random.Random(3), 0
    for _ in range(20_000):
        damaged = bytearray(data[: draw.choice((len(data), draw.randrange(len(data))))])
        for _ in range(draw.randrange(3) if damaged else 0):
            damaged[draw.randrange(len(damaged))] = draw.choice((0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))
        # A copy that ends where the message does: a byte beyond it is not ours.
        taken += _core.find_tensors(bytes(damaged)) is not None
    print(taken, 20_000 - taken)


if __name__ == "__main__":
    main()
