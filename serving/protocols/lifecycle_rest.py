"""What the server knows of its versions beyond their states, over HTTP: `/v1/models/NAME/shadow` and
`/v1/models/NAME/memory`."""

import re
from dataclasses import asdict, dataclass
from typing import Any

from serving.auth import require
from serving.data_plane import DataPlane
from serving.protocols.json_tensors import dumps
from serving.rest_server import HttpAnswer, HttpRequest, Route
from serving.scheduling import Urgency

_PATH = re.compile(r"/v1/models/(?P<name>[^/:]+)/(?P<what>shadow|memory)")


@dataclass(frozen=True)
class LifecycleRest:
    """Routes beside TensorFlow Serving's, which has none of these paths."""

    data_plane: DataPlane

    def routes(self, method: str, path: str) -> Route | None:
        """What answers a method and a path."""
        found = _PATH.fullmatch(path) if method == "GET" else None
        if found is None:
            return None
        answer = {"shadow": self.shadow, "memory": self.memory}[found["what"]]

        def run(request: HttpRequest, urgency: Urgency) -> HttpAnswer:
            require("status", found["name"])
            return HttpAnswer(dumps(answer(found["name"])))

        return run

    def shadow(self, name: str) -> dict[str, Any]:
        """How the version under trial scored what another one answered. Raises `ModelNotFoundError`."""
        self.data_plane.repository.served_versions(name)
        shadow = self.data_plane.shadow
        report = None if shadow is None else shadow.report(name)
        return {"model": name, "shadow": None if report is None else asdict(report)}

    def memory(self, name: str) -> dict[str, Any]:
        """What each served version takes, in bytes, and what of its files is in memory now. Raises
        `ModelNotFoundError`."""
        return {
            "model": name,
            "versions": [
                {
                    "version": version,
                    "expected": {**asdict(use), "total": use.total},
                    "files": {file: asdict(resident) for file, resident in sorted(files.items())},
                    "resident": sum(resident.resident for resident in files.values()),
                }
                for version, (use, files) in self.data_plane.repository.memory(name).items()
            ],
        }
