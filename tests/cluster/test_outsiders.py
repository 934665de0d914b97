"""Others on the same machine: another user, the same user without the token, and frames that make no sense."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pyspark import cloudpickle
from pyspark.sql import SparkSession

from cluster.fuzz import fuzzed
from contract.stores import LocalBridge, join
from harness import eventually
from mizzle.blocks.arena import allocate
from mizzle.blocks.card import CARD
from mizzle.blocks.frames import PROTOCOL_VERSION, Request, Writer
from mizzle.spark.iterate import iterate

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # type: ignore[no-untyped-call]

NOBODY = 65534
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a process of another user")

BECOME = """
import json, os, socket, sys
if sys.argv[1]:
    os.setgroups([])
    os.setgid(int(sys.argv[1]))
    os.setuid(int(sys.argv[1]))
"""
INTRUDER = """
tried = {}
for path in json.loads(sys.argv[2]):
    try:
        if path.endswith("/s"):
            with socket.socket(socket.AF_UNIX) as raw:
                raw.connect(path)
        else:
            os.close(os.open(path, os.O_RDONLY))
        tried[path] = "let in"
    except OSError as error:
        tried[path] = error.strerror
print(json.dumps({"uid": os.geteuid(), "tried": tried}))
"""
HELLO = """
with socket.socket(socket.AF_UNIX) as raw:
    raw.settimeout(10)
    raw.connect(sys.argv[2])
    raw.sendall(bytes.fromhex(sys.argv[3]))
    raw.shutdown(socket.SHUT_WR)
    said = b""
    while part := raw.recv(65536):
        said += part
sys.stdout.buffer.write(said)
"""


def child(program: str, *arguments: str, user: int | None) -> bytes:
    """What a program prints that becomes another user first, and keeps nothing of this one."""
    command = [sys.executable, "-I", "-c", BECOME + program, "" if user is None else str(user), *arguments]
    return subprocess.run(command, cwd="/", stdout=subprocess.PIPE, timeout=60, check=True).stdout


def intrude(paths: list[Path], user: int | None) -> dict[str, str]:
    """What becomes of opening or connecting to each."""
    told = json.loads(child(INTRUDER, json.dumps([str(path) for path in paths]), user=user))
    assert told["uid"] == (os.geteuid() if user is None else user)
    found: dict[str, str] = told["tried"]
    return found


@contextmanager
def open_around(*kept: Path) -> Iterator[None]:
    """Let everybody into all directories above: what then keeps them out is the thing itself, not where tests run."""
    changed = {}
    for path in kept:
        for above in path.parents:
            mode = stat.S_IMODE(above.stat().st_mode)
            if not mode & stat.S_IXOTH and above not in changed:
                changed[above] = mode
    try:
        for above, mode in changed.items():
            above.chmod(mode | 0o755)
        yield
    finally:
        for above, mode in changed.items():
            above.chmod(mode)


@pytest.fixture
def bridge(local_bridge: LocalBridge) -> Iterator[LocalBridge]:
    """The bridge, within a run of its own."""
    local_bridge.begin()
    yield local_bridge
    local_bridge.end()


def cards(spark: SparkSession) -> list[Path]:
    """Where the bridge tells its workers of itself."""
    return list(Path(spark.sparkContext.getConf().get("spark.local.dir") or "").glob(f"blockmgr-*/{CARD}"))


@as_root
def test_another_user_cannot_connect_nor_read_the_token_or_an_arena(
    spark_local: SparkSession, bridge: LocalBridge
) -> None:
    (one,) = join(bridge, 1)
    fd, own = allocate("a worker's own", 4096)
    with closing(one.client), open(fd, "rb"):  # noqa: PTH123 - a descriptor, to be closed
        secret = one.blocks.region("secret", 4096)
        paths = [Path(bridge.path), *cards(spark_local), Path(secret.path), own]
        assert len(paths) == 4
        with open_around(cards(spark_local)[0], one.client.directory):
            assert set(intrude(paths, None).values()) == {"let in"}, "its own user can"
            assert set(intrude(paths, NOBODY).values()) == {"Permission denied"}


def tried_by_nobody(_context: Any, _batch: Any) -> Any:
    """Runs on an executor, while the rows of the run lie on its disk."""
    folders = [path for disk in os.environ["SPARK_LOCAL_DIRS"].split(",") for path in Path(disk).glob("mizzle-*")]
    shards = [shard for folder in folders for shard in folder.iterdir()]
    with open_around(*folders):
        return intrude(shards, None), intrude(shards, NOBODY)


def nothing(_context: Any, _batch: Any) -> None:
    """One iteration."""


@as_root
def test_another_user_cannot_read_the_rows_of_a_run(spark_local: SparkSession) -> None:
    df = spark_local.createDataFrame([(float(k),) for k in range(8)], "x double")
    for own, others in iterate(df, nothing, iterations=1, ranks=1, finish=tried_by_nobody).values:
        assert own
        assert set(own.values()) == {"let in"}
        assert set(others.values()) == {"Permission denied"}


def hello(token: bytes) -> str:
    return Writer().number("H", PROTOCOL_VERSION).raw(token).frame(Request.HELLO, 1).hex()


@as_root
def test_another_user_is_refused_even_with_the_token_and_through_an_open_directory(local_bridge: LocalBridge) -> None:
    client = local_bridge.client()
    doors = {client.directory: 0o700, Path(local_bridge.path): stat.S_IMODE(Path(local_bridge.path).stat().st_mode)}
    refused = client.counters()["refused"]
    try:
        for door in doors:
            door.chmod(0o777)
        assert client.host_id.encode() in child(HELLO, local_bridge.path, hello(local_bridge.token), user=None)
        said = child(HELLO, local_bridge.path, hello(local_bridge.token), user=NOBODY)
        assert b"not a worker of this executor" in said
        assert client.host_id.encode() not in said
    finally:
        for door, mode in doors.items():
            door.chmod(mode)
    assert client.counters()["refused"] == refused + 1
    client.close()


def test_a_process_of_the_same_user_with_another_token_is_refused(local_bridge: LocalBridge) -> None:
    almost = bytes([local_bridge.token[0] ^ 1]) + local_bridge.token[1:]
    for token in (almost, bytes(32)):
        assert b"not a worker of this executor" in child(HELLO, local_bridge.path, hello(token), user=None)


def refuses(connection: socket.socket) -> bool:
    try:
        connection.send(b"x")
    except BrokenPipeError:
        return True
    return False


def test_who_says_no_hello_is_shown_the_door(local_bridge: LocalBridge) -> None:
    with socket.socket(socket.AF_UNIX) as silent, socket.socket(socket.AF_UNIX) as slow:
        for one in (silent, slow):
            one.connect(local_bridge.path)
            one.settimeout(30)
        slow.send(bytes.fromhex(hello(local_bridge.token))[:9])
        assert silent.recv(1) == slow.recv(1) == b""
        # Not half of the connection only, with a thread that goes on reading from it.
        assert all(eventually(partial(refuses, one), within_s=5) for one in (silent, slow))


def test_the_directory_of_the_bridge_and_its_card_are_its_users_alone(
    spark_local: SparkSession, local_bridge: LocalBridge
) -> None:
    client = local_bridge.client()
    assert stat.S_IMODE(client.directory.stat().st_mode) == 0o700
    assert [stat.S_IMODE(card.stat().st_mode) for card in cards(spark_local)] == [0o600]
    client.close()


def test_frames_that_make_no_sense_harm_neither_the_bridge_nor_other_ranks(
    spark_local: SparkSession, bridge: LocalBridge
) -> None:
    fuzzed(spark_local, bridge, frames=10_000, seed=27)
