"""What a preview asks Port, against a local Port over HTTP."""

from __future__ import annotations

from pathlib import Path

from tests.fixtures_localport import LocalPort, local_port

from port_webhook_stack.organisation import look_up
from port_webhook_stack.settings import Settings

__all__ = ["local_port"]

SERVICE = {"identifier": "service", "title": "S", "schema": {"properties": {}}}
ACTION = {
    "identifier": "deploy",
    "trigger": {"type": "self-service", "operation": "CREATE", "userInputs": {"properties": {}}},
    "invocationMethod": {"type": "WEBHOOK", "url": "https://hooks.example.com"},
}


def settings(port: LocalPort | None, **changes: object) -> Settings:
    values = {"client_id": "id", "client_secret": "secret", "base_url": "http://127.0.0.1:9"}
    if port:
        values = {"client_id": port.client_id, "client_secret": port.client_secret, "base_url": port.url}
    return Settings("dev", Path("/project"), Path("/state"), region=None, **{**values, **changes})  # type: ignore[arg-type]


def test_each_kind_is_asked_for_once_and_nothing_is_written(local_port: LocalPort) -> None:
    local_port.api("POST", "/blueprints", SERVICE)
    local_port.api("POST", "/actions", ACTION)
    local_port.api("POST", "/organization/secrets", {"secretName": "TOKEN", "secretValue": "v"})
    local_port.admin("DELETE", "/calls")
    notes: list[str] = []
    found = look_up(settings(local_port), notes.append)
    assert notes == []
    assert found.blueprints is not None
    assert found.blueprints["service"]["title"] == "S"
    assert found.secrets is not None
    assert set(found.secrets) == {"TOKEN"}
    assert found.actions is not None
    assert set(found.actions) == {"deploy"}
    calls = {name: count for name, count in local_port.calls().items() if "access_token" not in name}
    assert calls == {
        "GET /v1/blueprints": 1,
        "GET /v1/organization/secrets": 1,
        "GET /v1/actions": 1,
    }


def test_a_kind_that_is_refused_is_skipped_with_a_note(local_port: LocalPort) -> None:
    fault = {"prefix": "/v1/organization/secrets", "status": 403, "code": "missing_permissions"}
    local_port.admin("PUT", "/faults", {"api": [fault]})
    notes: list[str] = []
    found = look_up(settings(local_port), notes.append)
    assert found.secrets is None
    assert found.blueprints == {}
    assert found.actions == {}
    (note,) = notes
    assert note.startswith("secrets in Port are not checked: Port answered 403 missing_permissions")


def test_an_organisation_that_does_not_answer_stops_no_preview() -> None:
    notes: list[str] = []
    found = look_up(settings(None), notes.append)
    assert (found.blueprints, found.secrets, found.actions) == (None, None, None)
    (note,) = notes
    assert note.startswith("what exists in Port is not checked: http://127.0.0.1:9 cannot be reached")


def test_without_credentials_nothing_is_asked() -> None:
    notes: list[str] = []
    assert look_up(settings(None, client_secret=None), notes.append).actions is None
    assert "set port-webhook:clientId and port-webhook:clientSecret" in notes[0]


def test_wrong_credentials_are_a_note_without_the_secret(local_port: LocalPort) -> None:
    notes: list[str] = []
    found = look_up(settings(local_port, client_secret="planted-secret"), notes.append)
    assert found.actions is None
    assert notes
    assert "planted-secret" not in "".join(notes)
