"""TLS for the gRPC port, from TensorFlow Serving's `--ssl_config_file`."""

from pathlib import Path

import grpc

from serving.model_config import ConfigError, read_text_proto
from serving.wire.server_config_pb2 import SSLConfig


def read_credentials(path: Path) -> grpc.ServerCredentials:
    """Credentials of a text protobuf that holds PEM texts: `server_key`, `server_cert`, `custom_ca`, and
    whether clients need a certificate (`client_verify`). Raises `ConfigError`; no message shows a key."""
    config = read_text_proto(path, SSLConfig)
    if not config.server_key or not config.server_cert:
        raise ConfigError(f"{path} needs server_key and server_cert, the PEM texts of both")
    if config.client_verify and not config.custom_ca:
        raise ConfigError(f"{path} has client_verify without custom_ca, so that no client could be verified")
    return grpc.ssl_server_credentials(
        [(config.server_key.encode(), config.server_cert.encode())],
        config.custom_ca.encode() or None,
        config.client_verify,
    )
