"""`mizzle plan`: what is written is what the cost model says, and it is called a model."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from mizzle.cli import app as entry
from mizzle.cli.plan import parse_count
from mizzle.errors import ConfigError
from mizzle.scheduling.cost import CostModel, LaunchCost

SEVEN_MILLION = ("--parameters", "7M", "--ranks", "64", "--bandwidth", "10Gbit", "--compute", "0.2s")


def invoke(*arguments: str) -> Result:
    done = CliRunner().invoke(entry.app, ["plan", *arguments], env={"COLUMNS": "80", "TERM": "dumb"})
    if isinstance(done.exception, ConfigError):
        raise done.exception
    return done


def test_the_json_holds_the_models_figures_for_the_usual_group_sizes_and_the_chosen_one(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    done = invoke(*SEVEN_MILLION, "--launch-ms", "10", "--task-ms", "2", "--latency", "100us", "--sigma", "5ms",
                  "--json", str(path))  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(path.read_text())
    model = CostModel(
        num_parameters=7_000_000, compute_s=0.2, bytes_per_s=1.25e9, launch=LaunchCost(a_s=0.01, b_s=0.002),
        latency_s=100 * 1e-6, sigma_s=5 * 1e-3,
    )  # fmt: skip
    enough = model.group_size_for(64, 0.01)
    assert found["modelled"] is True
    assert found["group_size"] == enough
    assert found["launch_s"] == pytest.approx(0.138)
    assert [(one["group_size"], one["jobs"]) for one in found["iterations"]] == [
        (1, 2), *((size, 1) for size in sorted({1, 10, 100, enough})),
    ]  # fmt: skip
    for one in found["iterations"]:
        cost = model.iteration(64, one["group_size"], jobs=one["jobs"])
        assert one["iteration_s"] == pytest.approx(cost.total_s)
        assert one["scheduling_share"] == pytest.approx(cost.scheduling_share)
        assert one["group_s"] == pytest.approx(cost.total_s * one["group_size"])
    memory = model.memory(64, optimizer_state=2)
    assert found["hosts"] == 64
    assert found["memory_bytes"]["sum"] == memory.sum
    assert found["memory_bytes"]["recovery"] == memory.recovery
    assert sum(found["memory_bytes"].values()) == 2 * memory.sum + memory.recovery, "every part once, and their sum"


def test_what_is_printed_says_that_it_is_modelled_and_fits_a_terminal() -> None:
    done = invoke(*SEVEN_MILLION, "--launch-ms", "12", "--task-ms", "0.5")
    assert done.exit_code == 0
    tables, sentences = done.output.split("modelled: a job", 1)
    assert "one iteration on 64 ranks, modelled, ms" in tables
    assert "memory of one rank, modelled, MB" in tables
    assert max(map(len, tables.splitlines())) <= 80
    assert " costs the driver 12 + 64 x 0.5 = 44.0 ms" in sentences
    (size,) = re.findall(r"modelled: K = (\d+) keeps scheduling within 1%", sentences)
    assert f"1 in {size} " in tables


def test_a_group_size_that_auto_would_not_take_is_pointed_out() -> None:
    long = invoke(
        "--parameters", "7M", "--ranks", "64", "--compute", "2s", "--launch-ms", "12", "--task-ms", "20"
    ).output
    assert re.search(r"in groups of \d+ s; group_size='auto' ends them after 20 s, fix K instead", long)
    launch = ("--launch-ms", "12", "--task-ms", "5")
    many = invoke("--parameters", "1K", "--ranks", "1", "--compute", "1ms", *launch).output
    assert re.search(r"K = 1\d\d\d keeps scheduling within 1%; group_size='auto' takes at most 1000", many)
    neither = invoke(*SEVEN_MILLION, "--launch-ms", "1", "--task-ms", "0.1").output
    assert "auto" not in neither


def test_a_group_size_of_ones_own_is_shown_beside_the_others(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert "1 in 37" in invoke(*SEVEN_MILLION, "--group-size", "37", "--json", str(path)).output
    assert 37 in [one["group_size"] for one in json.loads(path.read_text())["iterations"]]


def test_memory_depends_on_the_optimizer_on_hosts_and_on_the_wire_of_weights(tmp_path: Path) -> None:
    def needed(*options: str) -> dict[str, int]:
        path = tmp_path / "plan.json"
        assert invoke(*SEVEN_MILLION, *options, "--json", str(path)).exit_code == 0
        memory: dict[str, int] = json.loads(path.read_text())["memory_bytes"]
        return memory

    part = 4 * 7_000_000 // 64
    usual = needed()
    assert usual["sum"] - needed("--optimizer-state", "0")["sum"] == 2 * part
    assert usual["weights"] - needed("--hosts", "8")["weights"] == 4 * 7_000_000 * 7 // 8
    narrow = needed("--weights-wire", "bf16")
    assert (usual["master"], narrow["master"], narrow["window"] - usual["window"]) == (0, part, part // 2)


@pytest.mark.parametrize(
    ("text", "count"), [("7M", 7_000_000), ("1.5b", 1_500_000_000), ("61706", 61706), ("4 K", 4000)]
)
def test_parameters_are_counted_in_powers_of_ten(text: str, count: int) -> None:
    assert parse_count(text) == count


@pytest.mark.parametrize("text", ["", "M", "-7M", "7MB", "seven", "1e6"])
def test_what_is_no_number_of_parameters_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a number of parameters: write a number and one of K, M, B") as caught:
        parse_count(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize("text", ["0", "0.5", "1.0005K"])
def test_half_a_parameter_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="give a whole number"):
        parse_count(text)


@pytest.mark.parametrize(
    ("option", "value", "complaint"),
    [("--hosts", "7", "64 ranks do not spread evenly over 7 hosts"),
     ("--compute", "1", "'1' is not a duration"), ("--bandwidth", "10GB", "'10GB' is not a bandwidth"),
     ("--bandwidth", "0Gbit", "bytes_per_s is 0"), ("--latency", "5m", "'5m' is not a duration"),
     ("--sigma", "5%", "'5%' is not a duration"), ("--parameters", "many", "'many' is not a number of parameters")],
)  # fmt: skip
def test_a_bad_value_is_named(option: str, value: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        invoke(*SEVEN_MILLION, option, value)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ranks", "0"),
        ("--group-size", "0"),
        ("--optimizer-state", "-1"),
        ("--hosts", "0"),
        ("--weights-wire", "int8"),
        (),
    ],
)
def test_a_wrong_or_missing_option_exits_with_2(arguments: tuple[str, ...]) -> None:
    given = (*SEVEN_MILLION, *arguments) if arguments else ("--ranks", "2")
    assert invoke(*given).exit_code == 2


def test_help_names_every_option() -> None:
    done = CliRunner().invoke(entry.app, ["plan", "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    plain = re.sub(r"\x1b\[[0-9;]*m", "", done.output)
    options = ("--parameters --ranks --compute --bandwidth --latency --sigma --hosts --optimizer-state --weights-wire "
               "--launch-ms --task-ms --group-size --json")  # fmt: skip
    assert [option for option in options.split() if option not in plain] == []
