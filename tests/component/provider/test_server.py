"""The plugin's process, spoken to as the engine does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import pytest
from google.protobuf import empty_pb2  # type: ignore[import-untyped]
from pulumi.runtime.proto import errors_pb2, provider_pb2, provider_pb2_grpc, status_pb2  # noqa: F401
from tests.component.provider.fake_port import CLIENT_ID, CLIENT_SECRET, Call, FakePort, Reply, error, running

from port_webhook_localport import control
from port_webhook_stack.port.handler import UNKNOWN, Properties
from port_webhook_stack.port.provider import REGISTRY
from port_webhook_stack.port.wire import Secrets, decode, encode

PROVIDER = "urn:pulumi:test::project::pulumi:providers:port-webhook::default"
ACTION: dict[str, Any] = {
    "identifier": "deploy",
    "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}},
    "invocationMethod": {
        "type": "WEBHOOK",
        "url": "https://hooks.example.com",
        "headers": {"Auth": "s3cr3t-value"},
    },
}


def urn(token: str, name: str = "x") -> str:
    return f"urn:pulumi:test::project::parent:type$port-webhook:{token}::{name}"


class Plugin:
    """One plugin process and its client."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        script = Path(sys.executable).parent / "pulumi-resource-port-webhook"
        clean = {key: value for key, value in os.environ.items() if not key.startswith("PORT_")}
        self.process = subprocess.Popen(
            [str(script), "127.0.0.1:9"],
            cwd=folder,
            env={**clean, **environment},
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.process.stdout is not None
        port = int(self.process.stdout.readline())
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.stub = provider_pb2_grpc.ResourceProviderStub(self._channel)

    def close(self) -> None:
        self._channel.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def configure(self, **inputs: str) -> Properties:
        """Check and configure, and return the checked inputs."""
        checked = self.stub.CheckConfig(provider_pb2.CheckRequest(urn=PROVIDER, news=encode(inputs)))
        assert not checked.failures
        self.stub.Configure(provider_pb2.ConfigureRequest(urn=PROVIDER, args=checked.inputs))
        return decode(checked.inputs)

    def create(
        self, token: str, inputs: Properties, secrets: Secrets | None = None, preview: bool = False
    ) -> Any:
        return self.stub.Create(
            provider_pb2.CreateRequest(urn=urn(token), properties=encode(inputs, secrets), preview=preview)
        )


@contextmanager
def plugin_in(folder: Path, **environment: str) -> Iterator[Plugin]:
    plugin = Plugin(folder, environment)
    try:
        yield plugin
    finally:
        plugin.close()


@pytest.fixture
def port() -> Iterator[FakePort]:
    with running() as fake:
        yield fake


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    with plugin_in(tmp_path_factory.mktemp("project")) as started:
        yield started


@pytest.fixture
def plugin(process: Plugin, port: FakePort) -> Plugin:
    process.configure(baseUrl=port.url, clientId=CLIENT_ID, clientSecret=CLIENT_SECRET)
    return process


@pytest.fixture
def own_plugin(tmp_path: Path, port: FakePort) -> Iterator[Plugin]:
    """A process that a test may spoil."""
    with plugin_in(tmp_path) as started:
        started.configure(baseUrl=port.url, clientId=CLIENT_ID, clientSecret=CLIENT_SECRET)
        yield started


def eventually(condition: Any) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_schema_names_every_resource_type(plugin: Plugin) -> None:
    schema = json.loads(plugin.stub.GetSchema(provider_pb2.GetSchemaRequest()).schema)
    assert schema["name"] == "port-webhook"
    assert set(schema["resources"]) >= set(REGISTRY)
    assert schema["config"]["variables"]["clientSecret"]["secret"] is True
    action = schema["resources"]["port-webhook:index:Action"]
    assert action["requiredInputs"] == ["identifier", "trigger", "invocationMethod"]
    assert plugin.stub.GetPluginInfo(empty_pb2.Empty()).version == schema["version"]


def test_the_client_secret_is_marked_secret_whatever_its_source(plugin: Plugin, port: FakePort) -> None:
    given = {"baseUrl": port.url, "clientId": CLIENT_ID, "clientSecret": CLIENT_SECRET}
    checked = plugin.stub.CheckConfig(provider_pb2.CheckRequest(urn=PROVIDER, news=encode(given)))
    secrets = Secrets()
    decode(checked.inputs, secrets)
    assert secrets.paths == {("clientSecret",)}


def test_secrets_stay_secret_at_their_path_only(plugin: Plugin) -> None:
    path = ("invocationMethod", "headers", "Auth")
    secrets = Secrets()
    secrets.add(path, "s3cr3t-value")
    checked = plugin.stub.Check(
        provider_pb2.CheckRequest(urn=urn("index:Action"), news=encode(ACTION, secrets))
    )
    created = plugin.create("index:Action", ACTION, secrets)
    read = plugin.stub.Read(
        provider_pb2.ReadRequest(
            id="deploy", urn=urn("index:Action"), properties=created.properties, inputs=checked.inputs
        )
    )
    for struct in (checked.inputs, created.properties, read.properties, read.inputs):
        found = Secrets()
        decode(struct, found)
        assert found.paths == {path}


def test_values_that_must_be_secret_are_marked_unasked(plugin: Plugin) -> None:
    created = plugin.create("index:Secret", {"secretName": "TOKEN", "secretValue": "s3cr3t-value"})
    secrets = Secrets()
    decode(created.properties, secrets)
    assert secrets.paths == {("secretValue",)}


def test_integers_and_unknown_values_survive(plugin: Plugin, port: FakePort) -> None:
    body = {**ACTION, "invocationMethod": {"type": "WEBHOOK", "url": "https://x", "body": {"n": 3, "f": 0.5}}}
    plugin.create("index:Action", body)
    sent = port.body_of("POST /v1/actions")["invocationMethod"]["body"]
    assert (type(sent["n"]), sent) == (int, {"n": 3, "f": 0.5})

    unknown = {**ACTION, "invocationMethod": {"type": "WEBHOOK", "url": UNKNOWN}}
    checked = plugin.stub.Check(provider_pb2.CheckRequest(urn=urn("index:Action"), news=encode(unknown)))
    assert not checked.failures
    assert decode(checked.inputs) == unknown
    outputs = decode(plugin.create("index:Action", unknown, preview=True).properties)
    assert outputs == {**unknown, "adopted": UNKNOWN}


def test_inputs_of_any_type_are_checked_for_typing_errors_and_lost_digits(plugin: Plugin) -> None:
    method = {**ACTION["invocationMethod"], "body": {"n": 2**60}}
    news = {**ACTION, "titel": "x", "invocationMethod": method}
    checked = plugin.stub.Check(provider_pb2.CheckRequest(urn=urn("index:Action"), news=encode(news)))
    found = {failure.property: failure.reason for failure in checked.failures}
    assert "did you mean title?" in found["titel"]
    assert "write it as a string" in found["invocationMethod.body.n"]


def test_differences_are_named_by_path_and_marked_for_replacement(plugin: Plugin) -> None:
    olds = {
        "identifier": "a",
        "title": "A",
        "schema": {"properties": {"t": {"type": "string"}}},
        "adopted": False,
    }
    news = {"identifier": "b", "title": "A", "schema": {"properties": {"t": {"type": "number"}}}}
    request = provider_pb2.DiffRequest(
        id="a", urn=urn("index:Blueprint"), olds=encode(olds), news=encode(news)
    )
    diff = plugin.stub.Diff(request)
    assert diff.changes == provider_pb2.DiffResponse.DIFF_SOME
    assert dict(diff.detailedDiff) == {
        "identifier": provider_pb2.PropertyDiff(
            kind=provider_pb2.PropertyDiff.UPDATE_REPLACE, inputDiff=True
        ),
        "schema.properties.t.type": provider_pb2.PropertyDiff(
            kind=provider_pb2.PropertyDiff.UPDATE, inputDiff=True
        ),
    }
    assert (list(diff.replaces), list(diff.diffs)) == (["identifier"], ["identifier", "schema"])
    request = provider_pb2.DiffRequest(
        id="a", urn=urn("index:Blueprint"), olds=encode(olds), news=encode(olds)
    )
    assert plugin.stub.Diff(request).changes == provider_pb2.DiffResponse.DIFF_NONE


def test_the_provider_is_replaced_only_for_another_port(plugin: Plugin, port: FakePort) -> None:
    olds = {"baseUrl": port.url, "clientId": CLIENT_ID, "clientSecret": "a", "organization": "org_1"}

    def diff(**change: str) -> Any:
        return plugin.stub.DiffConfig(
            provider_pb2.DiffRequest(urn=PROVIDER, olds=encode(olds), news=encode({**olds, **change}))
        )

    assert list(diff(baseUrl="https://api.getport.io").replaces) == ["baseUrl"]
    assert list(diff(clientSecret="b").replaces) == []
    # Left to the engine: if told that there are changes, it would only update the provider.
    assert diff(baseUrl="https://api.getport.io").changes == provider_pb2.DiffResponse.DIFF_UNKNOWN


def test_errors_are_one_line_without_secrets(plugin: Plugin, port: FakePort) -> None:
    secrets = Secrets()
    secrets.add(("invocationMethod", "headers"), {"Auth": "s3cr3t-value"})
    port.on("POST /v1/actions", error(422, "invalid_request", "header s3cr3t-value is not allowed"))
    with pytest.raises(grpc.RpcError) as failed:
        plugin.create("index:Action", ACTION, secrets)
    assert failed.value.code() == grpc.StatusCode.FAILED_PRECONDITION
    text = failed.value.details()
    assert "header [secret] is not allowed" in text
    assert "\n" not in text

    with pytest.raises(grpc.RpcError) as failed:
        plugin.create("index:Aktion", ACTION)
    assert "did you mean port-webhook:index:Action?" in failed.value.details()

    # A body that no handler expects: still one line, and the traceback only in the engine's log.
    with pytest.raises(grpc.RpcError) as failed:
        plugin.create("index:Entity", {})
    assert "internal error of the provider: KeyError" in failed.value.details()
    assert "Traceback" not in failed.value.details()


def test_slow_calls_do_not_wait_for_each_other(plugin: Plugin, port: FakePort) -> None:
    def slow(call: Call) -> Reply | None:
        time.sleep(0.3)
        return None

    port.on("POST /v1/actions", *[slow] * 16)
    bodies = [{**ACTION, "identifier": f"a{number}"} for number in range(16)]
    with ThreadPoolExecutor(16) as pool:
        started = time.monotonic()
        list(pool.map(lambda body: plugin.create("index:Action", body), bodies))
    # One after the other they would take 4.8 s.
    assert time.monotonic() - started < 3
    assert port.tokens == 1


def test_cancel_ends_waits(own_plugin: Plugin, port: FakePort) -> None:
    port.on("POST /v1/actions", Reply(429, {"ok": False, "error": "rate_limited"}, {"Retry-After": "100"}))
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(own_plugin.create, "index:Action", ACTION)
        eventually(lambda: "POST /v1/actions" in port.calls_of())
        own_plugin.stub.Cancel(empty_pb2.Empty())
        with pytest.raises(grpc.RpcError) as failed:
            waiting.result(timeout=10)
    assert "cancelled" in failed.value.details()


def test_it_ends_on_the_signal_of_the_engine(own_plugin: Plugin) -> None:
    own_plugin.process.send_signal(signal.SIGINT)
    assert own_plugin.process.wait(timeout=10) == 0


def test_it_ends_with_the_engine(tmp_path: Path) -> None:
    # The engine's place is taken by a shell that is killed.
    script = Path(sys.executable).parent / "pulumi-resource-port-webhook"
    engine = subprocess.Popen(
        ["/bin/sh", "-c", f"{script} 127.0.0.1:9 & echo $!; wait"], stdout=subprocess.PIPE, cwd=tmp_path
    )
    assert engine.stdout is not None
    pid = int(engine.stdout.readline())
    engine.stdout.readline()  # its port: it serves
    engine.kill()
    engine.wait()
    ended = threading.Event()

    def watch() -> None:
        engine.stdout.read()  # type: ignore[union-attr]
        ended.set()

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        assert ended.wait(10)
    finally:
        if not ended.is_set():
            os.kill(pid, signal.SIGKILL)
        thread.join()
        engine.stdout.close()


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """The folder of a local Port that does not outlive a failed test."""
    folder = tmp_path / ".state" / "test" / "localport"
    yield folder
    control.stop(folder)


def test_a_local_port_starts_with_the_configuration_and_ends_with_its_resource(
    tmp_path: Path, home: Path
) -> None:
    with plugin_in(tmp_path) as plugin:
        inputs = plugin.configure(region="local")
        endpoint = control.ensure_running(home)
        assert inputs == {"region": "local", "stateDir": ".state/test", "clientId": endpoint.client_id}
        created = plugin.create("local:LocalPort", {})
        secrets = Secrets()
        outputs = decode(created.properties, secrets)
        assert outputs == {"clientId": endpoint.client_id, "clientSecret": endpoint.client_secret}
        assert secrets.paths == {("clientSecret",)}
        assert plugin.create("index:Action", ACTION).id == "deploy"

    local_port = provider_pb2.DeleteRequest(
        id=created.id, urn=urn("local:LocalPort"), properties=created.properties
    )
    # Another operation, on the configuration of a local Port that was removed since: its objects are gone, and
    # its successor is left alone.
    with plugin_in(tmp_path) as plugin:
        stale = encode({**inputs, "clientId": "of-a-removed-one"})
        plugin.stub.Configure(provider_pb2.ConfigureRequest(urn=PROVIDER, args=stale))
        read = provider_pb2.ReadRequest(id="deploy", urn=urn("index:Action"), properties=encode(ACTION))
        assert plugin.stub.Read(read).id == ""
        plugin.stub.Delete(local_port)
        assert home.exists()

        plugin.stub.Configure(provider_pb2.ConfigureRequest(urn=PROVIDER, args=encode(inputs)))
        assert plugin.stub.Read(read).id == "deploy"
        plugin.stub.Delete(local_port)
        assert not home.exists()
