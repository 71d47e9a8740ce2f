"""The parts `overhead` and `overload` of the suite `serve`: what a request costs beside its programs, and
what is still answered in time beyond saturation."""

import json
from contextlib import ExitStack
from typing import Any

import msgspec

from bench.dense_build import build
from bench.results import NotMeasured
from bench.serve_found import (
    DEGRADED,
    NO_DEADLINE,
    PLAIN,
    Model,
    Overhead,
    Overload,
    Session,
    closed_loop,
    server_options,
)
from bench.serve_load import Load, Sample
from bench.serve_processes import clocked_server, jaxrank_server
from bench.serve_requests import answer, degradation_config, requests
from bench.serve_scores import check, tensorflow_scores
from bench.workloads import ARRIVALS
from jaxrank.targets import choose_target


def overhead(session: Session, model: Model) -> None:
    """CPU time of a request beside the host program and the dense program."""
    found, effort, client = session.found, session.effort, session.client
    built = build(model, session.work, session.status)
    messages, first = requests(model, session.work)
    session.status("TensorFlow's scores")
    known = tensorflow_scores(model, built, first)
    load = Load(
        address="", requests=str(messages), seconds=effort.closed_seconds, deadline=NO_DEADLINE, clients=1
    )
    for round in range(effort.rounds):
        session.status(f"round {round + 1} of {effort.rounds}: CPU time of requests, one at a time")
        with clocked_server({model.name: built.bundle}) as server:
            check(model, built, server.address, first, known)
            load = msgspec.structs.replace(load, address=server.address)
            client.send(load)
            before = server.spent()
            client.send(load)
            spent = server.spent().since(before)
            if found.overhead is None:
                answered = answer(server.address, first)
                found.overhead = Overhead(
                    model.name, len(first), len(answered), [], candidates=model.candidates
                )
            found.overhead.rounds.append(spent)
        session.save()


def overload(session: Session, model: Model) -> None:
    """Answers in time at multiples of saturation, from servers that differ in degradation only."""
    found, effort, client = session.found, session.effort, session.client
    built = build(model, session.work, session.status)
    messages, first = requests(model, session.work)
    config, path = degradation_config(model), session.work / model.name / "degradation.json"
    path.write_text(json.dumps(config))
    if config is None:
        why = "the model has no number for each candidate that could stand for recall's score"
        found.missing.append(NotMeasured(name="goodput_at_2x_degraded", why=why))
    servers = {PLAIN: server_options(model)}
    if config is not None:
        servers[DEGRADED] = (*server_options(model), "--degradation-config", str(path))
    session.status("TensorFlow's scores")
    known = tensorflow_scores(model, built, first)
    engine = choose_target(built.bundle, built.manifest, "cpu").engine
    measured = found.overload = Overload(model.name, engine, candidates=model.candidates)

    def send(address: str, **load: Any) -> Sample:
        return client.send(Load(address=address, requests=str(messages), **load))

    for round in range(effort.rounds):
        with ExitStack() as stack:
            of = f"round {round + 1} of {effort.rounds}"
            session.status(f"{of}: finding saturation")
            addresses = {
                kind: stack.enter_context(jaxrank_server({model.name: built.bundle}, *options)).address
                for kind, options in servers.items()
            }
            for address in addresses.values():
                check(model, built, address, first, known)
            for _ in range(2):  # the first warms it
                saturation = closed_loop(session, messages, addresses[PLAIN])
            samples: dict[str, dict[float, Sample]] = {kind: {} for kind in addresses}
            for multiple in effort.multiples:
                for kind, address in addresses.items():
                    session.status(f"{of}: {kind}, {multiple:g} of saturation")
                    seconds = effort.settle + effort.seconds
                    seed = int(10 * multiple) + 100 * round
                    samples[kind][multiple] = send(
                        address,
                        times=ARRIVALS[session.arguments.arrivals](multiple * saturation, seconds, seed),
                        seconds=seconds, settle=effort.settle, deadline=found.slo_ms / 1e3,
                    )  # fmt: skip
            measured.rounds.append(samples)
        session.save()
