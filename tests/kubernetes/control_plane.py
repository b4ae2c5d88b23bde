"""A real control plane on loopback: etcd, kube-apiserver, kube-controller-manager and kube-scheduler."""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import requests
import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
START_SECONDS = 60.0
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")


def binaries() -> tuple[Path, list[str]]:
    """Folder of the control plane's binaries, and which of them are missing."""
    spec = importlib.util.spec_from_file_location("build", REPOSITORY / "tools" / "kubernetes" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    folder: Path = build.folder()
    return folder, build.missing(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class ControlPlane:
    """The processes and an administrator's session.

    Attributes:
        url: of the API server.
        ca: file of its certificate authority.
        kubeconfig: file for other clients.
        session: requests as an administrator.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin, _ = binaries()
        self.port = free_port()
        self.url = f"https://127.0.0.1:{self.port}"
        self.ca = folder / "ca.crt"
        self.kubeconfig = folder / "kubeconfig"
        self.token = secrets.token_hex(16)
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = str(self.ca)
        self.session.headers["Authorization"] = f"Bearer {self.token}"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._etcd_ports = (free_port(), free_port())
        self._write_files()

    def start(self) -> None:
        self.start_etcd()
        self.start_api_server()
        self._spawn(
            "kube-controller-manager",
            *("--kubeconfig", self.kubeconfig, "--leader-elect=false", "--bind-address=127.0.0.1"),
            f"--secure-port={free_port()}",
            *("--authentication-kubeconfig", self.kubeconfig, "--authorization-kubeconfig", self.kubeconfig),
            *("--service-account-private-key-file=sa.key", "--root-ca-file=ca.crt"),
            "--use-service-account-credentials=false",
            # The tests wait for what controllers do; their default pace is for clusters of thousands of nodes.
            *("--kube-api-qps=200", "--kube-api-burst=400", "--concurrent-job-syncs=20"),
        )
        configuration = {
            "apiVersion": "kubescheduler.config.k8s.io/v1",
            "kind": "KubeSchedulerConfiguration",
            "clientConnection": {"kubeconfig": str(self.kubeconfig), "qps": 200, "burst": 400},
            "leaderElection": {"leaderElect": False},
        }
        (self.folder / "scheduler.yaml").write_text(yaml.safe_dump(configuration))
        self._spawn(
            "kube-scheduler",
            *("--config=scheduler.yaml", "--bind-address=127.0.0.1", f"--secure-port={free_port()}"),
            *("--authentication-kubeconfig", self.kubeconfig, "--authorization-kubeconfig", self.kubeconfig),
        )

    def start_etcd(self) -> None:
        client, peer = (f"http://127.0.0.1:{port}" for port in self._etcd_ports)
        self._spawn(
            "etcd",
            *("--data-dir", self.folder / "etcd", "--unsafe-no-fsync", "--log-level=error"),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            f"--initial-cluster=default={peer}",
        )
        self._wait("etcd", lambda: requests.get(f"{client}/health", timeout=2).ok)

    def start_api_server(self) -> None:
        self._spawn(
            "kube-apiserver",
            *(f"--etcd-servers=http://127.0.0.1:{self._etcd_ports[0]}", "--bind-address=127.0.0.1"),
            *(
                f"--secure-port={self.port}",
                "--advertise-address=127.0.0.1",
                "--endpoint-reconciler-type=none",
            ),
            *("--tls-cert-file=api.crt", "--tls-private-key-file=api.key", "--client-ca-file=ca.crt"),
            *("--token-auth-file=tokens.csv", "--authorization-mode=RBAC", "--anonymous-auth=false"),
            *("--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file=sa.pub"),
            *("--service-account-signing-key-file=sa.key", "--service-cluster-ip-range=10.0.0.0/24"),
            *("--allow-privileged=true", "--profiling=false"),
        )
        self._wait("kube-apiserver", lambda: self.session.get(f"{self.url}/readyz", timeout=2).ok)

    def kill(self, name: str) -> None:
        """SIGKILL, as when a machine fails."""
        process = self._processes.pop(name)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for name, process in reversed(list(self._processes.items())):
            process.send_signal(signal.SIGTERM if name != "kube-apiserver" else signal.SIGKILL)
        for process in self._processes.values():
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
        self.session.close()

    def request(
        self, method: str, path: str, body: Any = None, *, kind: str = "application/json", **query: str
    ) -> dict[str, Any]:
        """A call as administrator that must succeed; a warning of the API server fails the test."""
        response = self.session.request(
            method,
            self.url + path,
            data=None if body is None else json.dumps(body),
            headers={"Content-Type": kind},
            params=query,
            timeout=30,
        )
        assert response.ok, f"{method} {path}: {response.status_code} {response.text[:2000]}"
        assert "Warning" not in response.headers, f"{method} {path}: {response.headers['Warning']}"
        parsed: dict[str, Any] = response.json()
        return parsed

    def apply(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Creates an object, or replaces it, with strict validation."""
        collection = self.collection(manifest)
        name = manifest["metadata"]["name"]
        if self.session.get(f"{self.url}{collection}/{name}", timeout=10).status_code == 404:
            return self.request("POST", collection, manifest, fieldValidation="Strict")
        return self.request(
            "PATCH",
            f"{collection}/{name}",
            manifest,
            kind="application/merge-patch+json",
            fieldValidation="Strict",
        )

    @staticmethod
    def collection(manifest: Mapping[str, Any]) -> str:
        """Path of the objects of a manifest's kind."""
        api, kind = manifest["apiVersion"], manifest["kind"].lower()
        plural = (
            f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}es" if kind.endswith("s") else f"{kind}s"
        )
        base = f"/api/{api}" if "/" not in api else f"/apis/{api}"
        namespace = manifest["metadata"].get("namespace")
        return f"{base}/namespaces/{namespace}/{plural}" if namespace else f"{base}/{plural}"

    @contextmanager
    def account(self, namespace: str, name: str) -> Iterator[requests.Session]:
        """A session as a ServiceAccount."""
        with requests.Session() as session:
            session.trust_env = False
            session.verify = str(self.ca)
            session.headers["Authorization"] = f"Bearer {self.account_token(namespace, name)}"
            yield session

    def account_token(self, namespace: str, name: str) -> str:
        """A real token of a ServiceAccount."""
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {"expirationSeconds": 3600},
        }
        path = f"/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token"
        return str(self.request("POST", path, body)["status"]["token"])

    def _spawn(self, name: str, *arguments: object) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [str(self.bin / name), *map(str, arguments)],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "GOMAXPROCS": "2"},
            )

    def _wait(self, name: str, ready: Any) -> None:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until:
            if self._processes[name].poll() is not None:
                break
            try:
                if ready():
                    return
            except requests.RequestException:
                pass
            time.sleep(0.05)
        log = (self.folder / f"{name}.log").read_text(errors="replace").splitlines()[-5:]
        raise AssertionError(f"{name} does not start:\n" + "\n".join(log))

    def _write_files(self) -> None:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import rsa

        key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        certificates(self.folder)
        (self.folder / "sa.key").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.TraditionalOpenSSL,
                serialization.NoEncryption(),
            )
        )
        (self.folder / "sa.pub").write_bytes(
            key.public_key().public_bytes(
                serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
            )
        )
        (self.folder / "tokens.csv").write_text(f'{self.token},admin,1,"system:masters"\n')
        cluster = {"server": self.url, "certificate-authority": str(self.ca)}
        self.kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "apiVersion": "v1",
                    "kind": "Config",
                    "current-context": "test",
                    "clusters": [{"name": "test", "cluster": cluster}],
                    "users": [{"name": "admin", "user": {"token": self.token}}],
                    "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
                }
            )
        )


def certificates(folder: Path) -> None:
    """A certificate authority, and a certificate of loopback: ca.crt, api.crt, api.key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    def name(text: str) -> x509.Name:
        return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])

    def builder(subject: str, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.now(UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(name(subject))
            .issuer_name(name("test-ca"))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + timedelta(days=7))
        )

    authority, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    usage = x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    root = (
        builder("test-ca", authority)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .sign(authority, hashes.SHA256())
    )
    names = x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(IPv4Address("127.0.0.1"))])
    leaf = (
        builder("kube-apiserver", key).add_extension(names, critical=False).sign(authority, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "ca.crt").write_bytes(root.public_bytes(pem))
    (folder / "api.crt").write_bytes(leaf.public_bytes(pem))
    (folder / "api.key").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption())
    )
