"""The file of `--auth-config`: callers, how they are known, and what each may do."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from jaxrank.errors import JaxrankError

Permission = Literal["predict", "status", "admin"]
"""`predict`: scores. `status`: what there is, with its signature, state and statistics. `admin`: load, unload
and reconfigure, which includes `status`."""

ALL_MODELS = "*"

Rate = Annotated[float, msgspec.Meta(gt=0)]
Sha256 = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class AuthConfigError(JaxrankError):
    """The file of `--auth-config` cannot be used."""


class CallerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One caller.

    Attributes:
        name: in messages and the log.
        token_sha256: hex digests of the tokens that it may present; several while one replaces another.
        certificates: subjects, such as `CN=ranker-client`, of TLS client certificates.
        models: permissions by the name of a model, or `*` for every model.
        requests_per_second, candidates_per_second: quotas; None for none. A second's worth may come at once.
    """

    name: str
    models: dict[str, tuple[Permission, ...]]
    token_sha256: tuple[Sha256, ...] = ()
    certificates: tuple[str, ...] = ()
    requests_per_second: Rate | None = None
    candidates_per_second: Rate | None = None


class AuthConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All callers."""

    callers: tuple[CallerConfig, ...]


def parse_auth_config(text: bytes, path: Path) -> AuthConfig:
    """The callers in the JSON `text` of `path`. Raises `AuthConfigError`; no message shows a digest."""
    try:
        config = msgspec.json.decode(text, type=AuthConfig)
    except msgspec.DecodeError as error:
        raise AuthConfigError(
            f"{path} is no auth config: {error}; docs/security.md has an example (a digest is the 64 hex "
            "characters that `printf %s TOKEN | sha256sum` prints)"
        ) from error
    names, known = set(), set()
    for caller in config.callers:
        if caller.name in names:
            raise AuthConfigError(f"{path} has the caller {caller.name!r} twice; give each a name of its own")
        names.add(caller.name)
        ways = (*caller.token_sha256, *caller.certificates)
        if not ways:
            raise AuthConfigError(
                f"{path}: caller {caller.name!r} has neither token_sha256 nor certificates, so that nobody "
                "can be it; give it one"
            )
        if known & set(ways):
            raise AuthConfigError(
                f"{path}: caller {caller.name!r} has a token or certificate that another caller has, too"
            )
        known.update(ways)
    return config
