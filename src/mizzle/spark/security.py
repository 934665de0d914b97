"""Is Spark set up so that only those who may can reach the blocks? One judgement, for `mizzle doctor` and every run.

By default anyone who reaches a block manager's port may read and write blocks, and run code. mizzle's blocks are
protected by Spark's own settings, like all others (``docs/security.md``).
"""

from __future__ import annotations

import ipaddress
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyspark import SparkContext

from mizzle.config import Security
from mizzle.errors import ConfigError
from mizzle.spark.driver import DriverSide

_log = logging.getLogger(__name__)

AUTHENTICATE = "spark.authenticate true (YARN and Kubernetes make the secret; elsewhere set spark.authenticate.secret)"
ENCRYPT = ("spark.network.crypto.enabled true", "spark.network.crypto.authEngineVersion 2",
           "spark.network.crypto.cipher AES/GCM/NoPadding", "spark.network.crypto.saslFallback false")  # fmt: skip
TRUST = "spark.ssl.rpc.trustStore PATH (and trustStorePassword), with the certificates of your executors' authority"

Conf = Callable[[str], str | None]
"""A setting of the session by name, None where it is not set."""


@dataclass(frozen=True, slots=True)
class Protection:
    """What keeps strangers from the blocks.

    Attributes:
        is_enough: whether somebody else in the network can neither read nor change nor add one.
        seen: what was found.
        remedy: what to set; empty when it is enough.
    """

    is_enough: bool
    seen: str
    remedy: str = ""


def judge_security(conf: Conf, addresses: Sequence[str]) -> Protection:
    """Who can reach the block managers, and what they would have to know.

    Args:
        conf: the session's settings.
        addresses: where block managers listen; empty when unknown, which counts as everywhere.
    """
    where = ", ".join(sorted(set(addresses))) or "an unknown address"
    if conf("spark.authenticate") == "true":
        return _judge_encryption(conf)
    if addresses and all(ipaddress.ip_address(address).is_loopback for address in addresses):
        seen = f"block managers listen on {where} only: other machines are kept out, other users of this one are not"
        return Protection(is_enough=True, seen=seen)
    return Protection(
        is_enough=False,
        seen=f"block managers listen on {where} without authentication: whoever reaches them is let in",
        remedy=_lines(AUTHENTICATE, *ENCRYPT) + "; or, for embedded Spark, keep it to this machine: "
        "spark.driver.bindAddress 127.0.0.1, spark.driver.host 127.0.0.1",
    )


def _judge_encryption(conf: Conf) -> Protection:
    if conf("spark.ssl.rpc.enabled") == "true":
        if conf("spark.ssl.rpc.trustStore") or conf("spark.ssl.trustStore"):
            return Protection(is_enough=True, seen="authenticated, encrypted by TLS (spark.ssl.rpc)")
        seen = "authenticated, encrypted by TLS, but without a trust store Spark believes every certificate"
        return Protection(is_enough=False, seen=seen, remedy=_lines(TRUST))
    if conf("spark.network.crypto.enabled") != "true":
        return Protection(
            is_enough=False,
            seen="authenticated, but blocks travel in the clear",
            remedy=_lines(*ENCRYPT) + "; or spark.ssl.rpc.enabled true, with spark.ssl.rpc.keyStore and trustStore",
        )
    weak = [line for line in ENCRYPT if not _is_set(conf, *line.split())]
    if weak:
        seen = "authenticated and encrypted, but weaker than Spark can"
        return Protection(is_enough=False, seen=seen, remedy=_lines(*weak))
    return Protection(is_enough=True, seen="authenticated and encrypted (AES/GCM)")


def _is_set(conf: Conf, name: str, value: str) -> bool:
    return (conf(name) or "").lower() == value.lower()


def _lines(*lines: str) -> str:
    return "set " + "; ".join(lines)


def protection_of(context: SparkContext, driver: DriverSide) -> Protection:
    """The judgement on a running application: its settings, its driver, and the executors that have reported."""
    return judge_security(context.getConf().get, driver.listens())


def check_security(context: SparkContext, driver: DriverSide, security: Security) -> None:
    """Let a run begin, or go on with the executors that there are now. Starts nothing and waits for nothing.

    Args:
        context: the driver's Spark context.
        driver: its half of the plugin.
        security: "auto" warns once in an application, "required" refuses.

    Raises:
        ConfigError: with "required", when the blocks are not protected; names the lines to set.
    """
    found = protection_of(context, driver)
    if found.is_enough:
        return
    if security == "required":
        raise ConfigError(f'security is "required", but {found.seen}. Start the session anew and {found.remedy}')
    if driver.is_first_warning():
        # Python shows a warning on stderr also when nobody has configured logging.
        _log.warning(
            'mizzle: NOT SECURE: %s. To change it, %s. RunConfig(security="required") refuses to run like this',
            found.seen, found.remedy,
        )  # fmt: skip
