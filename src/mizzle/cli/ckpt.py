"""`mizzle ckpt`: what checkpoints there are, whether they are whole, and the model out of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from mizzle.cli.output import JsonFile, check_writable, write_json
from mizzle.cli.telling import telling
from mizzle.errors import CheckpointError
from mizzle.training.checkpoint import CheckpointStore
from mizzle.training.export import export as write_model
from mizzle.training.manifest import Listed, Manifest

StorePath = Annotated[
    str, typer.Argument(metavar="PATH", help="Where the run keeps its checkpoints: a directory, or a URI (s3://, ...).")
]

ckpt = typer.Typer(no_args_is_help=True, help="List, verify and export checkpoints.")


@dataclass(frozen=True, slots=True)
class Row:
    """What is told of one checkpoint.

    Attributes:
        name: of the checkpoint.
        iteration: iterations done.
        state: "committed", "valid", "damaged", or "unfinished" for what a broken save has left.
        run: that wrote it; None where the manifest cannot be read, as the next three.
        parts: files with states of ranks.
        bytes: of all files but the manifest.
        written_with: versions.
        error: what is wrong with it.
    """

    name: str
    iteration: int
    state: str
    run: str | None = None
    parts: int | None = None
    bytes: int | None = None
    written_with: dict[str, str] | None = None
    error: str | None = None


@ckpt.command("ls")
def list_(path: StorePath, json: JsonFile = None) -> None:
    """List the checkpoints at PATH, most iterations first, by their manifests. `verify` reads the files as well.

    The JSON is a list of {name, iteration, state, run, parts, bytes, written_with, error}; a state is committed,
    damaged (its manifest cannot be read) or unfinished (what a broken save has left, or one under way).
    """
    check_writable(json)
    store = CheckpointStore(path)
    rows = [_row(store, one, verify=False) for one in store.listed()]
    write_json(json, [asdict(row) for row in rows])
    if rows:
        Console().print(table(rows, store.path))
    else:
        Console().print(f"There is no checkpoint in {store.path}.", highlight=False)


@ckpt.command()
def verify(
    path: StorePath,
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="One of them.", show_default="all")] = None,
    json: JsonFile = None,
) -> None:
    """Read every byte of the checkpoints at PATH and compare it with their manifests. 1 if any is damaged.

    The JSON is as that of `ls`, with the states valid and damaged.
    """
    check_writable(json)
    store = CheckpointStore(path)
    wanted = [one for one in store.listed() if one.committed and name in {None, one.name}]
    if not wanted:
        raise CheckpointError(
            f"there is no checkpoint{f' {name}' if name else ''} at {store.path}: `mizzle ckpt ls` lists them"
        )
    console = Console()
    rows = []
    with telling(console) as tell:
        for one in wanted:
            tell(f"reading {one.name}")
            rows.append(_row(store, one, verify=True))
    write_json(json, [asdict(row) for row in rows])
    console.print(table(rows, store.path))
    damaged = [row.name for row in rows if row.state == "damaged"]
    if damaged:
        raise CheckpointError(f"damaged: {', '.join(damaged)}; a run that resumes passes them over")


@ckpt.command()
def export(
    path: StorePath,
    out: Annotated[Path, typer.Option(dir_okay=False, help="The file to write, safetensors.")],
    name: Annotated[str | None, typer.Option(help="The checkpoint.", show_default="the newest valid one")] = None,
    json: JsonFile = None,
) -> None:
    """Write the model of a checkpoint as one safetensors file: the names and shapes of its state_dict().

    Load it with model.load_state_dict(safetensors.torch.load_file(FILE)). What the file held before is replaced.
    The JSON is {name, iteration, out, tensors}.
    """
    check_writable(json)
    check_writable(out, "--out")
    store = CheckpointStore(path)
    manifest = store.read(name) if name is not None else _newest(store)
    num_tensors = write_model(store, manifest, out)
    told = {"name": manifest.name, "iteration": manifest.iteration, "out": str(out), "tensors": num_tensors}
    write_json(json, told)
    print(f"{out}: {num_tensors} tensors of {manifest.name}, after {manifest.iteration} iterations")


def _newest(store: CheckpointStore) -> Manifest:
    found = store.newest_valid()
    if found is None:
        raise CheckpointError(f"there is no valid checkpoint at {store.path}: `mizzle ckpt verify` says why")
    return found[1]


def _row(store: CheckpointStore, one: Listed, *, verify: bool) -> Row:
    if not one.committed:
        return Row(one.name, one.iteration, "unfinished")
    try:
        manifest = store.verify(one.name) if verify else store.read(one.name)
    except CheckpointError as error:
        return Row(one.name, one.iteration, "damaged", error=str(error))
    return Row(
        one.name, one.iteration, "valid" if verify else "committed", manifest.run, len(manifest.parts),
        sum(part.num_bytes for part in manifest.files), dict(manifest.written_with),
    )  # fmt: skip


def table(rows: Sequence[Row], path: str) -> Table:
    """The checkpoints for people."""
    shown = Table(title=f"checkpoints at {path}", title_justify="left")
    for name in ("iteration", "name", "state", "parts", "MB", "run"):
        justify: Literal["left", "right"] = "right" if name in {"iteration", "parts", "MB"} else "left"
        shown.add_column(name, justify=justify, no_wrap=name == "name", overflow="fold")
    for row in rows:
        told = row.run or (row.error or "").replace("[", "\\[")
        size = "-" if row.bytes is None else f"{row.bytes / 1e6:.1f}"
        shown.add_row(str(row.iteration), row.name, row.state, str(row.parts or "-"), size, told)
    return shown
