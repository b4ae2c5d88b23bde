"""A stand-in for Pulumi's provider plugin `kubernetes`, which no package registry carries.

Usage, by the engine: `pulumi-resource-kubernetes <address of the engine>`. Like the real one it applies objects on the
server's side with strict validation, makes an object anew whose name or immutable content changes, waits for
Deployments and for the end of what it deletes, and reads objects back. A warning of the API server is an error here.
Where the real plugin is on PATH, the tests take that.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import grpc
import requests
import yaml
from google.protobuf import empty_pb2
from pulumi.runtime.proto import plugin_pb2, provider_pb2, provider_pb2_grpc
from tests.provider_plugin import serve

from port_webhook_stack.port.wire import Secrets, decode, encode

VERSION = "4.34.2"
AWAIT_SECONDS = 60.0
APPLY = "application/apply-patch+yaml"
Manifest = dict[str, Any]


class RefusedError(Exception):
    """The API server refused an object, warned about it, or it does not become ready."""


class Cluster:
    """The API server of a kubeconfig's context."""

    def __init__(self, kubeconfig: str, context: str) -> None:
        with open(kubeconfig, encoding="utf-8") as stream:
            body = yaml.safe_load(stream)
        wanted = {item["name"]: item["context"] for item in body["contexts"]}[context]
        cluster = {item["name"]: item["cluster"] for item in body["clusters"]}[wanted["cluster"]]
        user = {item["name"]: item["user"] for item in body["users"]}[wanted["user"]]
        self._url = cluster["server"]
        self._verify = cluster["certificate-authority"]
        self._headers = {"Authorization": f"Bearer {user['token']}"}

    def apply(self, manifest: Manifest) -> Manifest:
        query = {"fieldManager": "pulumi-stand-in", "fieldValidation": "Strict"}
        return self._call("PATCH", manifest, query, json.dumps(manifest), APPLY)

    def read(self, manifest: Manifest) -> Manifest | None:
        try:
            return self._call("GET", manifest)
        except FileNotFoundError:
            return None

    def delete(self, manifest: Manifest) -> None:
        query = {"propagationPolicy": "Foreground"}
        try:
            self._call("DELETE", manifest, query)
        except FileNotFoundError:
            return
        self.wait(lambda: self.read(manifest) is None, f"{manifest['metadata']['name']} does not go away")

    def ready(self, manifest: Manifest) -> None:
        if manifest["kind"] != "Deployment":
            return

        def available() -> bool:
            found = self.read(manifest)
            if found is None or found["status"].get("observedGeneration") != found["metadata"]["generation"]:
                return False
            counts = [found["status"].get(f"{word}Replicas", 0) for word in ("updated", "available")]
            return counts == [found["spec"]["replicas"]] * 2 == [found["status"]["replicas"]] * 2

        self.wait(available, f"Deployment {manifest['metadata']['name']} does not become available")

    @staticmethod
    def wait(condition: Any, complaint: str) -> None:
        until = time.monotonic() + AWAIT_SECONDS
        while not condition():
            if time.monotonic() > until:
                raise RefusedError(complaint)
            time.sleep(0.1)

    def _call(
        self,
        method: str,
        manifest: Manifest,
        query: Mapping[str, str] | None = None,
        body: str | None = None,
        kind: str = "application/json",
    ) -> Manifest:
        answer = requests.request(
            method,
            self._url + path_of(manifest),
            params=query,
            data=body,
            headers={**self._headers, "Content-Type": kind},
            verify=self._verify,
            timeout=30,
        )
        if answer.status_code == 404 and method in ("GET", "DELETE"):
            raise FileNotFoundError
        if not answer.ok or "Warning" in answer.headers:
            name = f"{manifest['kind']} {manifest['metadata']['name']}"
            said = answer.headers.get("Warning") or answer.json().get("message", answer.status_code)
            raise RefusedError(f"{name}: {said}")
        parsed: Manifest = answer.json()
        return parsed


def path_of(manifest: Mapping[str, Any]) -> str:
    api, kind = manifest["apiVersion"], manifest["kind"].lower()
    plural = f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}es" if kind.endswith("s") else f"{kind}s"
    namespace = manifest["metadata"].get("namespace")
    place = f"/namespaces/{namespace}" if namespace else ""
    return f"/{'apis' if '/' in api else 'api'}/{api}{place}/{plural}/{manifest['metadata']['name']}"


def drifted(wanted: Any, found: Any) -> Any:
    """What `wanted` says, with the values that `found` has in its place; what it does not say is left out.

    What says nothing (an empty list, false) is not stored.
    """
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {
            key: drifted(value, found.get(key, value))
            for key, value in wanted.items()
            if key in found or not value
        }
    if isinstance(wanted, list) and isinstance(found, list) and len(wanted) == len(found):
        return [drifted(*pair) for pair in zip(wanted, found, strict=True)]
    return found


class Servicer(provider_pb2_grpc.ResourceProviderServicer):
    """See `provider.proto`. It knows no secrets: the engine marks them again itself."""

    cluster: Cluster
    mutable: bool

    def GetPluginInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        return plugin_pb2.PluginInfo(version=VERSION)

    def GetSchema(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.GetSchemaResponse(schema=json.dumps({"name": "kubernetes", "version": VERSION}))

    def CheckConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.CheckResponse(inputs=request.news)

    def DiffConfig(self, request: Any, context: Any) -> Any:  # noqa: N802
        old, new = (decode(part).get("clusterIdentifier") for part in (request.old_inputs, request.news))
        return provider_pb2.DiffResponse(replaces=["clusterIdentifier"] if old != new else [])

    def Configure(self, request: Any, context: Any) -> Any:  # noqa: N802
        given = decode(request.args)
        self.cluster = Cluster(given["kubeconfig"], given["context"])
        self.mutable = given.get("enableSecretMutable") in (True, "true")
        return provider_pb2.ConfigureResponse(supportsPreview=True)

    def Check(self, request: Any, context: Any) -> Any:  # noqa: N802
        return provider_pb2.CheckResponse(inputs=request.news)

    def Diff(self, request: Any, context: Any) -> Any:  # noqa: N802
        old, new = decode(request.old_inputs), decode(request.news)
        changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
        identity = [[part["metadata"].get(key) for key in ("namespace", "name")] for part in (old, new)]
        anew = identity[0] != identity[1]
        content = {"data", "binaryData", "stringData"} & set(changed)
        fixed = bool(old.get("immutable")) or (new["kind"] == "Secret" and not self.mutable)
        response = provider_pb2.DiffResponse
        return response(
            changes=response.DIFF_SOME if changed else response.DIFF_NONE,
            diffs=changed,
            replaces=changed if anew or (content and fixed) else [],
            deleteBeforeReplace=not anew,
        )

    def Create(self, request: Any, context: Any) -> Any:  # noqa: N802
        given = decode(request.properties)
        if not request.preview:
            self._apply(given, context)
        return provider_pb2.CreateResponse(id=identifier(given), properties=request.properties)

    def Update(self, request: Any, context: Any) -> Any:  # noqa: N802
        if not request.preview:
            self._apply(decode(request.news), context)
        return provider_pb2.UpdateResponse(properties=request.news)

    def Read(self, request: Any, context: Any) -> Any:  # noqa: N802
        known = decode(request.properties)
        found = self.cluster.read(known)
        if found is None:
            return provider_pb2.ReadResponse()
        # Texts of a Secret come back in another form.
        given = {key: value for key, value in known.items() if key != "stringData"}
        state = {**known, **drifted(given, found)}
        return provider_pb2.ReadResponse(
            id=request.id, properties=encode(state, Secrets()), inputs=encode(state)
        )

    def Delete(self, request: Any, context: Any) -> Any:  # noqa: N802
        try:
            self.cluster.delete(decode(request.properties))
        except RefusedError as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))
        return empty_pb2.Empty()

    def Cancel(self, request: Any, context: Any) -> Any:  # noqa: N802
        return empty_pb2.Empty()

    def _apply(self, manifest: Manifest, context: Any) -> None:
        try:
            self.cluster.apply(manifest)
            self.cluster.ready(manifest)
        except RefusedError as error:
            context.abort(grpc.StatusCode.UNKNOWN, str(error))


def identifier(manifest: Mapping[str, Any]) -> str:
    namespace = manifest["metadata"].get("namespace")
    name = str(manifest["metadata"]["name"])
    return f"{namespace}/{name}" if namespace else name


if __name__ == "__main__":
    serve(Servicer(), 16)
