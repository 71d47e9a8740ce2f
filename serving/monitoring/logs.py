"""The log: lines of text, or of JSON with the same facts as fields; and a line for some of the requests.

Nothing that a client sends is logged but the name of a model that is served: no features, no metadata, no
headers.
"""

import json
import logging
import random
import sys
from datetime import UTC, datetime
from typing import Any, Literal

from serving.monitoring.timeline import PHASES, Timeline

access = logging.getLogger("jaxrank.access")

_STANDARD = vars(logging.makeLogRecord({})).keys() | {"message", "asctime"}


class JsonFormatter(logging.Formatter):
    """One object for each event: `time` (UTC), `level`, `logger`, `message`, what the event gives beside
    these as `extra` (model, version, status, milliseconds), and an exception's text. `worker` is of
    several processes with one log."""

    def __init__(self, worker: int | None = None):
        super().__init__()
        self._same = {} if worker is None else {"worker": worker}

    def format(self, record: logging.LogRecord) -> str:
        found: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._same,
        }
        found |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info:
            found["exception"] = self.formatException(record.exc_info)
        return json.dumps(found, default=str, ensure_ascii=False)


def start_logging(form: Literal["text", "json"], worker: int | None = None) -> None:
    """Logs to standard error, from INFO on; `worker` is this process's number where there are several."""
    handler = logging.StreamHandler(sys.stderr)
    who = "" if worker is None else f"worker {worker}: "
    text = logging.Formatter(f"%(asctime)s %(levelname)s {who}%(message)s")
    handler.setFormatter(JsonFormatter(worker) if form == "json" else text)
    logging.basicConfig(handlers=[handler], level=logging.INFO)


class AccessLog:
    """Logs a share of the requests."""

    def __init__(self, sample: float):
        self._sample = sample

    def observe(self, timeline: Timeline) -> None:
        """A line, if this request is one of the sample."""
        if not timeline.api or random.random() >= self._sample:
            return
        phases = {
            f"{name}_ms": round(seconds * 1e3, 3)
            for name, seconds in zip(PHASES, timeline.phases(), strict=True)
            if seconds is not None
        }
        request_ms = round((timeline.ended - timeline.began) * 1e3, 3)
        access.info(
            "%s %s %s version %d: %s, %d candidates in %.3f ms (%s)",
            timeline.entrypoint,
            timeline.api,
            timeline.model or "no model",
            timeline.version,
            f"{timeline.status} ({timeline.reason})" if timeline.reason else timeline.status,
            timeline.candidates,
            request_ms,
            ", ".join(f"{name.removesuffix('_ms')} {ms:g}" for name, ms in phases.items()),
            extra={
                "entrypoint": timeline.entrypoint,
                "api": timeline.api,
                "model": timeline.model,
                "version": timeline.version,
                "status": timeline.status,
                "reason": timeline.reason,
                "candidates": timeline.candidates,
                "request_ms": request_ms,
                **phases,
            },
        )
