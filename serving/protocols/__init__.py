"""The protocols in which the server answers, each a thin layer over `serving.data_plane`.

`prediction_service.py` and `model_service.py` are TensorFlow Serving's gRPC services, `rest_tensorflow.py` is
its REST API; `kserve_grpc.py` and `kserve_rest.py` are KServe v2. What they share: `examples.py` (tf.Examples
as features), `classification.py` (Classify and Regress), `json_tensors.py`, `kserve_tensors.py`.
`grpc_calls.py` binds a function of bytes as a gRPC method and gives errors their status;
`serving/rest_server.py` does so for HTTP.
"""
