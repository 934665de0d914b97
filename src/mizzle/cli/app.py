"""The entry point of `mizzle`: collects the commands, and turns mizzle's own errors into one message."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated

import typer

from mizzle.cli.bench import bench
from mizzle.cli.ckpt import ckpt
from mizzle.cli.demo import demo
from mizzle.cli.doctor import doctor
from mizzle.cli.plan import plan
from mizzle.errors import MizzleError

app = typer.Typer(
    name="mizzle",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # what nobody expected is shown with Python's plain traceback
    help="Data-parallel PyTorch on an unmodified Apache Spark. Exit code 0: done; 1: it failed; 2: wrong options.",
)
app.command()(demo)
app.command()(doctor)
app.command()(plan)
app.add_typer(bench, name="bench")
app.add_typer(ckpt, name="ckpt")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"mizzle {version('mizzle')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line. An error of mizzle is one message and exit code 1, any other one keeps its traceback."""
    try:
        app()
    except MizzleError as error:
        notes = getattr(error, "__notes__", [])
        print("\n".join([f"error: {error}", *notes]), file=sys.stderr)
        sys.exit(1)
