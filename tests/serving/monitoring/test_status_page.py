"""The status page in a real browser, and the document that it draws."""

import html
import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from serving.client import PredictClient
from serving.grpc_server import Server
from serving.monitoring.timeline import PHASES
from tests.serving.scraping import get, scraped, value

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana.json"


@pytest.fixture(scope="module")
def server(example_models: Path, start_server: Callable[..., Server], tmp_path_factory) -> Server:  # noqa: ANN001
    """One model that answers, at a level of degradation, and one whose version does not load; every second
    has had requests."""
    models_dir = tmp_path_factory.mktemp("models")
    shutil.copytree(example_models / "models" / "half_plus_three", models_dir / "half_plus_three")
    shutil.copytree(example_models / "models" / "classifier", models_dir / "<b>broken")
    (models_dir / "<b>broken" / "1" / "host_program.json").write_text("{}")
    config = models_dir.with_suffix(".json")
    steps = {"steps": [{"kind": "candidates", "exact": 2, "prior": "x"}], "fixed_level": 1}
    config.write_text(json.dumps({"models": {"half_plus_three": steps}}))
    server = start_server(models_dir, rest_port=0, degradation_config=config, cpu_target=0.9)
    client = PredictClient(server.address)
    ends = time.monotonic() + 60
    while len(_document(server)["seconds_ago"]) < 3 and time.monotonic() < ends:
        client.predict("half_plus_three", {"x": np.ones(4, np.float32)})
    with pytest.raises(Exception, match="unknown feature"):
        client.predict("half_plus_three", {"y": np.ones(4, np.float32)})
    client.close()
    return server


def _document(server: Server) -> dict:
    status, text = get(server, "/status.json")
    assert status == 200
    return json.loads(text)


def test_the_document(server: Server) -> None:
    document = _document(server)
    by_name = {model["name"]: model for model in document["models"]}
    broken, model = by_name["<b>broken"], by_name["half_plus_three"]
    assert broken["state"] != "AVAILABLE"
    assert "host_program.json" in broken["error"]
    assert (model["state"], model["version"], model["refused"]) == ("AVAILABLE", 1, 1)
    assert model["answered"] > 0
    assert (model["degradation_level"], broken["degradation_level"]) == (1, None)
    assert model["rate"] > 0
    assert all(model["phases"][phase]["p50"] <= model["phases"][phase]["p99"] for phase in PHASES)
    count = len(document["seconds_ago"])
    assert all(len(values) == count for values in model["history"].values())
    assert max(model["history"]["rate"]) > 0
    assert document["seconds_ago"] == sorted(document["seconds_ago"], reverse=True)
    assert [device["waiting"] for device in document["devices"]] == [0]
    assert document["memory"]["resident_bytes"] > 1 << 20
    assert document["cpu"]["target"] == 0.9 and document["cpu"]["cores"] > 0
    assert max(document["cpu"]["history"]["utilisation"]) > 0


def test_levels_are_metrics(server: Server) -> None:
    samples = scraped(server)
    of = {"model": "half_plus_three"}
    answered = value(samples, "jaxrank_degradation_answers_total", **of, level="1")
    assert answered > 0
    assert value(samples, "jaxrank_degradation_left_out_total", **of, what="candidates") == 2 * answered
    assert value(samples, "jaxrank_degradation_level", **of) == 1
    assert value(samples, "jaxrank_cpu_target") == 0.9
    assert value(samples, "jaxrank_cpu_seconds_total") > 0
    assert value(samples, "jaxrank_usable_cores") == _document(server)["cpu"]["cores"]


def test_the_page_loads_nothing_from_elsewhere(server: Server) -> None:
    status, page = get(server, "/")
    assert status == 200
    links = re.findall(r"""(?:src|href|url|fetch)\s*[=(]\s*["']([^"']*)""", page)
    assert set(links) == {"/metrics", "/status.json", "status.json"}


def test_a_browser_shows_it(server: Server, tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}"]
    command += ["--virtual-time-budget=3000", "--dump-dom", f"http://{server.rest_address}/"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    page = done.stdout
    assert 'data-shown="yes"' in page, "the script did not get to its end"
    table = page[page.index('<table id="models">') : page.index("</table>")]
    assert ">half_plus_three<" in table
    assert ">AVAILABLE<" in table
    assert html.escape("<b>broken") in table  # a name is text, never markup
    assert "host_program.json" in table
    for chart in ("rates", "latency", "utilisation", "cpu", "waiting", "memory"):
        drawn = re.search(rf'<svg id="{chart}".*?</svg>', page, re.S)
        assert drawn is not None
        assert re.search(r'<path d="M[\d.]+ [\d.]+', drawn[0]), f"{chart} has no line"


def test_the_dashboard_names_metrics_that_exist(server: Server) -> None:
    """Allocations are there under jemalloc only, records where they are asked for; what has no samples yet is
    told by its TYPE line."""
    text = get(server, "/metrics")[1]
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    suffixes = {
        "histogram": ("_bucket", "_sum", "_count"),
        "counter": ("",),
        "gauge": ("",),
        "untyped": ("",),
    }
    known = {f"{name}{suffix}" for name, kind in kinds.items() for suffix in suffixes[kind]}
    known |= {"jaxrank_allocated_bytes_total", "jaxrank_records_total"}
    dashboard = json.loads(DASHBOARD.read_text())
    queries = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    queries += [v["query"]["query"] for v in dashboard["templating"]["list"] if v["type"] == "query"]
    assert len(queries) > 20
    named = set(re.findall(r"(?::tensorflow:|jaxrank_|process_)[a-z_:]+", " ".join(queries)))
    assert len(named) > 20
    assert named <= known, named - known
    exposed = {name for name in kinds if name.startswith("jaxrank_")}
    unused = {n for n in exposed if not any(x.startswith(n) for x in named)}
    assert not unused, f"not on the dashboard: {unused}"
