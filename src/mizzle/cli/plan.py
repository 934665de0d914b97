"""`mizzle plan`: what training a model on a cluster will cost, by the cost model. Starts nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from mizzle.cli.output import JsonFile, check_writable, write_json
from mizzle.collectives.wire import Wire
from mizzle.errors import ConfigError
from mizzle.scheduling.cost import MEASURED_LAUNCH, CostModel, IterationCost, LaunchCost, MemoryPerRank
from mizzle.scheduling.tuner import TunerConfig

_SHARE = TunerConfig().target
_COUNTS = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9}
_BANDWIDTHS = {"Mbit": 1e6 / 8, "Gbit": 1e9 / 8}  # in bytes per second
_DURATIONS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Z]*)", re.IGNORECASE)

_LAUNCH_MS, _TASK_MS = round(1e3 * MEASURED_LAUNCH.a_s, 3), round(1e3 * MEASURED_LAUNCH.b_s, 3)
_LAUNCH_HELP = "Driver's milliseconds per {}; measure yours, the default is from a small virtual machine."


def plan(
    *,
    parameters: Annotated[str, typer.Option(help="Of the model: a number, with K, M or B for 10^3, 10^6, 10^9.")],
    ranks: Annotated[int, typer.Option(min=1, help="Workers, each one task of a group.")],
    compute: Annotated[str, typer.Option(help="Forward and backward of a rank's part of a batch: us, ms or s.")],
    bandwidth: Annotated[str, typer.Option(help="Of a rank, in each direction: Mbit or Gbit (a second).")] = "10Gbit",
    latency: Annotated[str, typer.Option(help="Of one message between ranks.")] = "0.2ms",
    sigma: Annotated[str, typer.Option(help="Standard deviation of compute between ranks.")] = "0s",
    hosts: Annotated[
        int | None, typer.Option(min=1, help="The ranks' memory is on, evenly.", show_default="one a rank")
    ] = None,
    optimizer_state: Annotated[
        int, typer.Option(min=0, help="Numbers the optimizer keeps per parameter: Adam 2, SGD with momentum 1.")
    ] = 2,
    weights_wire: Annotated[Wire, typer.Option(help="As in Trainer(weights_wire=...).")] = Wire.FP32,
    launch_ms: Annotated[float, typer.Option(min=0, help=_LAUNCH_HELP.format("job"))] = _LAUNCH_MS,
    task_ms: Annotated[float, typer.Option(min=0, help=_LAUNCH_HELP.format("task"))] = _TASK_MS,
    group_size: Annotated[
        int | None, typer.Option(min=1, help="Show this K as well.", show_default="1, 10, 100, enough for 1 %")
    ] = None,
    json: JsonFile = None,
) -> None:
    """Predict iteration time, scheduling share, the group size that keeps it under 1 %, and memory per rank.

    All figures are modelled, none is measured: compute + launches / K + exchange + stragglers, without overlap.
    For comparison plain Spark with one job and with two jobs per iteration is shown: the exchange is the same there,
    so that only scheduling differs. Ranks on one host share memory; times are those of ranks on hosts of their own.

    The JSON is {modelled, ranks, hosts, parameters, launch_s, group_size, iterations: a list of {group_size, jobs,
    iteration_s, compute_s, exchange_s, stragglers_s, scheduling_s, scheduling_share, group_s}, memory_bytes}.
    """
    check_writable(json)
    model = CostModel(
        num_parameters=parse_count(parameters),
        compute_s=_parse(compute, _DURATIONS, "a duration", "200ms"),
        bytes_per_s=_parse(bandwidth, _BANDWIDTHS, "a bandwidth", "10Gbit"),
        launch=LaunchCost(a_s=launch_ms / 1e3, b_s=task_ms / 1e3),
        latency_s=_parse(latency, _DURATIONS, "a duration", "0.2ms"),
        sigma_s=_parse(sigma, _DURATIONS, "a duration", "10ms"),
    )
    memory = model.memory(
        ranks, hosts=hosts, optimizer_state=optimizer_state, narrow_weights=weights_wire is not Wire.FP32
    )
    found = predicted(model, ranks, memory, hosts=hosts or ranks, group_size=group_size)
    write_json(json, found)
    _show(Console(), model, found)


def predicted(
    model: CostModel, ranks: int, memory: MemoryPerRank, *, hosts: int, group_size: int | None
) -> dict[str, Any]:  # fmt: skip
    """All that the command tells, as it is written to JSON."""
    enough = model.group_size_for(ranks, _SHARE)
    sizes = sorted({1, 10, 100, enough} | ({group_size} if group_size else set()))
    plans = [(1, 2), *((size, 1) for size in sizes)]
    return {
        "modelled": True,
        "ranks": ranks,
        "hosts": hosts,
        "parameters": model.num_parameters,
        "launch_s": model.launch.seconds(ranks),
        "group_size": enough,
        "iterations": [_iteration(model.iteration(ranks, size, jobs=jobs), size, jobs) for size, jobs in plans],
        "memory_bytes": _memory(memory),
    }


def parse_count(text: str) -> int:
    """A number of parameters: ``7M``, ``1.5B``, ``61706``.

    Raises:
        ConfigError: it is none, or not a whole number of at least 1.
    """
    count = _parse(text, _COUNTS, "a number of parameters", "7M")
    if count < 1 or not math.isclose(count, round(count), rel_tol=1e-12):
        raise ConfigError(f"{text!r} is {count:g} parameters: give a whole number, at least 1")
    return round(count)


def _parse(text: str, units: Mapping[str, float], what: str, example: str) -> float:
    found = _QUANTITY.fullmatch(text.strip())
    by_name = {name.lower(): factor for name, factor in units.items()}
    if found is None or found.group(2).lower() not in by_name:
        known = ", ".join(filter(None, units))
        raise ConfigError(f"{text!r} is not {what}: write a number and one of {known}, as in {example}")
    return float(found.group(1)) * by_name[found.group(2).lower()]


def _iteration(cost: IterationCost, group_size: int, jobs: int) -> dict[str, Any]:
    return {
        "group_size": group_size,
        "jobs": jobs,
        "iteration_s": cost.total_s,
        **asdict(cost),
        "scheduling_share": cost.scheduling_share,
        "group_s": cost.total_s * group_size,
    }


def _memory(memory: MemoryPerRank) -> dict[str, int]:
    parts = asdict(memory)
    recovery = parts.pop("recovery")
    return {**parts, "sum": memory.sum, "recovery": recovery}


def _show(console: Console, model: CostModel, found: Mapping[str, Any]) -> None:
    ranks, launch, enough = found["ranks"], model.launch, found["group_size"]
    console.print(_iterations(found))
    console.print(_memory_table(found["memory_bytes"]))
    print(
        f"modelled: a job costs the driver {1e3 * launch.a_s:g} + {ranks} x {1e3 * launch.b_s:g} = "
        f"{_ms(found['launch_s'])} ms"
    )
    print(f"modelled: K = {enough} keeps scheduling within {_SHARE:.0%}{_too_long(found)}")


def _too_long(found: Mapping[str, Any]) -> str:
    """What keeps group_size="auto" from that K, if anything does."""
    config, enough = TunerConfig(), found["group_size"]
    (group_s,) = (
        one["group_s"] for one in found["iterations"] if (one["group_size"], one["jobs"]) == (enough, 1)
    )  # fmt: skip
    if group_s > config.max_group_s:
        limit = f"group_size='auto' ends them after {config.max_group_s:.0f} s"
        return f", in groups of {group_s:.0f} s; {limit}, fix K instead"
    if enough > config.max_size:
        return f"; group_size='auto' takes at most {config.max_size}, fix K instead"
    return ""


def _iterations(found: Mapping[str, Any]) -> Table:
    """Every K with its parts, milliseconds."""
    shown = Table(title=f"one iteration on {found['ranks']} ranks, modelled, ms")
    for name in ("Spark jobs", "total", "compute", "exchange", "straggle", "scheduling", "share"):
        shown.add_column(name, justify="left" if name == "Spark jobs" else "right")
    for one in found["iterations"]:
        parts = ("iteration_s", "compute_s", "exchange_s", "stragglers_s", "scheduling_s")
        shown.add_row(_jobs(one), *(_ms(one[part]) for part in parts), f"{one['scheduling_share']:.1%}")
    return shown


def _jobs(one: Mapping[str, Any]) -> str:
    return f"{one['jobs']} an iteration" if one["group_size"] == 1 else f"1 in {one['group_size']}"


def _memory_table(memory: Mapping[str, int]) -> Table:
    shown = Table(title="memory of one rank, modelled, MB: without activations and rows; recovery comes on top")
    for name in memory:
        shown.add_column(name, justify="right")
    shown.add_row(*(f"{num_bytes / 1e6:,.1f}" for num_bytes in memory.values()))
    return shown


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f}" if seconds < 0.1 else f"{1e3 * seconds:,.0f}"
