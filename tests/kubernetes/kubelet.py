"""A stand-in for kubelets: executes the containers of Pods as local processes.

Not real here: isolation, images, networks, limits. Real: everything that a Pod sees of its mounts and variables,
the ServiceAccount's token, its log through the API server, its status and termination message, and what the
control plane makes of them.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from tests.kubernetes.control_plane import REPOSITORY, ControlPlane, free_port

from port_webhook_handlers.runtime.kubernetes import names

NODES = ("node-a", "node-b")
HEARTBEAT_SECONDS = 8.0
MERGE = "application/merge-patch+json"
Manifest = dict[str, Any]


def now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


class RunningPod:
    """A Pod as processes of this machine."""

    def __init__(self, manifest: Manifest, folder: Path) -> None:
        self.manifest = manifest
        self.folder = folder
        self.name = manifest["metadata"]["name"]
        self.namespace = manifest["metadata"]["namespace"]
        self.container = manifest["spec"]["containers"][0]
        self.log = folder / "log"
        self.started = now()
        self.port = 0
        self.metrics_port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self.ended = False
        self.ready = False
        self.restarts = 0
        self.reason = ""
        self.terminating = False


class Kubelet:
    """Runs the Pods of two nodes.

    Args:
        plane: the control plane.
        folder: for the Pods' files.

    Attributes:
        behaviour: function of a Pod's manifest. Executed: `run`; `oom`, `evict` and `crash`, whose process is ended
            so. Only played: `image` (cannot be pulled), `ready` (runs), `done` (ends with a result), `died` (without).
        starts: name of each Job to how often one of its Pods was executed.
    """

    def __init__(self, plane: ControlPlane, folder: Path) -> None:
        self.plane = plane
        self.folder = folder
        self.behaviour: Callable[[Manifest], str] = lambda pod: "run"
        self.starts: dict[str, int] = {}
        self.pods: dict[str, RunningPod] = {}
        self._stopped = threading.Event()
        self._lock = threading.Lock()
        self._session = self._new_session()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _logs_of(self))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(plane.folder / "api.crt", plane.folder / "api.key")
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._threads = [
            threading.Thread(target=self._server.serve_forever, daemon=True),
            threading.Thread(target=self._beat, daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]

    def start(self) -> None:
        for node in NODES:
            self.plane.request(
                "POST",
                "/api/v1/nodes",
                {
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}},
                },
            )
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        for pod in list(self.pods.values()):
            self._end(pod, signal.SIGKILL)
        for thread in self._threads:
            thread.join(10)
        self._session.close()

    def pod(self, prefix: str) -> RunningPod | None:
        """The newest executed Pod whose name starts so and that has not ended."""
        found = [
            pod
            for pod in list(self.pods.values())
            if pod.name.startswith(prefix) and not pod.ended and not pod.terminating
        ]
        return found[-1] if found else None

    def kill(self, pod: RunningPod, reason: str = "Error") -> None:
        """Ends a Pod's process as a kernel or an operator would."""
        pod.reason = reason
        self._end(pod, signal.SIGKILL)

    # Nodes

    def _new_session(self) -> requests.Session:
        session = requests.Session()
        session.trust_env = False
        session.verify = str(self.plane.ca)
        session.headers["Authorization"] = f"Bearer {self.plane.token}"
        return session

    def _call(self, method: str, path: str, body: Any = None, kind: str = MERGE) -> Manifest | None:
        """A call whose failure (the API server is down, the Pod is gone) is no reason to stop."""
        try:
            # Sessions are not for several threads at once.
            response = requests.request(
                method,
                self.plane.url + path,
                data=None if body is None else json.dumps(body),
                headers={"Content-Type": kind, "Authorization": f"Bearer {self.plane.token}"},
                verify=str(self.plane.ca),
                timeout=10,
            )
        except requests.RequestException:
            return None
        return response.json() if response.ok else None

    def _beat(self) -> None:
        while True:
            room = {"cpu": "64", "memory": "256Gi", "pods": "500", "ephemeral-storage": "1000Gi"}
            ready = {"type": "Ready", "status": "True", "reason": "Ready", "lastHeartbeatTime": now()}
            status = {
                "capacity": room,
                "allocatable": room,
                "conditions": [{**ready, "lastTransitionTime": now()}],
                "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": self._server.server_address[1]}},
            }
            for node in NODES:
                self._call("PATCH", f"/api/v1/nodes/{node}/status", {"status": status})
            if self._stopped.wait(HEARTBEAT_SECONDS):
                return

    def _watch(self) -> None:
        while not self._stopped.is_set():
            try:
                listed = self._session.get(f"{self.plane.url}/api/v1/pods", timeout=10).json()
                for item in listed["items"]:
                    self._see(item)
                query = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
                with self._session.get(
                    f"{self.plane.url}/api/v1/pods", params=query, stream=True, timeout=(5, 2)
                ) as stream:
                    for line in stream.iter_lines(chunk_size=None):
                        event = json.loads(line)
                        if event["type"] in ("ADDED", "MODIFIED"):
                            self._see(event["object"])
                        if self._stopped.is_set():
                            return
            except (requests.RequestException, ValueError, KeyError):
                self._stopped.wait(0.1)

    # Pods

    def _see(self, manifest: Manifest) -> None:
        uid = manifest["metadata"]["uid"]
        if not manifest["spec"].get("nodeName"):
            return
        pod = self.pods.get(uid)
        if (
            pod is None
            and manifest["status"].get("phase") == "Pending"
            and not manifest["metadata"].get("deletionTimestamp")
        ):
            pod = RunningPod(manifest, self.folder / uid)
            self.pods[uid] = pod
            threading.Thread(target=self._life, args=(pod,), daemon=True).start()
        elif manifest["metadata"].get("deletionTimestamp"):
            if pod is None or pod.ended:
                self._remove(manifest)
            elif not pod.terminating:
                pod.terminating = True
                threading.Thread(target=self._terminate, args=(pod,), daemon=True).start()

    def _life(self, pod: RunningPod) -> None:
        behaviour = self.behaviour(pod.manifest)
        if behaviour == "image":
            waiting = {"reason": "ErrImagePull", "message": "no such image"}
            self._status(pod, "Pending", {"waiting": waiting})
            while not pod.terminating and not self._stopped.wait(0.1):
                pass
            pod.ended = True
            return
        if behaviour == "ready":
            pod.ready = True
            self._status(pod, "Running", {"running": {"startedAt": pod.started}})
            while not pod.terminating and not self._stopped.wait(0.1):
                pass
            pod.ended = True
            return
        if behaviour in ("done", "died"):
            self._play(pod, behaviour)
            return
        if not self._mount(pod):
            pod.ended = True
            return
        always = pod.manifest["spec"].get("restartPolicy", "Always") == "Always"
        job = pod.manifest["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name")
        while True:
            with self._lock:
                if job is not None:
                    self.starts[job] = self.starts.get(job, 0) + 1
            self._execute(pod)
            self._status(pod, "Running", {"running": {"startedAt": now()}})
            if behaviour in ("oom", "evict", "crash"):
                self.kill(pod, {"oom": "OOMKilled", "evict": "Evicted", "crash": "Error"}[behaviour])
            code = self._attend(pod)
            if not always or pod.terminating or self._stopped.is_set():
                break
            pod.restarts += 1
            pod.ready = False
        if self._stopped.is_set():
            return
        code = 128 - code if code < 0 else code
        path = pod.folder / "termination"
        ended = {
            "exitCode": code,
            "reason": pod.reason or ("Completed" if code == 0 else "Error"),
            "message": path.read_text(errors="replace")[:4096] if path.exists() else "",
            "startedAt": pod.started,
            "finishedAt": now(),
        }
        pod.ended = True
        further = (
            {"reason": "Evicted", "message": "The node was low on memory."} if pod.reason == "Evicted" else {}
        )
        self._status(pod, "Succeeded" if code == 0 else "Failed", {"terminated": ended}, further)

    def _play(self, pod: RunningPod, behaviour: str) -> None:
        """A Job's Pod that takes a moment and leaves what `job` would leave."""
        pod.folder.mkdir(parents=True)
        pod.log.write_text('{"end":0}\n')
        with self._lock:
            job = pod.manifest["metadata"]["labels"]["batch.kubernetes.io/job-name"]
            self.starts[job] = self.starts.get(job, 0) + 1
        self._status(pod, "Running", {"running": {"startedAt": pod.started}})
        self._stopped.wait(0.2)
        well = behaviour == "done"
        ended = {
            "exitCode": 0 if well else 137,
            "reason": "Completed" if well else "Error",
            "message": '{"status":"SUCCESS","summary":"played"}' if well else "",
            "startedAt": pod.started,
            "finishedAt": now(),
        }
        pod.ended = True
        self._status(pod, "Succeeded" if well else "Failed", {"terminated": ended})

    def _attend(self, pod: RunningPod) -> int:
        """Waits for the end of a Pod's process; makes it ready as its readiness probe says."""
        assert pod.process is not None
        probe = pod.container.get("readinessProbe", {}).get("httpGet")
        while True:
            try:
                return pod.process.wait(0.1 if probe and not pod.ready else 1.0)
            except subprocess.TimeoutExpired:
                if self._stopped.is_set():
                    return pod.process.wait()
            if probe and not pod.ready:
                port = pod.port if probe["port"] == "http" else pod.metrics_port
                try:
                    pod.ready = requests.get(f"http://127.0.0.1:{port}{probe['path']}", timeout=2).ok
                except requests.RequestException:
                    continue
                if pod.ready:
                    self._status(pod, "Running", {"running": {"startedAt": pod.started}})

    def _execute(self, pod: RunningPod) -> None:
        pod.port, pod.metrics_port = free_port(), free_port()
        spec, metadata = pod.manifest["spec"], pod.manifest["metadata"]
        environment = {
            "PATH": os.environ["PATH"],
            "KUBERNETES_SERVICE_HOST": "127.0.0.1",
            "KUBERNETES_SERVICE_PORT": str(self.plane.port),
            "PORT_WEBHOOK_ROOT": str(pod.folder),
            "PORT_WEBHOOK_SERVICE_ACCOUNT": str(pod.folder / "account"),
            "PORT_WEBHOOK_TERMINATION_LOG": str(pod.folder / "termination"),
            "PORT_WEBHOOK_PORT": str(pod.port),
            "PORT_WEBHOOK_METRICS_PORT": str(pod.metrics_port),
        }
        for item in pod.container.get("env", ()):
            field = item.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath", "")
            if field == "metadata.name":
                environment[item["name"]] = metadata["name"]
            elif field.startswith("metadata.annotations["):
                environment[item["name"]] = metadata.get("annotations", {}).get(field[22:-2], "")
            else:
                # Where a container has its mounts, a process of this machine has a folder.
                value = item.get("value", "").replace(f"{names.ROOT}/", f"{pod.folder}/")
                environment[item["name"]] = value
        if "AGENT_HEALTH_PORT" in environment:
            environment["AGENT_HEALTH_PORT"] = str(pod.metrics_port)
        if spec.get("automountServiceAccountToken"):
            folder = pod.folder / "account"
            folder.mkdir(exist_ok=True)
            shutil.copy(self.plane.ca, folder / "ca.crt")
            token = self.plane.account_token(pod.namespace, spec["serviceAccountName"])
            (folder / "token").write_text(token)
        shutil.rmtree(pod.folder / "work", ignore_errors=True)
        (pod.folder / "work").mkdir()
        python, *flags, boot, role = pod.container["command"]
        assert (python, boot) == ("/opt/venv/bin/python", "/opt/port-webhook/boot.py")
        with pod.log.open("ab") as log:
            pod.process = subprocess.Popen(
                [sys.executable, *flags, str(REPOSITORY / "images" / "runtime" / "boot.py"), role],
                env=environment,
                cwd=pod.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def refresh(self, pod: RunningPod) -> None:
        """Brings a Pod's Secrets up to date; a kubelet does so by itself, within about a minute."""
        for volume in pod.manifest["spec"]["volumes"]:
            if "secret" in volume:
                path = f"/api/v1/namespaces/{pod.namespace}/secrets/{volume['secret']['secretName']}"
                found = self._call("GET", path) or {"kind": "Secret"}
                for old in (pod.folder / volume["name"]).iterdir():
                    if old.name not in found.get("data", {}):
                        old.unlink()
                self._write(pod.folder / volume["name"], found)

    def _mount(self, pod: RunningPod) -> bool:
        """Writes a Pod's volumes; False if it went away while one was missing."""
        pod.folder.mkdir(parents=True)
        base = f"/api/v1/namespaces/{pod.namespace}"
        for volume in pod.manifest["spec"]["volumes"]:
            sources = volume.get("projected", {}).get("sources", [volume])
            (pod.folder / volume["name"]).mkdir()
            for source in sources:
                if "secret" in source:
                    path = f"{base}/secrets/{source['secret']['secretName']}"
                elif "configMap" in source:
                    path = f"{base}/configmaps/{source['configMap']['name']}"
                else:
                    continue
                found = self._call("GET", path)
                # As a kubelet: a volume that is not there yet is waited for.
                while found is None and not source.get("secret", {}).get("optional"):
                    if pod.terminating or self._stopped.wait(0.1):
                        return False
                    found = self._call("GET", path)
                if found is not None:
                    self._write(pod.folder / volume["name"], found)
        return True

    @staticmethod
    def _write(target: Path, found: Manifest) -> None:
        plain = found.get("data", {}) if found["kind"] == "ConfigMap" else {}
        encoded = found.get("data", {}) if found["kind"] == "Secret" else found.get("binaryData", {})
        content = {key: value.encode() for key, value in plain.items()}
        content |= {key: base64.b64decode(value) for key, value in encoded.items()}
        for key, value in content.items():
            temporary = target / f".{key}"
            temporary.write_bytes(value)
            temporary.replace(target / key)

    def _status(self, pod: RunningPod, phase: str, state: Manifest, further: Manifest | None = None) -> None:
        running = "running" in state
        ready = running and (pod.ready or "readinessProbe" not in pod.container)
        condition = {"status": "True" if ready else "False", "lastTransitionTime": now()}
        status = {
            "phase": phase,
            "startTime": pod.started,
            # Nobody connects there, and loopback would be refused in EndpointSlices.
            "podIP": "192.0.2.1",
            "podIPs": [{"ip": "192.0.2.1"}],
            "conditions": [
                {"type": "Initialized", "status": "True", "lastTransitionTime": now()},
                {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()},
                *({"type": kind, **condition} for kind in ("ContainersReady", "Ready")),
            ],
            "containerStatuses": [
                {
                    "name": pod.container["name"],
                    "image": pod.container["image"],
                    "imageID": "",
                    "ready": ready,
                    "started": running,
                    "restartCount": pod.restarts,
                    "state": state,
                }
            ],
            **(further or {}),
        }
        path = f"/api/v1/namespaces/{pod.namespace}/pods/{pod.name}/status"
        uid = pod.manifest["metadata"]["uid"]
        # While the API server is down a kubelet keeps what it knows and says it later.
        for _ in range(120):
            body = {"metadata": {"uid": uid}, "status": status}
            if self._call("PATCH", path, body) is not None or self._stopped.wait(0.25):
                return
            if pod.terminating and self._call("GET", path) is None:
                return

    def _terminate(self, pod: RunningPod) -> None:
        if pod.process is not None and pod.process.poll() is None:
            grace = pod.manifest["spec"].get("terminationGracePeriodSeconds", 30)
            self._end(pod, signal.SIGTERM)
            try:
                pod.process.wait(grace)
            except subprocess.TimeoutExpired:
                self._end(pod, signal.SIGKILL)
        until = time.monotonic() + 10
        while not pod.ended and time.monotonic() < until:
            time.sleep(0.05)
        self._remove(pod.manifest)

    def _remove(self, manifest: Manifest) -> None:
        metadata = manifest["metadata"]
        path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}"
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": metadata["uid"]}}
        self._call("DELETE", path, body, "application/json")

    @staticmethod
    def _end(pod: RunningPod, number: signal.Signals) -> None:
        if pod.process is None or pod.process.poll() is not None:
            return
        try:
            if number == signal.SIGKILL:
                os.killpg(pod.process.pid, number)
            else:
                pod.process.send_signal(number)
        except ProcessLookupError:
            pass


def _logs_of(kubelet: Kubelet) -> type[BaseHTTPRequestHandler]:
    """What the API server asks for a Pod's log."""

    class Logs(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts = urlsplit(self.path)
            _, kind, namespace, name, _ = parts.path.split("/")
            pods = [p for p in list(kubelet.pods.values()) if (p.namespace, p.name) == (namespace, name)]
            if kind != "containerLogs" or not pods or not pods[-1].log.exists():
                self.send_error(404)
                return
            pod = pods[-1]
            self.send_response(200)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            try:
                with pod.log.open("rb") as log:
                    while True:
                        over = pod.ended or pod.terminating or "follow=true" not in parts.query
                        data = log.read()
                        if data:
                            self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                            self.wfile.flush()
                        elif over:
                            break
                        else:
                            time.sleep(0.02)
                self.wfile.write(b"0\r\n\r\n")
            except OSError:
                self.close_connection = True

        def log_message(self, *arguments: Any) -> None:
            pass

    return Logs
