"""From a bundle to answers, without TensorFlow and without JAX.

Entry point: `grpc_server.serve`. A request flows through these files: `grpc_server.py` or `rest_server.py`
(ports and threads) -> `protocols/` (one thin file for each protocol, on the messages and tensors of `wire/`)
-> `data_plane.py` (the same steps for all of them) -> `repository.py` (which version answers) -> `model.py`
(one loaded bundle: runs the host program in `host/` into feature blocks, and the dense program in `engines/`
on them) once `validation.py` has checked the features. Tables are files (`tables/`) or in stores (`tiers/`);
`state/` keeps what was computed for a request's next slice; `scheduling/` says whose call runs next on a
stream. `admission.py` and `message_bytes.py` bound what comes in. `errors.py` maps every refusal to its gRPC
and HTTP code. `model_config.py`, `config_watch.py` and `versions.py` are what the repository is told and what
it finds.

Around it: `allocator.py` starts the server under jemalloc, `memory.py` counts page faults and allocations,
`cores.py` says how many cores there are to use, and `doctor/` explains the machine.
"""
