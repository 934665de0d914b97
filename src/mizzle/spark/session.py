"""The settings a Spark session needs for mizzle, and a session that has them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from pyspark import SparkContext
from pyspark.sql import SparkSession

from mizzle.errors import BridgeMissing, ConfigError

PLUGIN = "org.mizzle.bridge.MizzlePlugin"
_JAR = Path(__file__).parent / "jars" / "mizzle-bridge.jar"


def spark_conf(base: Mapping[str, str] | None = None) -> dict[str, str]:
    """The settings to start a Spark session with.

    Args:
        base: settings of your own; lists of jars and plugins in it are extended, everything else of yours wins.

    Returns:
        ``base`` with what mizzle needs; give it to ``SparkSession.builder.config(map=...)``.

    Raises:
        ConfigError: the package was installed without its jar.
    """
    if not _JAR.is_file():
        raise ConfigError(f"the bridge's jar is missing ({_JAR}): install the wheel, or run `make jar` in a checkout")
    settings = {
        # A Python task's 40 ms on TCP are Nagle's algorithm meeting delayed acknowledgements.
        "spark.python.unix.domain.socket.enabled": "true",
        # Ranks find their state themselves; waiting for a better executor only delays the group.
        "spark.locality.wait": "0s",
        "spark.speculation": "false",
    } | dict(base or {})
    settings["spark.jars"] = _with(settings.get("spark.jars", ""), str(_JAR))
    settings["spark.plugins"] = _with(settings.get("spark.plugins", ""), PLUGIN)
    return settings


def _with(listed: str, item: str) -> str:
    items = [part.strip() for part in listed.split(",") if part.strip()]
    return ",".join(items if item in items else [*items, item])


def session(
    master: str | None = None, *, app_name: str = "mizzle", conf: Mapping[str, str] | None = None
) -> SparkSession:
    """A Spark session with mizzle's settings: the running one, if it has them, else a new one.

    Args:
        master: Spark's master URL; None leaves it to spark-submit or the defaults file.
        app_name: the application's name.
        conf: further settings; they win over mizzle's.

    Raises:
        ConfigError: a session without the plugin runs already: a plugin cannot be added later. Stop it first, or
            start it with ``spark_conf()``.
    """
    builder = SparkSession.builder.appName(app_name).config(map=dict(spark_conf(conf)))
    if master is not None:
        builder = builder.master(master)
    spark = builder.getOrCreate()
    check_session(spark.sparkContext)
    if (master or "").startswith("local") and "PYSPARK_PYTHON" not in os.environ:
        # The workers of an embedded Spark run the Python that runs this, not the first one on the PATH.
        spark.sparkContext.pythonExec = sys.executable
    return spark


def check_session(context: SparkContext) -> None:
    """Refuse a session that was started without mizzle's plugin.

    Raises:
        BridgeMissing: names the missing line.
    """
    plugins = context.getConf().get("spark.plugins") or ""
    if PLUGIN not in plugins.split(","):
        raise BridgeMissing(
            f"this Spark session has no mizzle bridge: spark.plugins is {plugins!r}. Stop it and start it with "
            "mizzle.session(...), or with SparkSession.builder.config(map=mizzle.spark_conf())"
        )
