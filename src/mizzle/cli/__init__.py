"""The command `mizzle`: one command a file. It prints and exits; whatever it does is done by the rooms below."""

from mizzle.cli.app import main

__all__ = ["main"]
