"""`mizzle ckpt ls | verify | export`: what they print, write and refuse, on checkpoints of small made-up states."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from typer.testing import CliRunner

from mizzle.cli import app as entry
from mizzle.errors import CheckpointError, ConfigError
from mizzle.training.checkpoint import CheckpointStore
from unit.training.checkpoints import save


def ran(*words: str) -> str:
    done = CliRunner().invoke(entry.app, ["ckpt", *words], catch_exceptions=False, env={"COLUMNS": "150"})
    assert done.exit_code == 0, done.output
    return done.output


def refused(*words: str) -> str:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        CliRunner().invoke(entry.app, ["ckpt", *words], catch_exceptions=False, env={"COLUMNS": "150"})
    return str(caught.value)


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(str(tmp_path / "run"))


def told(path: Path) -> Any:
    return json.loads(path.read_text())


def test_ls_lists_what_is_there_and_what_broken_saves_left(store: CheckpointStore, tmp_path: Path) -> None:
    old, new, torn = save(store, 5), save(store, 12), store.begin(20)
    (Path(store.path) / old / "MANIFEST.json").write_text("{}")
    shown = ran("ls", store.path, "--json", str(tmp_path / "ls.json"))
    rows = told(tmp_path / "ls.json")
    assert [(row["name"], row["iteration"], row["state"]) for row in rows] == [
        (torn, 20, "unfinished"), (new, 12, "committed"), (old, 5, "damaged"),
    ]  # fmt: skip
    size = sum(part.num_bytes for part in store.read(new).files)
    wanted = {"run": "r1", "parts": 2, "bytes": size, "written_with": {"mizzle": "test"}, "error": None}
    assert rows[1].items() >= wanted.items()
    assert all(row["name"] in shown for row in rows)
    assert "MANIFEST.json" in rows[2]["error"]


def test_ls_of_nothing_is_an_empty_list(tmp_path: Path) -> None:
    ran("ls", str(tmp_path / "nowhere"), "--json", str(tmp_path / "ls.json"))
    assert told(tmp_path / "ls.json") == []


def test_verify_names_the_damaged_file_and_fails(store: CheckpointStore, tmp_path: Path) -> None:
    old, new = save(store, 5), save(store, 12)
    assert "valid" in ran("verify", store.path)
    part = Path(store.path) / new / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1])
    assert refused("verify", store.path, "--json", str(tmp_path / "v.json")).startswith(f"damaged: {new};")
    assert [row["state"] for row in told(tmp_path / "v.json")] == ["damaged", "valid"]
    assert f"{new}/part-00001.safetensors" in told(tmp_path / "v.json")[0]["error"]
    assert "valid" in ran("verify", store.path, old)
    assert f"there is no checkpoint {new}x at {store.path}" in refused("verify", store.path, f"{new}x")
    assert "there is no checkpoint at" in refused("verify", str(tmp_path / "nowhere"))


def test_what_a_hostile_manifest_says_is_shown_without_what_terminals_obey(
    store: CheckpointStore, tmp_path: Path
) -> None:
    name = save(store, 5)
    manifest = store.read(name)
    hostile = replace(manifest.parameters[0], name="\x1b]0;owned\x07\x1b[2J", tensor="buffer.x")
    path = Path(store.path) / name / "MANIFEST.json"
    path.write_bytes(replace(manifest, parameters=(hostile,)).to_json())
    done = CliRunner().invoke(entry.app, ["ckpt", "verify", store.path, "--json", str(tmp_path / "v.json")])
    assert done.exit_code == 1
    assert "\x1b" not in done.output
    assert "\\x1b]0;owned" in told(tmp_path / "v.json")[0]["error"]


def test_export_writes_the_model_of_the_newest_valid_one_or_of_a_named_one(
    store: CheckpointStore, tmp_path: Path
) -> None:
    old, new = save(store, 5), save(store, 12)
    out = tmp_path / "deep" / "model.safetensors"
    assert f"5 tensors of {new}, after 12 iterations" in ran("export", store.path, "--out", str(out))
    ran("export", store.path, "--out", str(out), "--name", old, "--json", str(tmp_path / "e.json"))
    assert told(tmp_path / "e.json") == {"name": old, "iteration": 5, "out": str(out), "tensors": 5}
    found = safetensors.torch.load_file(out)
    assert torch.equal(found["a"], torch.arange(16.0).view(4, 4) + 5000)
    assert torch.equal(found["b"], torch.arange(32.0, 40.0) + 5000)
    assert torch.equal(found["tied"], found["b"])
    assert torch.equal(found["counter"], torch.tensor(5))
    assert torch.equal(found["fixed"], torch.tensor([7.0, 8.0, 9.0]))
    assert [one.name for one in out.parent.iterdir()] == [out.name]


def test_export_refuses_what_is_damaged_and_leaves_the_file_that_was_there(
    store: CheckpointStore, tmp_path: Path
) -> None:
    out = tmp_path / "model.safetensors"
    out.write_text("before")
    assert "there is no valid checkpoint" in refused("export", store.path, "--out", str(out))
    name = save(store, 5)
    part = Path(store.path) / name / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    assert "there is no valid checkpoint" in refused("export", store.path, "--out", str(out))
    assert f"{name}/part-00001.safetensors" in refused("export", store.path, "--out", str(out), "--name", name)
    assert "--out /proc/x/model" in refused("export", store.path, "--out", "/proc/x/model")
    assert out.read_text() == "before"


def test_help_names_the_commands_and_the_json() -> None:
    assert all(word in ran("--help") for word in ("ls", "verify", "export"))
    assert all("The JSON is" in ran(command, "--help") for command in ("ls", "verify", "export"))
