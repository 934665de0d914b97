"""Under the secure profiles training works, bit for bit, and strangers get nothing; under Spark's default they do."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import pytest
import safetensors.torch
import torch
from pyspark import StorageLevel
from pyspark.sql import SparkSession

from cluster import on_secure_cluster
from cluster.fuzz import Fuzzer
from cluster.stranger import rob
from cluster.trainings import fit
from harness import eventually
from mizzle.blocks.bridge import BridgeClient
from mizzle.blocks.card import CARD, find_bridge
from mizzle.blocks.deadline import Deadline
from mizzle.spark.driver import DriverSide
from mizzle.spark.security import ENCRYPT

TESTS = Path(__file__).parents[1]


@dataclass
class Fort:
    """A running application under a profile.

    Attributes:
        home: its directory.
        told: what it says of itself.
        child: its driver.
    """

    home: Path
    told: dict[str, Any]
    child: subprocess.Popen[bytes]

    def bridges(self) -> list[dict[str, str]]:
        """What the bridges say of themselves."""
        return list(self.told["bridges"].values())

    def sockets(self) -> list[tuple[str, bytes]]:
        """Sockets and tokens of the executors' bridges, as this user may read them."""
        return [find_bridge(str(path.parent)) for path in (self.home / "local").rglob(CARD)]

    def leave(self) -> bool:
        """End it; whether it still worked."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        assert self.child.wait(90) == 0
        return (self.home / "healthy").read_text() == "True"


@contextmanager
def fort(profile: str, home: Path) -> Iterator[Fort]:
    """Start one; what is left of it is killed at the end."""
    with (home / "log").open("w") as log, _started(profile, home, log) as child:
        try:
            up = eventually(lambda: (home / "told").exists() or child.poll() is not None, within_s=300)
            assert up, "did not get ready"
            assert (home / "told").exists(), (home / "log").read_text()[-4000:]
            yield Fort(home, json.loads((home / "told").read_text()), child)
        finally:
            child.kill()


def _started(profile: str, home: Path, log: IO[str]) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(TESTS / "cluster" / "on_secure_cluster.py"), profile, str(home)]
    # Nobody outside of this machine is to try.
    environment = environment_of_children() | {"SPARK_LOCAL_HOSTNAME": "127.0.0.1", "SPARK_LOCAL_IP": "127.0.0.1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=log, stderr=log)


def environment_of_children() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(TESTS), "PYSPARK_PYTHON": sys.executable}


def storage_level(spark: SparkSession) -> bytes:
    """A storage level and a type, as Spark writes them beside an upload; the stranger has a Spark at home too."""
    jvm: Any = spark.sparkContext._jvm
    out = jvm.java.io.ByteArrayOutputStream()
    level = jvm.org.apache.spark.storage.StorageLevel.MEMORY_ONLY_SER()
    described = jvm.org.apache.spark.network.netty.BlockReplicationMetadata(
        level, jvm.scala.reflect.ClassTag.Any(), jvm.scala.Option.empty(), *[False]
    )
    jvm.java.io.ObjectOutputStream(out).writeObject(described)
    return bytes(out.toByteArray())


def test_by_default_a_stranger_reads_forges_and_has_classes_made(spark_local: SparkSession) -> None:
    """What the other tests rest on: the stranger knows what he does."""
    context = spark_local.sparkContext
    cached = context.parallelize([b"for members only"] * 64, 2).persist(StorageLevel.MEMORY_ONLY)
    cached.count()
    (where,) = DriverSide(context).told().values()
    loot = rob(
        where["listens"], int(where["port"]), app=context.applicationId, block=f"rdd_{cached.id()}_0",
        metadata=storage_level(spark_local), upload="test_forged",
    )  # fmt: skip
    assert loot.read is not None, loot.answers
    assert b"for members only" in loot.read
    assert loot.uploaded, loot.answers
    assert loot.deserialized, loot.answers
    again = rob(
        where["listens"], int(where["port"]), app=context.applicationId, block="test_forged", metadata=b"", upload="x"
    )  # fmt: skip
    assert again.read == b"forged"
    cached.unpersist(blocking=True)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("profile", ["gcm", pytest.param("tls", marks=pytest.mark.slow)])
def test_a_secure_application_trains_to_the_same_bits_and_gives_strangers_nothing(
    profile: str, spark_local: SparkSession, tmp_path: Path
) -> None:
    plain = fit(spark_local, on_secure_cluster.training())
    with fort(profile, tmp_path) as there:
        found = safetensors.torch.load_file(tmp_path / "model")
        assert found.pop("losses").tolist() == plain.history.losses
        assert all(torch.equal(found.pop(name), value) for name, value in plain.model.state_dict().items())
        assert not found
        robbed(there, storage_level(spark_local), tls=profile == "tls")
        for path, token in there.sockets():
            Fuzzer(path, token, seed=5).play(1000)
        told_to_all = b"".join(path.read_bytes() for path in command_lines())
        assert b"mizzle.bridge.MizzlePlugin" in told_to_all
        assert not [secret for secret in there.told["secrets"] if secret.encode() in told_to_all]
        assert there.leave(), "it worked on as before"


def robbed(there: Fort, metadata: bytes, *, tls: bool) -> None:
    """A stranger tries every executor, and gets nothing."""
    for where in there.bridges():
        for speaks_tls in {False, tls}:
            for block in ("0", "1"):
                loot = rob(
                    where["listens"], int(where["port"]), app=there.told["app"],
                    block=f"{there.told['block']}_{block}", metadata=metadata, upload="test_forged", tls=speaks_tls,
                )  # fmt: skip
                assert (loot.read, loot.uploaded, loot.deserialized) == (None, False, False), loot.answers
    sockets = there.sockets()
    assert len(sockets) == 2
    for path, token in sockets:
        with BridgeClient(path, token, Deadline.after(10)) as client:
            assert client.count_blocks("test_forged") == 0


def command_lines() -> list[Path]:
    """Those of all processes: every user may read them."""
    return [path for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]


LEFT_BEHIND = 100
IN_A_NETWORK_OF_ITS_OWN = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]


@pytest.fixture
def short_home() -> Iterator[Path]:
    """Paths of Unix sockets have 107 bytes at most, and Spark adds some sixty."""
    with tempfile.TemporaryDirectory(prefix="mizzle-") as home:
        yield Path(home)


@pytest.mark.skipif(
    os.geteuid() != 0 or not (shutil.which("ip") and shutil.which("unshare")),
    reason="a network of one's own, which nobody can reach, needs root, ip and unshare",
)
def test_an_open_application_is_warned_of_once_and_refused_where_security_is_required(short_home: Path) -> None:
    """And it starts among the sockets of a hundred bridges that were killed."""
    for number in range(LEFT_BEHIND):
        dead = short_home / "tmp" / f"mizzle-{number}"
        dead.mkdir(mode=0o700, parents=True)
        with socket.socket(socket.AF_UNIX) as gone:
            gone.bind(str(dead / "s"))
    script = str(TESTS / "cluster" / "on_open_network.py")
    child = subprocess.run(
        [*IN_A_NETWORK_OF_ITS_OWN, sys.executable, script, str(short_home)],
        env=environment_of_children(), capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-4000:]
    found = json.loads((short_home / "found.json").read_text())
    assert found["sums"] == [[6.0, 6.0]] * 2
    (warning,) = [line for line in child.stderr.splitlines() if "NOT SECURE" in line]
    for line in ("listen on 0", "spark.authenticate true", *ENCRYPT):
        assert line in warning
    assert list(found["refused"]) == ["Trainer", "iterate", "all_reduce", "run_group"]
    for said, seconds in found["refused"].values():
        assert said.startswith('security is "required", but block managers listen on 0')
        assert all(line in said for line in ("spark.authenticate true", *ENCRYPT))
        assert seconds < 1
    assert found["jobs"] > 0
    assert found["started"] == 0, "neither a job nor a question of a rank"
