"""A real Apache Kafka broker on this machine: one node, KRaft, SASL_SSL with SCRAM-SHA-512 and ACLs.

Clients come over SASL_SSL. Administration and the broker's own traffic have a listener each that asks for the
broker's own certificate, so that no password stands in a file or on a command line: users are made over the first.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.process import ProcessIdentity, spawn_detached, tail
from port_webhook_handlers.runtime.files import write_private
from port_webhook_handlers.runtime.launch import scrubbed_environment
from port_webhook_stack.agent import java

_START_SECONDS: Final = 90.0
_CALL_SECONDS: Final = 20.0
_PRINCIPAL: Final = "CN=local-kafka"
_LISTENERS: Final = ("clients", "admin", "controller")


class KafkaBrokerError(Exception):
    """The broker cannot be started or reached; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class KafkaEndpoint:
    """A broker that runs.

    Attributes:
        brokers: `host:port` for clients.
        ca_file: certificate of its authority.
        pid: process id.
    """

    brokers: str
    ca_file: Path
    pid: int


def ensure_running(home: Path, *, heap: str = "384m") -> KafkaEndpoint:
    """Attaches to the broker of a folder, or starts it and waits until it serves.

    Args:
        home: folder of its data, mode 0700. Certificates and ports are made at the first start and then kept.
        heap: Java's `-Xmx`.

    Raises:
        KafkaBrokerError: no Java, no jars, or the broker does not come up.
    """
    place = _Place(home.absolute())
    place.home.mkdir(parents=True, exist_ok=True, mode=0o700)
    with _locked(place):
        found = status(home)
        if found is not None:
            return found
        _end(place)
        try:
            command = _command(java.java(), java.kafka_jars(), place)
        except java.JavaError as error:
            raise KafkaBrokerError(str(error)) from error
        ports = _prepare(place, command)
        identity = spawn_detached(
            [*command, f"-Xmx{heap}", "kafka.Kafka", str(place.home / "server.properties")],
            log_file=place.log,
            environment=scrubbed_environment(("HOME",)),
            working_directory=place.home,
        )
        record = {"pid": identity.pid, "start_time": identity.start_time}
        write_private(place.process, json.dumps(record).encode())
        _wait(place, identity)
        return KafkaEndpoint(f"127.0.0.1:{ports['clients']}", place.ca, identity.pid)


def status(home: Path) -> KafkaEndpoint | None:
    """The broker of a folder if it runs and accepts connections, else None."""
    place = _Place(home.absolute())
    identity, ports = place.identity(), place.ports()
    if identity is None or not identity.is_alive() or not _listens(ports.get("clients", 0)):
        return None
    return KafkaEndpoint(f"127.0.0.1:{ports['clients']}", place.ca, identity.pid)


def stop(home: Path, *, grace_seconds: float = 15.0) -> bool:
    """Ends the broker; its data stays. Returns whether it was running."""
    place = _Place(home.absolute())
    if not place.home.is_dir():
        return False
    with _locked(place):
        return _end(place, grace_seconds)


def remove(home: Path) -> None:
    """Ends the broker and deletes its data."""
    stop(home)
    shutil.rmtree(home, ignore_errors=True)


def add_user(home: Path, username: str, password: str, *, prefix: str) -> None:
    """Makes a user or changes its password; it may use topics and groups with the prefix, and nothing else.

    Raises:
        KafkaBrokerError: the broker refuses or does not answer.
    """
    from confluent_kafka import admin as kafka

    client = admin(home)
    # The number of rounds that Kafka itself uses at least; the password is random, so more would add nothing.
    info = kafka.ScramCredentialInfo(kafka.ScramMechanism.SCRAM_SHA_512, 4096)
    upsertion = kafka.UserScramCredentialUpsertion(username, info, password.encode())
    _done(client.alter_user_scram_credentials([upsertion]), f"user {username}")
    bindings = [
        kafka.AclBinding(
            kind,
            prefix,
            kafka.ResourcePatternType.PREFIXED,
            f"User:{username}",
            "*",
            operation,
            kafka.AclPermissionType.ALLOW,
        )
        for kind, operations in (
            (
                kafka.ResourceType.TOPIC,
                (kafka.AclOperation.READ, kafka.AclOperation.WRITE, kafka.AclOperation.DESCRIBE),
            ),
            (kafka.ResourceType.GROUP, (kafka.AclOperation.READ, kafka.AclOperation.DESCRIBE)),
        )
        for operation in operations
    ]
    _done(client.create_acls(bindings), f"permissions of {username}")


def add_topics(home: Path, names: Sequence[str], *, partitions: int = 3) -> None:
    """Makes topics; those that exist stay as they are.

    Raises:
        KafkaBrokerError: the broker refuses or does not answer.
    """
    from confluent_kafka import KafkaError, KafkaException
    from confluent_kafka import admin as kafka

    # Futures of a client that is gone fail, so it is kept until they are done.
    client = admin(home)
    futures = client.create_topics([kafka.NewTopic(name, partitions, 1) for name in names])
    for name, future in futures.items():
        try:
            future.result(_CALL_SECONDS)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                raise KafkaBrokerError(f"topic {name}: {error.args[0].str()}") from error


def admin(home: Path) -> Any:
    """An `AdminClient` that may do everything."""
    from confluent_kafka import admin as kafka

    place = _Place(home.absolute())
    return kafka.AdminClient(
        {
            "bootstrap.servers": f"127.0.0.1:{place.ports()['admin']}",
            "security.protocol": "SSL",
            "ssl.ca.location": str(place.ca),
            "ssl.certificate.location": str(place.key),
            "ssl.key.location": str(place.key),
            "log_level": 0,
        }
    )


@dataclass(frozen=True, slots=True)
class _Place:
    home: Path

    @property
    def ca(self) -> Path:
        return self.home / "ca.pem"

    @property
    def key(self) -> Path:
        return self.home / "broker.pem"

    @property
    def log(self) -> Path:
        return self.home / "broker.log"

    @property
    def process(self) -> Path:
        return self.home / "process.json"

    @property
    def ports_file(self) -> Path:
        return self.home / "ports.json"

    def identity(self) -> ProcessIdentity | None:
        try:
            record = json.loads(self.process.read_bytes())
            return ProcessIdentity(record["pid"], record["start_time"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def ports(self) -> dict[str, int]:
        try:
            found = json.loads(self.ports_file.read_bytes())
        except (OSError, ValueError):
            return {}
        return {name: int(found[name]) for name in _LISTENERS} if isinstance(found, dict) else {}


def _command(program: Path, jars: Sequence[Path], place: _Place) -> list[str]:
    return [
        str(program),
        *("-Xms64m", "-XX:+UseSerialGC", "-Xshare:auto", "-Djava.awt.headless=true"),
        f"-Dlog4j2.configurationFile={place.home / 'log4j2.properties'}",
        *("-cp", os.pathsep.join(map(str, jars))),
    ]


def _prepare(place: _Place, command: Sequence[str]) -> dict[str, int]:
    """Writes what is missing: certificates, ports, configuration and a formatted store. Returns the ports."""
    if not place.key.exists():
        _certificates(place)
    ports = place.ports()
    if not ports or any(_listens(port) for port in ports.values()):
        # Taken by somebody else meanwhile: whoever uses the address learns the new one from the next deployment.
        ports = _free_ports()
        write_private(place.ports_file, json.dumps(ports).encode())
    properties = "".join(f"{key}={value}\n" for key, value in _properties(place, ports).items())
    write_private(place.home / "server.properties", properties.encode())
    write_private(place.home / "log4j2.properties", _LOGGING.encode())
    if not (place.home / "data" / "meta.properties").exists():
        # A cluster id must not start with a dash, or the tool takes it for an option.
        cluster = "L" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[:21]
        done = subprocess.run(
            [
                *(*command, "-XX:TieredStopAtLevel=1", "kafka.tools.StorageTool", "format", "--standalone"),
                *("-t", cluster, "-c", str(place.home / "server.properties")),
            ],
            cwd=place.home,
            env=scrubbed_environment(("HOME",)),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise KafkaBrokerError(
                f"the broker's store cannot be made: {(done.stderr or done.stdout)[-500:].strip()}"
            )
    return ports


def _properties(place: _Place, ports: dict[str, int]) -> dict[str, Any]:
    address = "127.0.0.1"
    own = {f"listener.name.{name}.ssl.client.auth": "required" for name in ("admin", "controller")}
    return {
        "process.roles": "broker,controller",
        "node.id": 1,
        "log.dirs": place.home / "data",
        "listeners": ",".join(f"{name.upper()}://{address}:{ports[name]}" for name in _LISTENERS),
        "advertised.listeners": f"CLIENTS://{address}:{ports['clients']},ADMIN://{address}:{ports['admin']}",
        "listener.security.protocol.map": "CLIENTS:SASL_SSL,ADMIN:SSL,CONTROLLER:SSL",
        "controller.listener.names": "CONTROLLER",
        "controller.quorum.bootstrap.servers": f"{address}:{ports['controller']}",
        "inter.broker.listener.name": "ADMIN",
        "listener.name.clients.sasl.enabled.mechanisms": "SCRAM-SHA-512",
        "listener.name.clients.scram-sha-512.sasl.jaas.config": (
            "org.apache.kafka.common.security.scram.ScramLoginModule required;"
        ),
        **own,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": place.key,
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": place.ca,
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:{_PRINCIPAL}",
        "auto.create.topics.enable": "false",
        "num.partitions": 1,
        "log.retention.hours": 168,
        "log.retention.bytes": 256 * 1024 * 1024,
        "offsets.topic.num.partitions": 4,
        "offsets.topic.replication.factor": 1,
        "transaction.state.log.replication.factor": 1,
        "transaction.state.log.min.isr": 1,
        "share.coordinator.state.topic.replication.factor": 1,
        "share.coordinator.state.topic.min.isr": 1,
        "group.initial.rebalance.delay.ms": 0,
        # On one machine an agent that was killed may be noticed soon.
        "group.min.session.timeout.ms": 1000,
        # After a kill the controller waits this long for the broker's former session.
        "broker.session.timeout.ms": 3000,
        "broker.heartbeat.interval.ms": 1000,
    }


_LOGGING: Final = """\
rootLogger.level=WARN
rootLogger.appenderRef.out.ref=OUT
appender.out.type=Console
appender.out.name=OUT
appender.out.layout.type=PatternLayout
appender.out.layout.pattern=%d %p %c{1} %m%n
"""


def _certificates(place: _Place) -> None:
    """An authority, whose key is thrown away, and one certificate of it for the broker."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    start = datetime.datetime.now(datetime.UTC) - datetime.timedelta(hours=1)
    end = start + datetime.timedelta(days=3650)

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("local-kafka-ca"))
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
        )

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca = (
        builder("local-kafka-ca", authority.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(authority, hashes.SHA256())
    )
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        builder("local-kafka", own.public_key())
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_private(place.ca, ca.public_bytes(pem))
    write_private(place.key, private + certificate.public_bytes(pem) + ca.public_bytes(pem))


def _wait(place: _Place, identity: ProcessIdentity) -> None:
    from confluent_kafka import KafkaException

    until = time.monotonic() + _START_SECONDS
    client = admin(place.home)
    while time.monotonic() < until:
        if not identity.is_alive():
            raise KafkaBrokerError(f"the broker ended; the end of its log:\n{tail(place.log)}")
        with contextlib.suppress(KafkaException):
            client.list_topics(timeout=1)
            return
        time.sleep(0.1)
    identity.terminate(grace_seconds=5)
    raise KafkaBrokerError(
        f"the broker did not serve within {_START_SECONDS:g} s; the end of its log:\n{tail(place.log)}"
    )


def _end(place: _Place, grace_seconds: float = 15.0) -> bool:
    identity = place.identity()
    if identity is None:
        return False
    ended = identity.terminate(grace_seconds)
    place.process.unlink(missing_ok=True)
    return ended


def _done(futures: Any, what: str) -> None:
    from confluent_kafka import KafkaException

    for future in futures.values():
        try:
            future.result(_CALL_SECONDS)
        except KafkaException as error:
            raise KafkaBrokerError(f"{what}: {error.args[0].str()}") from error


def _free_ports() -> dict[str, int]:
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(socket.socket()) for name in _LISTENERS}
        for item in sockets.values():
            item.bind(("127.0.0.1", 0))
        return {name: int(item.getsockname()[1]) for name, item in sockets.items()}


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(2)
        return port != 0 and probe.connect_ex(("127.0.0.1", port)) == 0


def new_password() -> str:
    """A random password."""
    return secrets.token_hex(24)


@contextmanager
def _locked(place: _Place) -> Iterator[None]:
    descriptor = os.open(place.home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
