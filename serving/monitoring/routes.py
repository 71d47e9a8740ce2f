"""HTTP for operators: metrics, the status page and its document."""

from importlib import resources

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, CollectorRegistry, generate_latest

from serving.monitoring.status import Status
from serving.protocols.json_tensors import dumps
from serving.rest_server import HttpAnswer, HttpRequest, Route
from serving.scheduling import Urgency


class OperatorRoutes:
    """`/`, `/status.json`, `/metrics` and TensorFlow Serving's path of metrics."""

    def __init__(self, registry: CollectorRegistry, status: Status, metrics_path: str | None):
        """Without a `metrics_path` there are no metrics."""
        self._registry, self._status = registry, status
        self._page = (resources.files("serving.monitoring") / "status.html").read_bytes()
        self._routes: dict[str, Route] = {"/": self._show, "/status.json": self._document}
        if metrics_path is not None:
            self._routes |= {"/metrics": self._metrics, metrics_path: self._metrics}

    def __call__(self, method: str, path: str) -> Route | None:
        """What answers a method and a path; None where it is none of these."""
        return self._routes.get(path) if method == "GET" else None

    def _metrics(self, request: HttpRequest, urgency: Urgency) -> HttpAnswer:
        # OpenMetrics has no colons in names, which TensorFlow Serving's have.
        return HttpAnswer(generate_latest(self._registry), content_type=CONTENT_TYPE_PLAIN_0_0_4)

    def _show(self, request: HttpRequest, urgency: Urgency) -> HttpAnswer:
        return HttpAnswer(self._page, content_type="text/html", headers={"Content-Security-Policy": _POLICY})

    def _document(self, request: HttpRequest, urgency: Urgency) -> HttpAnswer:
        return HttpAnswer(dumps(self._status.document()), headers={"Cache-Control": "no-store"})


_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
"""The page loads nothing, and asks nobody but this server."""
