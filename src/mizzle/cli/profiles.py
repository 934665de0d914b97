"""Spark's settings for authenticated and encrypted blocks, complete, for one embedded cluster: to measure their price.

Not for a cluster of several hosts, whose secret and certificates must be given to all of them: ``docs/security.md``.
"""

from __future__ import annotations

import secrets
import shutil
import subprocess
from pathlib import Path
from typing import Literal

from mizzle.cli.java import find_java
from mizzle.errors import ConfigError
from mizzle.spark.security import ENCRYPT

Profile = Literal["none", "gcm", "tls"]


def secure_conf(profile: Profile, directory: Path) -> dict[str, str]:
    """The settings of a profile.

    Args:
        profile: "none": Spark's defaults; "gcm": authentication and AES/GCM; "tls": authentication, and TLS 1.3 with a
            key and a certificate of its own.
        directory: where the key is kept; nobody else should be able to read it.

    Raises:
        ConfigError: TLS needs keytool, which comes with Java.
    """
    if profile == "none":
        return {}
    conf = {"spark.authenticate": "true", "spark.authenticate.secret": secrets.token_hex(32)}
    if profile == "gcm":
        return conf | dict(_pair(line) for line in ENCRYPT)
    password, store = secrets.token_hex(16), directory / "mizzle.p12"
    _make_key(store, password)
    conf |= {"spark.ssl.rpc.enabled": "true", "spark.ssl.rpc.protocol": "TLSv1.3"}
    for kind in ("keyStore", "trustStore"):
        conf |= {f"spark.ssl.rpc.{kind}": str(store), f"spark.ssl.rpc.{kind}Type": "PKCS12",
                 f"spark.ssl.rpc.{kind}Password": password}  # fmt: skip
    return conf | {"spark.ssl.rpc.keyPassword": password}


def _pair(line: str) -> tuple[str, str]:
    name, _, value = line.partition(" ")
    return name, value


def _make_key(store: Path, password: str) -> None:
    java = find_java().command
    beside = Path(java).with_name("keytool") if java else None
    keytool = str(beside) if beside is not None and beside.is_file() else shutil.which("keytool")
    if keytool is None:
        raise ConfigError("TLS needs keytool, which was not found: install a JRE, or put its bin directory on the PATH")
    done = subprocess.run(  # noqa: S603 - Java's own tool, fixed arguments
        [keytool, "-genkeypair", "-alias", "mizzle", "-keyalg", "EC", "-dname", "CN=mizzle", "-validity", "30",
         "-storetype", "PKCS12", "-keystore", str(store), "-storepass:env", "MIZZLE_STORE_PASSWORD"],
        env={"MIZZLE_STORE_PASSWORD": password}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if done.returncode:
        raise ConfigError(f"keytool made no key: {done.stdout.strip() or done.stderr.strip()}")
