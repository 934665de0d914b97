"""The doctor's judgement of Spark's security settings, which protect mizzle's blocks like all others.

By default anyone who reaches a block manager's port may read and write blocks, and run code. Pure functions.
"""

from __future__ import annotations

from collections.abc import Sequence

from mizzle.cli.verdicts import Conf, Finding, is_loopback

AUTHENTICATE = (
    "spark.authenticate true (YARN and Kubernetes make the secret; elsewhere set spark.authenticate.secret.file)"
)
ENCRYPT = ("spark.network.crypto.enabled true", "spark.network.crypto.authEngineVersion 2",
           "spark.network.crypto.cipher AES/GCM/NoPadding", "spark.network.crypto.saslFallback false")  # fmt: skip
_NAME = "security"


def judge_security(conf: Conf, addresses: Sequence[str]) -> Finding:
    """Who can reach the block managers, and what they would have to know.

    Args:
        conf: the session's settings.
        addresses: where block managers listen; empty when unknown, which counts as everywhere.
    """
    where = ", ".join(sorted(set(addresses))) or "an unknown address"
    if conf("spark.authenticate") == "true":
        return _judge_encryption(conf)
    if addresses and all(is_loopback(address) for address in addresses):
        return Finding(
            _NAME, "ok",
            f"block managers listen on {where} only: other machines are kept out, other users of this one are not",
        )  # fmt: skip
    return Finding(
        _NAME, "warn", f"block managers listen on {where} without authentication: whoever reaches them is let in",
        _lines(AUTHENTICATE, *ENCRYPT) + "; or, for embedded Spark, keep it to this machine: "
        "spark.driver.bindAddress 127.0.0.1, spark.driver.host 127.0.0.1",
    )  # fmt: skip


def _judge_encryption(conf: Conf) -> Finding:
    if conf("spark.ssl.rpc.enabled") == "true":
        return Finding(_NAME, "ok", "authenticated, encrypted by TLS (spark.ssl.rpc)")
    if conf("spark.network.crypto.enabled") != "true":
        return Finding(
            _NAME, "warn", "authenticated, but blocks travel in the clear",
            _lines(*ENCRYPT) + "; or spark.ssl.rpc.enabled true",
        )  # fmt: skip
    weak = [line for line in ENCRYPT if not _is_set(conf, *line.split())]
    if weak:
        return Finding(_NAME, "warn", "authenticated and encrypted, but weaker than Spark can", _lines(*weak))
    return Finding(_NAME, "ok", "authenticated and encrypted (AES/GCM)")


def _is_set(conf: Conf, name: str, value: str) -> bool:
    return (conf(name) or "").lower() == value.lower()


def _lines(*lines: str) -> str:
    return "set " + "; ".join(lines)
