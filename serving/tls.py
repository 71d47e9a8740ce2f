"""TLS of both ports, from TensorFlow Serving's `--ssl_config_file`."""

import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from serving.model_config import ConfigError, read_text_proto
from serving.wire.server_config_pb2 import SSLConfig

_SHORT_NAMES = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "emailAddress": "emailAddress",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "serialNumber": "serialNumber",
    "stateOrProvinceName": "ST",
    "userId": "UID",
}
"""OpenSSL's, of the attributes that subjects are made of."""


@dataclass(frozen=True)
class Tls:
    """Who the server is, and whether it asks its clients the same. PEM texts.

    Attributes:
        authority: signs clients' certificates; None where they are not asked for.
    """

    key: bytes = field(repr=False)
    certificate: bytes
    authority: bytes | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """For gRPC, which finds out what is no PEM when it listens."""
        return grpc.ssl_server_credentials(
            [(self.key, self.certificate)], self.authority, self.authority is not None
        )

    def context(self) -> ssl.SSLContext:
        """For HTTP: TLS 1.2 and later. Raises `ConfigError` for texts that are no PEM, or belong to different
        keys."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        # OpenSSL reads files only. This one is in memory, and only this process has it.
        file = os.memfd_create("certificate")
        try:
            with os.fdopen(os.dup(file), "wb") as pem:
                pem.write(self.certificate + b"\n" + self.key)
            # A password would be asked for on the terminal.
            context.load_cert_chain(f"/proc/self/fd/{file}", password="")
            if self.authority is not None:
                context.load_verify_locations(cadata=self.authority.decode())
                context.verify_mode = ssl.CERT_REQUIRED
        except (ssl.SSLError, ValueError) as error:
            raise ConfigError(
                f"the texts of --ssl_config_file are not PEM of a key, its certificate and a CA: {error}"
            ) from error
        finally:
            os.close(file)
        return context


def read_tls(path: Path) -> Tls:
    """Reads a text protobuf that holds PEM texts: `server_key`, `server_cert`, `custom_ca`, and whether
    clients need a certificate (`client_verify`). Raises `ConfigError`; no message shows a key."""
    config = read_text_proto(path, SSLConfig)
    if not config.server_key or not config.server_cert:
        raise ConfigError(f"{path} needs server_key and server_cert, the PEM texts of both")
    if config.client_verify and not config.custom_ca:
        raise ConfigError(f"{path} has client_verify without custom_ca, so that no client could be verified")
    authority = config.custom_ca.encode() if config.client_verify else None
    return Tls(config.server_key.encode(), config.server_cert.encode(), authority)


def subject_of(certificate: Mapping[str, Any]) -> str | None:
    """The subject of a certificate of `ssl.SSLSocket.getpeercert`, as RFC 2253 writes it and gRPC tells it;
    None where it has an attribute that is not known here."""
    parts = []
    for several in reversed(certificate.get("subject", ())):
        if any(name not in _SHORT_NAMES for name, _ in several):
            return None
        parts.append("+".join(f"{_SHORT_NAMES[name]}={_escaped(value)}" for name, value in reversed(several)))
    return ",".join(parts)


def _escaped(value: str) -> str:
    found = []
    for at, character in enumerate(value):
        ends = at in (0, len(value) - 1)
        if character in ',+"\\<>;' or (character == " " and ends) or (character == "#" and at == 0):
            found.append(f"\\{character}")
        elif " " <= character <= "~":
            found.append(character)
        else:
            found += [f"\\{byte:02X}" for byte in character.encode()]
    return "".join(found)
