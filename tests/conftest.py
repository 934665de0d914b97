"""Fixtures that more than one room's tests use."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyspark.sql import SparkSession

    from contract.stores import LocalBridge

_LOG4J = """\
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
appender.file.type = File
appender.file.name = file
appender.file.fileName = {path}
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{{HH:mm:ss.SSS}} %p %c{{1}}: %m%n%ex
"""


def pytest_configure(config: pytest.Config) -> None:
    """Let pyspark's remark about pandas 3 pass: mapInArrow says it at every call, and no test uses pandas."""
    config.addinivalue_line("filterwarnings", "ignore:PySpark does not yet fully support pandas:FutureWarning")


@pytest.fixture(scope="session")
def spark_local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    """The one ``local[4]`` session of the process, with mizzle's plugin. Its log is a file.

    A process has one SparkContext at most, so whoever needs another master (``local-cluster``) starts a process.
    """
    from mizzle.spark.session import session

    home = tmp_path_factory.mktemp("spark")
    logging = home / "log4j2.properties"
    logging.write_text(_LOG4J.format(path=home / "spark.log"))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYSPARK_PYTHON", sys.executable)  # without it workers run whichever python3 is on PATH
        spark = session(
            "local[4]",  # slots may exceed the CPUs
            app_name="mizzle tests",
            conf={
                "spark.driver.extraJavaOptions": f"-Dlog4j2.configurationFile={logging.as_uri()}",
                "spark.ui.enabled": "false",
                "spark.ui.showConsoleProgress": "false",
                "spark.driver.bindAddress": "127.0.0.1",
                "spark.driver.host": "127.0.0.1",
                "spark.local.dir": str(home / "local"),
                "spark.sql.warehouse.dir": str(home / "warehouse"),
                "spark.sql.shuffle.partitions": "4",
                "spark.default.parallelism": "2",
                "spark.mizzle.leasePeriod": "50ms",  # so that the end of a run is seen soon
            },
        )
        yield spark
        spark.stop()


@pytest.fixture(scope="session")
def local_bridge(spark_local: SparkSession) -> LocalBridge:
    """The bridge of that session: its executor is the driver's JVM, and this process may connect to it."""
    from contract.stores import LocalBridge
    from mizzle.blocks.card import find_bridge
    from mizzle.spark.driver import DriverSide

    context = spark_local.sparkContext
    (directory,) = Path(context.getConf().get("spark.local.dir") or "").glob("blockmgr-*")
    path, token = find_bridge(str(directory))
    return LocalBridge(path, token, DriverSide(context))
