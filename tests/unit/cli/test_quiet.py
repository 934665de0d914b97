from __future__ import annotations

import pytest

from mizzle.cli.quiet import _loopback_settings, is_embedded, reason_of


@pytest.mark.parametrize(
    ("master", "embedded"),
    [("local", True), ("local[2]", True), ("local[*]", True), ("local-cluster[2,1,1024]", True),
     ("spark://host:7077", False), ("yarn", False), ("k8s://https://host", False), ("localhost", False)],
)  # fmt: skip
def test_only_embedded_spark_is_kept_to_loopback(master: str, *, embedded: bool) -> None:
    assert is_embedded(master) is embedded
    assert set(_loopback_settings(master).values()) == ({"127.0.0.1"} if embedded else set())


def test_javas_own_words_are_shown_rather_than_py4js() -> None:
    told = (
        "An error occurred while calling None.x.\n: org.apache.spark.SparkException: Could not parse it\n\tat a.B(c:1)"
    )
    assert reason_of(told) == "org.apache.spark.SparkException: Could not parse it"
    assert reason_of("[JAVA_GATEWAY_EXITED] Java gateway process exited\nmore") == (
        "[JAVA_GATEWAY_EXITED] Java gateway process exited"
    )
    assert reason_of("") == ""
