"""The caller of the request that a thread works on: what it may do, and how much of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from serving.auth.config import ALL_MODELS, CallerConfig, Permission
from serving.auth.quota import TokenBucket
from serving.errors import QUOTA, OverloadedError, PermissionDeniedError


class Caller:
    """A caller with what is left of its quotas."""

    def __init__(self, config: CallerConfig):
        self.config = config
        requests, candidates = config.requests_per_second, config.candidates_per_second
        self._requests = None if requests is None else TokenBucket(requests)
        self._candidates = None if candidates is None else TokenBucket(candidates)

    def may(self, permission: Permission, model: str) -> bool:
        """Whether the caller has a permission for a model; `*` is all of them."""
        models = self.config.models
        granted = (*models.get(model, ()), *models.get(ALL_MODELS, ()))
        return permission in granted or permission == "status" and "admin" in granted

    def charge_request(self) -> None:
        """Raises `OverloadedError` beyond the quota of requests."""
        self._take(self._requests, 1, "requests")

    def charge_candidates(self, count: int) -> None:
        """Raises `OverloadedError` beyond the quota of candidates."""
        self._take(self._candidates, count, "candidates")

    def _take(self, bucket: TokenBucket | None, units: int, what: str) -> None:
        seconds = bucket.take(units) if bucket is not None else 0.0
        if bucket is not None and seconds:
            raise OverloadedError(
                f"caller {self.config.name!r} has used its quota of {bucket.rate:g} {what} a second; try "
                f"again in {seconds:.2f} s",
                QUOTA,
            )


CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)
"""Of the request at hand; None where callers are not told apart."""


@contextmanager
def calling(caller: Caller | None) -> Iterator[None]:
    """The request of `caller` is at hand inside."""
    token = CALLER.set(caller)
    try:
        yield
    finally:
        CALLER.reset(token)


def may(permission: Permission, model: str) -> bool:
    """Whether the caller at hand has a permission for a model."""
    caller = CALLER.get()
    return caller is None or caller.may(permission, model)


def require(permission: Permission, model: str) -> None:
    """Raises `PermissionDeniedError` where the caller at hand lacks a permission for a model."""
    caller = CALLER.get()
    if caller is not None and not caller.may(permission, model):
        of = "all models" if model == ALL_MODELS else f"model {model[:200]!r}"
        raise PermissionDeniedError(
            f"caller {caller.config.name!r} does not have the permission {permission!r} for {of}; ask the "
            "owner of this server's --auth-config"
        )


def charge_request() -> None:
    """Counts a request of a call that has several against the quota of the caller at hand. Raises
    `OverloadedError` beyond it."""
    caller = CALLER.get()
    if caller is not None:
        caller.charge_request()


def charge(candidates: int) -> None:
    """Counts candidates against the quota of the caller at hand. Raises `OverloadedError` beyond it."""
    caller = CALLER.get()
    if caller is not None:
        caller.charge_candidates(candidates)
