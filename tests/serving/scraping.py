"""What a server says over HTTP, read with Prometheus' own parser."""

import json
import urllib.error
import urllib.request

from prometheus_client.parser import text_string_to_metric_families as parse

from serving.grpc_server import Server

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def get(server: Server, path: str, body: object = None, accept: str = "*/*") -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"http://{server.rest_address}{path}", data, {"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def scraped(server: Server, path: str = "/metrics") -> Samples:
    status, text = get(server, path)
    assert status == 200, text
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse(text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, frozenset(labels.items())), 0.0)
