from __future__ import annotations

import pytest

from mizzle.config import Security
from mizzle.errors import ConfigError
from mizzle.spark.security import check_security, judge_security
from mizzle.spark.session import open_settings

STRONG = {
    "spark.authenticate": "true",
    "spark.network.crypto.enabled": "true",
    "spark.network.crypto.authEngineVersion": "2",
    "spark.network.crypto.cipher": "AES/GCM/NoPadding",
    "spark.network.crypto.saslFallback": "false",
}


@pytest.mark.parametrize("addresses", [["0.0.0.0"], ["127.0.0.1", "10.0.0.5"], ["::"], []])  # noqa: S104 - not bound
def test_an_open_block_manager_without_authentication_is_warned_of_with_the_lines_to_set(addresses: list[str]) -> None:
    found = judge_security(lambda _: None, addresses)
    assert not found.is_enough
    assert all(address in found.seen for address in addresses)
    for name, value in STRONG.items():
        assert f"{name} {value}" in found.remedy


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["127.0.1.1", "::1"]])
def test_a_block_manager_on_loopback_is_fine_but_other_users_are_mentioned(addresses: list[str]) -> None:
    found = judge_security(lambda _: None, addresses)
    assert found.is_enough
    assert "other users" in found.seen


def test_authentication_without_encryption_is_warned_of() -> None:
    found = judge_security({"spark.authenticate": "true"}.get, ["10.0.0.5"])
    assert not found.is_enough
    assert "spark.network.crypto.enabled true" in found.remedy
    assert "spark.ssl.rpc.enabled true" in found.remedy


def test_tls_or_strong_crypto_is_fine() -> None:
    assert judge_security(STRONG.get, ["10.0.0.5"]).is_enough
    tls = {"spark.authenticate": "true", "spark.ssl.rpc.enabled": "true", "spark.ssl.rpc.trustStore": "/k"}
    assert judge_security(tls.get, ["10.0.0.5"]).is_enough
    assert judge_security(tls.get, ["10.0.0.5"]).remedy == ""


def test_tls_that_believes_every_certificate_is_not_enough_nor_is_tls_without_authentication() -> None:
    tls = {"spark.authenticate": "true", "spark.ssl.rpc.enabled": "true"}
    found = judge_security(tls.get, ["10.0.0.5"])
    assert not found.is_enough
    assert "spark.ssl.rpc.trustStore" in found.remedy
    alone = judge_security({"spark.ssl.rpc.enabled": "true", "spark.ssl.rpc.trustStore": "/k"}.get, ["10.0.0.5"])
    assert not alone.is_enough
    assert "spark.authenticate true" in alone.remedy


@pytest.mark.parametrize("name", ["authEngineVersion", "cipher", "saslFallback"])
def test_a_weak_default_is_named_alone(name: str) -> None:
    left_out = f"spark.network.crypto.{name}"
    found = judge_security({key: value for key, value in STRONG.items() if key != left_out}.get, ["10.0.0.5"])
    assert not found.is_enough
    assert found.remedy == f"set {left_out} {STRONG[left_out]}"


class Driver:
    """As much of a driver's half as is asked."""

    def __init__(self, *addresses: str) -> None:
        self._addresses, self._asked = list(addresses), 0

    def listens(self) -> list[str]:
        return self._addresses

    def is_first_warning(self) -> bool:
        self._asked += 1
        return self._asked == 1


class Context:
    """A session with these settings."""

    def __init__(self, **settings: str) -> None:
        self._settings = settings

    def getConf(self) -> dict[str, str]:  # noqa: N802 - Spark's name
        return self._settings


def check(driver: Driver, security: Security, **settings: str) -> None:
    check_security(Context(**settings), driver, security)  # type: ignore[arg-type]


def test_auto_warns_once_and_loudly(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver("127.0.0.1", "10.0.0.5")
    for _ in range(3):
        check(driver, "auto")
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "NOT SECURE: block managers listen on 10.0.0.5, 127.0.0.1" in record.getMessage()
    assert all(f"{name} {value}" in record.getMessage() for name, value in STRONG.items())


def test_required_refuses_every_time_and_names_the_lines_to_set(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver("10.0.0.5")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r'security is "required", but .*10\.0\.0\.5') as caught:
            check(driver, "required")
        assert all(f"{name} {value}" in str(caught.value) for name, value in STRONG.items())
    with pytest.raises(ConfigError, match="unknown address"):
        check(Driver(), "required")
    assert not caplog.records


@pytest.mark.parametrize("security", ["auto", "required"])
def test_nothing_is_said_where_the_blocks_are_protected(caplog: pytest.LogCaptureFixture, security: Security) -> None:
    check(Driver("127.0.0.1"), security)
    check(Driver("10.0.0.5"), security, **STRONG)
    assert not caplog.records


def test_what_is_secret_stands_on_no_command_line() -> None:
    secret = {"spark.authenticate.secret": "x", "spark.ssl.rpc.keyStorePassword": "y", "spark.hadoop.fs.token": "z"}
    assert open_settings(STRONG | secret) == STRONG
