"""Which version answers a request that names none: the highest one, or during a trial the one before it."""

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from jaxrank.errors import JaxrankError

ROUTING_KEY = "jaxrank-routing-key"
"""Name of the gRPC metadata, and of the HTTP header, by which a canary's requests are chosen."""


class ShareError(JaxrankError):
    """A share of traffic that is none."""


@dataclass(frozen=True)
class Trial:
    """A version under trial: the highest one that is served where `version` is None. All others' requests
    are answered by the highest version that is not under trial.

    Attributes:
        canary: share in [0, 1] of the requests that the trial's version answers.
        shadow: share in [0, 1] of the other requests that it scores too, after their answer.
    """

    canary: float = 0.0
    shadow: float = 0.0
    version: int | None = None

    def __post_init__(self) -> None:
        for what, share in (("canary", self.canary), ("shadow", self.shadow)):
            if not 0.0 <= share <= 1.0:
                raise ShareError(f"the {what} share is {share}; give a number from 0 to 1")


def read_trials(canary: Iterable[str], shadow: Iterable[str]) -> dict[str, Trial]:
    """The trials by model of `--canary MODEL=SHARE` and `--shadow MODEL=SHARE`. Raises `ShareError`."""
    canaries, shadows = _shares("--canary", canary), _shares("--shadow", shadow)
    return {model: Trial(canaries.get(model, 0.0), shadows.get(model, 0.0)) for model in canaries | shadows}


def _shares(flag: str, given: Iterable[str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in given:
        model, equals, share = text.rpartition("=")
        try:
            found[model] = Trial(float(share)).canary
        except ValueError as error:
            raise ShareError(f"{flag} {text!r}: {share!r} is no number; write MODEL=SHARE") from error
        if not equals or not model:
            raise ShareError(f"{flag} {text!r} names no model; write MODEL=SHARE")
    return found


def split(versions: Collection[int], trial: Trial | None) -> tuple[int, int | None]:
    """The version that answers, of those that are served, and the one under trial beside it, if any."""
    highest = max(versions)
    if trial is None:
        return highest, None
    tried = highest if trial.version is None else trial.version
    others = [version for version in versions if version != tried]
    return (max(others), tried) if others and tried in versions else (highest, None)


def is_drawn(key: bytes, share: float) -> bool:
    """Whether a key is among a share of all keys: always or never the same one, and one of a smaller share is
    in every larger one."""
    if not share:
        return False
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return int.from_bytes(digest, "little") < share * 2**64
