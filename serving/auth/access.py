"""Finds the caller of a request, by the callers of a file that is read again when it changes."""

import hashlib
import hmac
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

import grpc

from serving.auth.caller import Caller
from serving.auth.config import AuthConfigError, parse_auth_config
from serving.errors import UnauthenticatedError

log = logging.getLogger("jaxrank")

_POLL_SECONDS = 1.0
_HEADER = "authorization"
_SCHEME = "bearer "
_SUBJECT = "x509_subject"
"""gRPC's name of the subject of a verified client certificate."""


class Access:
    """The callers of a file. Thread-safe."""

    def __init__(self, path: Path, poll_seconds: float = _POLL_SECONDS):
        """Reads the file, and looks at it every `poll_seconds`. Raises `AuthConfigError`."""
        self._path = path
        self._text = self._read()
        self._callers = _callers(self._text, path, [])
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(poll_seconds,), name="auth", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops looking at the file."""
        self._stop.set()
        self._thread.join()

    def caller_of_call(self, context: grpc.ServicerContext) -> Caller:
        """The caller of a gRPC call, whose request is counted against its quota. Raises
        `UnauthenticatedError`, and `OverloadedError` beyond the quota."""
        metadata = dict(context.invocation_metadata())
        given = metadata.get(_HEADER)
        if given is not None:
            return self.caller(str(given))
        # grpc's types say otherwise; its documentation, and what comes, is bytes.
        subjects: Iterable[bytes] = context.auth_context().get(_SUBJECT, ())  # type: ignore[assignment]
        return self.caller(None, [subject.decode("utf-8", "replace") for subject in subjects])

    def caller(self, authorization: str | None, subjects: Iterable[str] = ()) -> Caller:
        """The caller with a header `authorization: Bearer TOKEN`, or with one of these certificate subjects
        where there is no header; its request is counted. Raises as `caller_of_call` does."""
        found = self._by_token(authorization) if authorization is not None else self._by_subject(subjects)
        if found is None:
            what = "a token that is not known" if authorization is not None else "no token"
            raise UnauthenticatedError(f"the request has {what}; send 'authorization: Bearer TOKEN'")
        found.charge_request()
        return found

    def _by_token(self, authorization: str) -> Caller | None:
        if authorization[: len(_SCHEME)].lower() != _SCHEME:
            return None
        token = authorization[len(_SCHEME) :].strip().encode("utf-8", "surrogateescape")
        digest = hashlib.sha256(token).hexdigest()
        found = None
        # Every digest is compared, each in constant time: how long it takes says nothing about a token.
        for caller in self._callers:
            for known in caller.config.token_sha256:
                if hmac.compare_digest(known, digest):
                    found = caller
        return found

    def _by_subject(self, subjects: Iterable[str]) -> Caller | None:
        known = set(subjects)
        return next((c for c in self._callers if known.intersection(c.config.certificates)), None)

    def _read(self) -> bytes:
        try:
            return self._path.read_bytes()
        except OSError as error:
            raise AuthConfigError(f"{self._path} cannot be read: {error}") from error

    def _watch(self, seconds: float) -> None:
        while not self._stop.wait(seconds):
            try:
                text = self._read()
                if text == self._text:
                    continue
                self._text = text  # a text that cannot be used is reported once
                self._callers = _callers(text, self._path, self._callers)
                log.info("%s changed: %d callers", self._path, len(self._callers))
            except AuthConfigError as error:
                log.error("%s; the callers that it had stay", error)


def _callers(text: bytes, path: Path, before: list[Caller]) -> list[Caller]:
    """The callers of a text. One that has not changed keeps what is left of its quotas."""
    stay = {caller.config.name: caller for caller in before}
    callers = []
    for config in parse_auth_config(text, path).callers:
        same = stay.get(config.name)
        callers.append(same if same is not None and same.config == config else Caller(config))
    return callers
