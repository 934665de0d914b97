from __future__ import annotations

import pytest

from mizzle.spark.security import judge_security

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
    assert found.is_enough is False
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
    assert found.is_enough is False
    assert "spark.network.crypto.enabled true" in found.remedy
    assert "spark.ssl.rpc.enabled true" in found.remedy


def test_tls_or_strong_crypto_is_fine() -> None:
    assert judge_security(STRONG.get, ["10.0.0.5"]).is_enough
    tls = {"spark.authenticate": "true", "spark.ssl.rpc.enabled": "true"}
    assert judge_security(tls.get, ["10.0.0.5"]).is_enough


@pytest.mark.parametrize("name", ["authEngineVersion", "cipher", "saslFallback"])
def test_a_weak_default_is_named_alone(name: str) -> None:
    left_out = f"spark.network.crypto.{name}"
    found = judge_security({key: value for key, value in STRONG.items() if key != left_out}.get, ["10.0.0.5"])
    assert found.is_enough is False
    assert found.remedy == f"set {left_out} {STRONG[left_out]}"
