"""TensorFlow behind the same wire: `python -m bench.serve_baseline SAVED_MODEL`.

What a team gets that writes its own server around TensorFlow, or runs TensorFlow Serving without batching:
gRPC's Python server with a thread pool, the same messages and the same decoder as ours, and the SavedModel's
signature in process. A request whose client has given up is not run.
"""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import grpc

from serving.wire.codec import decode
from serving.wire.predict_messages import read_request, write_response
from serving.wire.reflection import PREDICTION_SERVICE

_MAX_MESSAGE = 64 << 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("saved_model", type=Path)
    parser.add_argument("--intra", type=int, required=True, help="threads of one op")
    parser.add_argument("--inter", type=int, required=True, help="ops that run at once")
    parser.add_argument("--signature", default="serving_default")
    parser.add_argument("--workers", type=int, required=True, help="requests that run at once")
    options = parser.parse_args()
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(options.intra)
    tf.config.threading.set_inter_op_parallelism_threads(options.inter)
    loaded = tf.saved_model.load(str(options.saved_model))
    signature = loaded.signatures[options.signature]

    def predict(data: bytes, context: grpc.ServicerContext) -> bytes:
        if not context.is_active():
            context.abort(grpc.StatusCode.CANCELLED, "the client no longer waits")
        request = read_request(data)
        features = {name: tf.constant(decode(name, tensor)) for name, tensor in request.inputs.items()}
        outputs = {name: value.numpy() for name, value in signature(**features).items()}
        return write_response(request.spec.SerializeToString(), outputs, tensor_content=False)

    server = grpc.server(
        ThreadPoolExecutor(options.workers),
        options=[
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
            ("grpc.max_send_message_length", _MAX_MESSAGE),
        ],
    )
    methods = {"Predict": grpc.unary_unary_rpc_method_handler(predict)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(PREDICTION_SERVICE, methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    print(f"serving on 127.0.0.1:{port}:", flush=True)
    server.wait_for_termination()


if __name__ == "__main__":
    main()
