"""What a million requests cost, from a table of prices that its reader edits."""

import tomllib
from pathlib import Path

import msgspec

from bench.report.blocks import Block, Table, number
from bench.report.serving import promise, throughput
from bench.results import Results, ResultsError, read_all

DEFAULT = Path(__file__).parents[1] / "prices.toml"


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An offer. `price_per_hour` is in the table's currency; bench/prices.toml explains the others."""

    name: str
    price_per_hour: float
    cores: int | None = None
    results: str | None = None


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The file. `directory` is where it lies, from which `results` are named."""

    currency: str
    machine: list[Machine]
    directory: str = ""


def read_prices(path: Path) -> Prices:
    """Raises `ResultsError`."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text()), Prices)
    except (OSError, tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
        raise ResultsError(
            f"{path} is not a table of prices: {error}; bench/prices.toml is an example"
        ) from error
    for machine in found.machine:
        if machine.price_per_hour <= 0 or (machine.cores is not None and machine.cores < 1):
            raise ResultsError(f"{path}: {machine.name!r} needs a price and cores above 0")
        if machine.cores is not None and machine.results is not None:
            raise ResultsError(f"{path}: {machine.name!r} has cores and results; give one of them")
    return msgspec.structs.replace(found, directory=str(path.parent))


def cost_per_million(price_per_hour: float, per_second: float) -> float:
    """Of requests, on a machine that is as busy as its promise allows."""
    return price_per_hour / 3600 / per_second * 1e6


def cost_blocks(serve: Results, prices: Prices) -> list[Block]:
    """A table of machines, models and servers."""
    rows, unknown = [], []
    servers = list(dict.fromkeys(s for rates in throughput(serve).values() for s in rates))
    for machine in prices.machine:
        results, scale, basis = _measured(machine, serve, prices)
        if results is None:
            unknown.append(f"{machine.name} ({basis})")
            continue
        for model, rates in throughput(results).items():
            price = machine.price_per_hour
            per_second = {s: rates[s].value * scale for s in servers if s in rates}
            costs = {s: cost_per_million(price, rate) for s, rate in per_second.items() if rate}
            cells = [number(costs[s]) if s in costs else "-" for s in servers]
            cells += [number(per_second[s]) if s in per_second else "-" for s in servers]
            rows.append([machine.name, f"{price:g}", model, *cells, basis])
    currency = prices.currency
    columns = ["machine", f"{currency} an hour", "model", *(f"{s}, {currency}" for s in servers)]
    columns += [f"{s}, requests/s" for s in servers]
    about = (
        f"Price of an hour over the requests that are answered in it with {promise(serve)}; a server that "
        "did not keep that at any rate tried has none. Prices are examples; `--prices FILE` takes yours. In "
        "the measured runs the client shares the machine with the server, so both servers answer more on a "
        "machine of their own."
    )
    table = Table([*columns, "throughput"], rows)
    blocks: list[Block] = [about, table if rows else "No throughput was measured, so there is no cost."]
    if unknown:
        blocks.append(f"Not measured: {'; '.join(unknown)}.")
    return blocks


def _measured(machine: Machine, serve: Results, prices: Prices) -> tuple[Results | None, float, str]:
    """Results, the factor of their throughput, and where it comes from."""
    if machine.results is not None:
        try:
            found = read_all(Path(prices.directory) / machine.results).get("serve")
        except ResultsError as error:
            return None, 0.0, str(error)
        if found is None:
            return None, 0.0, f"{machine.results} has no results of `serve`"
        here, there = serve.figure("slo_ms"), found.figure("slo_ms")
        if here is not None and (there is None or there.value != here.value):
            kept = "a latency that they do not say" if there is None else promise(found)
            why = f"{machine.results} promises {kept}, these results {promise(serve)}: measure it there with "
            return None, 0.0, f"{why}`--slo-ms {here.value:g}`"
        return found, 1.0, "measured there"
    if machine.cores is None:
        return None, 0.0, "run `jaxrank bench serve` there, and name its directory as `results`"
    cores = serve.machine.get("used_cores") or serve.machine.get("cores")
    if not isinstance(cores, int) or cores < 1:
        return None, 0.0, "the results do not say on how many cores they were taken"
    if machine.cores == cores:
        return serve, 1.0, "measured"
    return serve, machine.cores / cores, f"{cores} cores measured, taken to grow with cores"
