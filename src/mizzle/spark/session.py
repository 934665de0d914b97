"""The settings a Spark session needs for mizzle, and a session that has them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from py4j.protocol import Py4JJavaError
from pyspark import SparkConf, SparkContext
from pyspark.sql import SparkSession

from mizzle.errors import BridgeMissing, ConfigError

PLUGIN = "org.mizzle.bridge.MizzlePlugin"
_SECRET = re.compile("secret|password|token", re.IGNORECASE)
"""Names of settings that Spark itself does not show (the default of spark.redaction.regex)."""
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
        # Tasks do not wait for a better place, but for those that go where a rank lives: elsewhere they are of no use.
        "spark.locality.wait": "0s",
        "spark.locality.wait.process": "3s",
        "spark.speculation": "false",
    } | dict(base or {})
    settings["spark.jars"] = _with(settings.get("spark.jars", ""), str(_JAR))
    settings["spark.plugins"] = _with(settings.get("spark.plugins", ""), PLUGIN)
    return settings


def _with(listed: str, item: str) -> str:
    items = [part.strip() for part in listed.split(",") if part.strip()]
    return ",".join(items if item in items else [*items, item])


def open_settings(settings: Mapping[str, str]) -> dict[str, str]:
    """Those that may stand on a command line, which every user of a machine can read."""
    return {name: value for name, value in settings.items() if not _SECRET.search(name)}


def session(
    master: str | None = None, *, app_name: str = "mizzle", conf: Mapping[str, str] | None = None
) -> SparkSession:
    """A Spark session with mizzle's settings: the running one (``conf`` is not used then), or a new one.

    Args:
        master: Spark's master URL; None leaves it to spark-submit or the defaults file.
        app_name: the application's name.
        conf: further settings; they win over mizzle's. Secrets and passwords in it are kept off command lines.

    Raises:
        BridgeMissing: a session without the plugin runs already, or did in this process: a plugin cannot be added
            later. Start the Python process (the notebook's kernel) anew and begin with this call.
        ConfigError: a session with another master runs already, or Spark cannot start with this one.
    """
    running = SparkContext._active_spark_context  # noqa: SLF001 - PySpark has no public question for it
    if master is not None and running is not None and running.master != master:
        raise ConfigError(
            f"a Spark session with master {running.master!r} runs already, so master={master!r} would be ignored: "
            "stop it first (spark.stop()), or call mizzle.session() to use it"
        )
    settings = spark_conf(conf)
    _launch_without_secrets(settings | {"spark.app.name": app_name} | ({"spark.master": master} if master else {}))
    builder = SparkSession.builder.appName(app_name).config(map=dict(settings))
    if master is not None:
        builder = builder.master(master)
    spark = _start(builder)
    check_session(spark.sparkContext)
    if (master or "").startswith("local") and "PYSPARK_PYTHON" not in os.environ:
        # The workers of an embedded Spark run the Python that runs this, not the first one on the PATH.
        spark.sparkContext.pythonExec = sys.executable
    return spark


def _launch_without_secrets(settings: Mapping[str, str]) -> None:
    """PySpark starts its JVM with all settings as arguments: here without secrets, which follow through the gateway."""
    shown = open_settings(settings)
    if len(shown) < len(settings):
        conf = SparkConf(loadDefaults=False).setAll([*shown.items()])
        SparkContext._ensure_initialized(conf=conf)  # noqa: SLF001 - no other way


def _start(builder: SparkSession.Builder) -> SparkSession:
    try:
        return builder.getOrCreate()
    except Py4JJavaError as error:
        cause = str(error.java_exception)
        if "org.mizzle" in cause:
            raise BridgeMissing(
                "this process started Spark's JVM without mizzle's jar, and it stays so even after spark.stop(): start "
                "the Python process (the notebook's kernel) anew and begin with mizzle.session(...)"
            ) from error
        raise ConfigError(f"Spark did not start: {cause}") from error


def check_session(context: SparkContext) -> None:
    """Refuse a session that was started without mizzle's plugin.

    Raises:
        BridgeMissing: names the missing line.
        ConfigError: the session was stopped.
    """
    java: Any = context._jsc  # noqa: SLF001 - PySpark has no public question for it
    if java is None or java.sc().isStopped():
        raise ConfigError("this Spark session has been stopped: make a new one with mizzle.session(...)")
    plugins = context.getConf().get("spark.plugins") or ""
    if PLUGIN not in plugins.split(","):
        raise BridgeMissing(
            f"this Spark session has no mizzle bridge: spark.plugins is {plugins!r}. Start the Python process "
            "(the notebook's kernel) anew and begin with mizzle.session(...), or with "
            "SparkSession.builder.config(map=mizzle.spark_conf())"
        )
