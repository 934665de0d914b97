"""A program of its own: runs tests of pytest against copies of mizzle, each in a child of this process.

What all of them import is imported once, before: torch alone takes longer than most of the tests. Reads a JSON list of
[directory with the package, nodes], and writes the exit code of each.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

import crc32c  # noqa: F401 - see above, as are the next
import hypothesis  # noqa: F401
import numpy as np  # noqa: F401
import pytest
import torch  # noqa: F401
from pyspark import cloudpickle  # noqa: F401

SETTINGS = [
    "-q", "-x", "-p", "no:cacheprovider", "-o", "log_file=", "--hypothesis-seed=0", "-m", "",
    "-W", "ignore:Module already imported", "-p", "no:unraisableexception",
]  # fmt: skip
BROKEN = 99
"""No exit code of pytest's."""


def run(package: str, nodes: list[str]) -> int:
    """The exit code of pytest."""
    child = os.fork()
    if not child:
        code = BROKEN
        try:
            assert "mizzle.blocks" not in sys.modules, "the copy is imported, not the product"
            sys.path.insert(0, package)
            os.environ["PYTHONPATH"] = os.pathsep.join([package, os.environ["PYTHONPATH"]])  # of what tests start
            code = pytest.main([*SETTINGS, *nodes])
        except BaseException:  # noqa: BLE001 - told, and then this child ends
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


if __name__ == "__main__":
    todo = json.loads(Path(sys.argv[1]).read_text())
    Path(sys.argv[2]).write_text(json.dumps([run(package, nodes) for package, nodes in todo]))
