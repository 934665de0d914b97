"""A Spark session for one command: its noise goes to a file, embedded Spark listens on loopback only.

Embedded Spark is ``local[n]`` and ``local-cluster[...]``. The environment is never written.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from py4j.protocol import Py4JError
from pyspark import SparkConf, SparkContext
from pyspark.errors import PySparkException
from pyspark.java_gateway import launch_gateway
from pyspark.sql import SparkSession

from mizzle.cli.java import require_java
from mizzle.errors import ConfigError
from mizzle.spark.session import open_settings, session, spark_conf

_LOOPBACK = "127.0.0.1"
_QUIET = {"spark.ui.enabled": "false", "spark.ui.showConsoleProgress": "false"}


@contextmanager
def quiet_session(
    master: str, *, conf: Mapping[str, str] | None = None, loopback: bool = True
) -> Iterator[SparkSession]:
    """Start Spark, stop it at the end.

    Args:
        master: Spark's master URL.
        conf: further settings.
        loopback: whether embedded Spark is kept to 127.0.0.1, so that nobody outside this machine can reach it.

    Raises:
        ConfigError: there is no Java, or Spark does not start; the message names the log.
    """
    require_java()
    directory = Path(tempfile.mkdtemp(prefix="mizzle-log-"))
    log = directory / "spark.log"
    settings = _QUIET | (_loopback_settings(master) if loopback else {}) | dict(conf or {})
    try:
        with log.open("ab") as stream:
            jvm = _launch(open_settings(spark_conf(settings)), stream)
        if loopback and is_embedded(master):
            # The executors of a local-cluster bind to the machine's name, and no setting but the environment's
            # SPARK_LOCAL_HOSTNAME says another; this is where Spark keeps it.
            jvm.org.apache.spark.util.Utils.setCustomHostname(_LOOPBACK)
        spark = session(master, conf=settings)
    except (PySparkException, Py4JError) as error:
        reason = reason_of(str(error)) or type(error).__name__
        raise ConfigError(f"Spark did not start with master {master!r}: {reason}. Its log is {log}") from error
    left = _left_behind(spark.sparkContext, master, jvm)
    try:
        yield spark
    except BaseException as error:
        error.add_note(f"Spark's log is {log}")
        raise
    else:
        shutil.rmtree(directory)
    finally:
        spark.stop()
        if left is not None:
            shutil.rmtree(left, ignore_errors=True)


def reason_of(text: str) -> str:
    """The line that tells most: Java's own, which py4j puts behind a colon, else the first one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line.removeprefix(": ") for line in lines if line.startswith(": ")), lines[0] if lines else "")


def is_embedded(master: str) -> bool:
    """Whether driver and executors all run on this machine, for this process alone."""
    return master == "local" or master.startswith(("local[", "local-cluster["))


def _loopback_settings(master: str) -> dict[str, str]:
    return {"spark.driver.host": _LOOPBACK, "spark.driver.bindAddress": _LOOPBACK} if is_embedded(master) else {}


def _launch(settings: Mapping[str, str], stream: IO[bytes]) -> Any:  # noqa: ANN401 - py4j's view of a JVM
    """Start the JVM with its output in a file: it and the Python workers below it write there, not on the terminal."""
    conf = SparkConf(loadDefaults=False).setAll(list(settings.items()))
    start: Any = launch_gateway  # has no types
    gateway = start(conf, popen_kwargs={"stdout": stream, "stderr": stream})
    SparkContext._ensure_initialized(gateway=gateway)  # noqa: SLF001 - the only way to hand over a gateway
    return SparkContext._jvm  # noqa: SLF001 - likewise


def _left_behind(context: SparkContext, master: str, jvm: Any) -> Path | None:  # noqa: ANN401
    """Where the executors of a local-cluster keep their output: Spark leaves it below its own installation."""
    if not master.startswith("local-cluster["):
        return None
    home, elsewhere = jvm.System.getenv("SPARK_HOME"), jvm.System.getenv("SPARK_WORKER_DIR")
    work = Path(elsewhere) if elsewhere else Path(home, "work") if home else None
    return work / context.applicationId if work is not None and context.applicationId else None
