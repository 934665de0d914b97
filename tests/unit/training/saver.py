"""A process that forks others, each of which saves a checkpoint as soon as it is told to by SIGUSR1.

``python saver.py``: for every path on a line of its input it writes the number of a process, and, once that has ended,
its exit status: 0 saved, 3 a `CheckpointError` (its message is on stderr), -9 killed.
"""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import traceback
from pathlib import Path
from typing import TextIO

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from mizzle.errors import CheckpointError
from mizzle.training.checkpoint import CheckpointStore
from unit.training.checkpoints import HALVES, save

FAILED = 3


def save_and_replace(path: str) -> None:
    """A save as ranks and a driver do it, one after the other; every file is read again before older ones go."""
    store = CheckpointStore(path)
    name = save(store, 2, HALVES)
    for part in store.read(name).files:
        store.check_part(name, part)
    store.retain(1, checked=[name])


def child(path: str) -> int:
    signal.sigwait([signal.SIGUSR1])
    os.getppid()  # a mark in the trace
    try:
        save_and_replace(path)
    except CheckpointError as error:
        tell(error, sys.stderr)
        return FAILED
    except BaseException:  # noqa: BLE001 - whatever it is, it is told
        traceback.print_exc()
        return 1
    return 0


def tell(what: object, stream: TextIO) -> None:
    stream.write(f"{what}\n")
    stream.flush()


def main() -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    with tempfile.TemporaryDirectory() as warm:  # what is loaded or made once is there before the first fork
        save_and_replace(warm)
    for line in sys.stdin:
        number = os.fork()
        if not number:
            os._exit(child(line.strip()))
        tell(number, sys.stdout)
        tell(os.waitstatus_to_exitcode(os.waitpid(number, 0)[1]), sys.stdout)


if __name__ == "__main__":
    main()
