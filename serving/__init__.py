"""From a bundle to answers, without TensorFlow and without JAX.

Entry point: `grpc_server.serve`. A Predict call flows through these files: `wire/` (protobuf messages and
tensors) -> `grpc_server.py` (thin servicers) -> `repository.py` (which version answers) -> `model.py` (one
loaded bundle: runs the host program in `host/` into feature blocks, and the dense program in `engines/` on
them) once `validation.py` has checked the features. `errors.py` maps every refusal to its gRPC status code.
"""
