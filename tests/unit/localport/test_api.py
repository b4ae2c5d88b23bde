"""Guards, tokens, organisation, secrets, blueprints, entities, actions."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
import requests
from tests.fixtures_localport import LocalPort, eventually
from tests.unit.localport.definitions import action, automation, blueprint, with_service

URL = "http://127.0.0.1:9/hook"


def test_every_reply_has_trace_id_and_rate_limit(local_port: LocalPort) -> None:
    for path in ("/v1/actions", "/v1/absent", "/_local/health"):
        headers = local_port.request("GET", path).headers
        assert headers["x-trace-id"]
        for name in ("limit", "remaining", "period", "reset"):
            assert headers[f"x-ratelimit-{name}"]


def test_health_needs_no_token_and_tells_only_nonce_and_version(local_port: LocalPort) -> None:
    reply = requests.get(local_port.url + "/_local/health", timeout=5).json()
    assert set(reply) == {"ok", "nonce", "version"}


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"Host": "evil.example"}, "forbidden_host"),
        ({"Host": "127.0.0.1:1"}, "forbidden_host"),
        ({"Origin": "https://evil.example"}, "forbidden_origin"),
        ({"Origin": "null"}, "forbidden_origin"),
    ],
)
def test_other_hosts_and_origins_are_refused(
    local_port: LocalPort, headers: dict[str, str], error: str
) -> None:
    reply = requests.get(local_port.url + "/_local/health", headers=headers, timeout=5)
    assert (reply.status_code, reply.json()["error"]) == (403, error)


def test_own_origin_and_localhost_are_accepted(local_port: LocalPort) -> None:
    own = local_port.url.replace("127.0.0.1", "localhost")
    headers = {"Origin": own, "Host": own.removeprefix("http://")}
    assert requests.get(local_port.url + "/_local/health", headers=headers, timeout=5).ok


@pytest.mark.parametrize("authorization", ["", "Bearer ", "Bearer wrong", "Basic abc", "Bearer \xff"])
def test_a_bearer_token_is_needed(local_port: LocalPort, authorization: str) -> None:
    headers = {"Authorization": authorization.encode("latin-1")}
    for path in ("/v1/actions", "/v1/absent", "/_local/calls"):
        reply = requests.get(local_port.url + path, headers=headers, timeout=5)
        assert (reply.status_code, reply.json()["error"]) == (401, "unauthorized")


def test_the_admin_token_and_the_access_token_are_not_exchangeable(local_port: LocalPort) -> None:
    admin = {"Authorization": f"Bearer {local_port.endpoint.admin_token}"}
    assert requests.get(local_port.url + "/v1/actions", headers=admin, timeout=5).status_code == 401
    assert local_port.request("GET", "/_local/calls").status_code == 401


def authenticate(port: LocalPort, **changes: Any) -> requests.Response:
    body = {"clientId": port.client_id, "clientSecret": port.client_secret, **changes}
    return requests.post(port.url + "/v1/auth/access_token", json=body, timeout=5)


def test_one_token_until_it_expires(local_port: LocalPort) -> None:
    local_port.admin("PUT", "/settings", {"tokenLifetimeSeconds": 2.2})
    first = authenticate(local_port).json()
    assert (first["tokenType"], first["ok"]) == ("Bearer", True)
    assert authenticate(local_port).json()["accessToken"] == first["accessToken"]
    assert first["expiresIn"] <= 3
    claims = first["accessToken"].split(".")[1]
    payload = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    assert payload["isMachine"] is True
    headers = {"Authorization": f"Bearer {first['accessToken']}"}
    assert requests.get(local_port.url + "/v1/actions", headers=headers, timeout=5).ok
    eventually(lambda: authenticate(local_port).json()["accessToken"] != first["accessToken"], 5)
    eventually(
        lambda: requests.get(local_port.url + "/v1/actions", headers=headers, timeout=5).status_code == 401, 5
    )


def test_expires_in_counts_down(local_port: LocalPort) -> None:
    local_port.admin("PUT", "/settings", {"tokenLifetimeSeconds": 100})
    first = authenticate(local_port).json()["expiresIn"]
    eventually(lambda: authenticate(local_port).json()["expiresIn"] < first, 3)


def test_wrong_credentials_and_extra_keys(local_port: LocalPort) -> None:
    assert authenticate(local_port, clientSecret="wrong").status_code == 401
    reply = authenticate(local_port, extra=1)
    assert (reply.status_code, reply.json()["error"]) == (422, "invalid_request")
    assert "extra" in reply.json()["message"]


def test_bodies(local_port: LocalPort) -> None:
    big = b'"' + b"x" * (1024 * 1024) + b'"'
    assert local_port.error("POST", "/actions", data=big) == (413, "bad_request")
    assert local_port.error("POST", "/actions", data=iter([big])) == (413, "bad_request")
    for body in (b"{", b"NaN", b"1e999", b'"\\ud800"', b"\xff", b"[" * 100_000):
        assert local_port.error("POST", "/actions", data=body) == (400, "bad_request")
    assert local_port.error("POST", "/actions", data=b"") == (422, "invalid_request")
    assert local_port.error("POST", "/actions", data=b"[]") == (422, "invalid_request")


def test_unknown_routes_are_named(local_port: LocalPort) -> None:
    reply = local_port.request("GET", "/v1/scorecards")
    assert (reply.status_code, reply.json()["error"]) == (501, "not_supported")
    assert "GET /v1/scorecards" in reply.json()["message"]
    assert local_port.error("PATCH", "/actions/x", {}) == (404, "not_found")
    with_service(local_port)
    assert local_port.error("POST", "/blueprints/service/entities/bulk", {}) == (501, "not_supported")
    assert local_port.error("GET", "/kafka-credentials") == (501, "not_supported")
    local_port.admin("PUT", "/kafka", {"brokers": ["b:9196"], "username": "u", "password": "p"})
    assert local_port.api("GET", "/kafka-credentials")["credentials"]["brokers"] == ["b:9196"]


def test_organization(local_port: LocalPort) -> None:
    organization = local_port.api("GET", "/organization")["organization"]
    assert organization["id"].startswith("org_")
    assert local_port.api("PATCH", "/organization", {"settings": {"portAgentStreamerName": "POLLING"}}) == {
        "ok": True
    }
    changed = local_port.api("GET", "/organization")["organization"]
    assert changed["settings"] == {"portAgentStreamerName": "POLLING"}
    assert changed["id"] == organization["id"]
    assert local_port.error("PATCH", "/organization", {"color": "red"}) == (422, "invalid_request")


def test_secrets_never_come_back(local_port: LocalPort) -> None:
    created = local_port.request(
        "POST", "/v1/organization/secrets", {"secretName": "TOKEN", "secretValue": "v4lue"}
    )
    assert created.json()["secret"].keys() == {"secretName", "description", "createdAt", "updatedAt"}
    assert local_port.error("POST", "/organization/secrets", {"secretName": "TOKEN", "secretValue": "x"}) == (
        409,
        "identifier_taken",
    )
    for path in ("/organization/secrets", "/organization/secrets/TOKEN"):
        assert "v4lue" not in json.dumps(local_port.api("GET", path))
    changed = local_port.api("PATCH", "/organization/secrets/TOKEN", {"description": "d"})["secret"]
    assert changed["description"] == "d"
    assert local_port.error("PATCH", "/organization/secrets/TOKEN", {"secretName": "B"}) == (
        422,
        "invalid_request",
    )
    for name in ("", "a b", "x" * 101):
        body = {"secretName": name, "secretValue": "x"}
        assert local_port.error("POST", "/organization/secrets", body) == (422, "invalid_request")
    local_port.api("DELETE", "/organization/secrets/TOKEN")
    assert local_port.error("GET", "/organization/secrets/TOKEN") == (404, "not_found")


def test_secrets_are_not_readable_on_disk(own_local_port: LocalPort) -> None:
    own_local_port.api(
        "POST", "/organization/secrets", {"secretName": "TOKEN", "secretValue": "v4lue-on-disk"}
    )
    for file in own_local_port.home.iterdir():
        assert b"v4lue-on-disk" not in file.read_bytes(), file


# --- blueprints and entities --------------------------------------------------------------------------


def test_blueprint_life(local_port: LocalPort) -> None:
    created = local_port.request("POST", "/v1/blueprints", blueprint(description="d", oddity=1))
    assert created.status_code == 201
    assert created.json()["blueprint"]["oddity"] == 1
    assert created.json()["blueprint"]["createdBy"]
    assert local_port.error("POST", "/blueprints", blueprint()) == (409, "identifier_taken")
    replaced = local_port.api("PUT", "/blueprints/service", blueprint())["blueprint"]
    assert "description" not in replaced
    assert "oddity" not in replaced
    patched = local_port.api("PATCH", "/blueprints/service", {"title": "T"})["blueprint"]
    assert (patched["title"], patched["schema"]) == ("T", blueprint()["schema"])
    assert [item["identifier"] for item in local_port.api("GET", "/blueprints")["blueprints"]] == ["service"]
    local_port.api("DELETE", "/blueprints/service")
    reply = local_port.request("GET", "/v1/blueprints/service")
    assert reply.status_code == 404
    assert reply.json()["details"] == {
        "resource": "Blueprint",
        "byField": "identifier",
        "withValue": "service",
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"identifier": "a b"},
        {"identifier": ".."},
        {"identifier": "x" * 101},
        {"title": "x" * 101},
        {"schema": {}},
        {"schema": {"properties": {"a": {"type": "text"}}}},
        {"schema": {"properties": {}, "required": ["a"]}},
        {"schema": {"properties": {"a": {"type": "string", "pattern": "("}}}},
        {"schema": {"properties": {"a": {"type": "string", "minLength": "x"}}}},
        {"schema": {"properties": {"a": {"type": "array", "items": {"type": "string", "pattern": "("}}}}},
        {"relations": {"r": {"target": "service"}}},
    ],
)
def test_blueprints_that_are_refused(local_port: LocalPort, changes: dict[str, Any]) -> None:
    assert local_port.error("POST", "/blueprints", {**blueprint(), **changes}) == (422, "invalid_request")


def test_relation_targets_must_exist_and_hold_their_blueprint(local_port: LocalPort) -> None:
    relation = {"target": "service", "required": False, "many": False}
    deployment = blueprint("deployment", relations={"service": relation})
    assert local_port.error("POST", "/blueprints", deployment) == (404, "not_found")
    local_port.api("POST", "/blueprints", blueprint())
    local_port.api("POST", "/blueprints", deployment)
    assert local_port.error("DELETE", "/blueprints/service") == (409, "has_dependents")
    local_port.api("DELETE", "/blueprints/deployment")
    local_port.api("DELETE", "/blueprints/service")


def test_blueprints_with_entities_or_actions_are_kept(local_port: LocalPort) -> None:
    with_service(local_port, "a", "b")
    assert local_port.error("DELETE", "/blueprints/service") == (409, "has_dependents")
    local_port.api("POST", "/actions", action("x", URL, trigger={"blueprintIdentifier": "service"}))
    migration = local_port.api("DELETE", "/blueprints/service/all-entities")["migrationId"]
    assert local_port.api("GET", f"/migrations/{migration}")["migration"]["status"] == "COMPLETED"
    assert local_port.error("DELETE", "/blueprints/service") == (409, "has_dependents")
    local_port.api("DELETE", "/blueprints/service", params={"delete_actions": "true"})
    assert local_port.api("GET", "/actions")["actions"] == []


def test_entities_and_blueprint_go_together_on_request(local_port: LocalPort) -> None:
    with_service(local_port, "a")
    local_port.api("DELETE", "/blueprints/service/all-entities", params={"delete_blueprint": "true"})
    assert local_port.error("GET", "/blueprints/service") == (404, "not_found")


def test_entity_upsert_and_merge(local_port: LocalPort) -> None:
    with_service(local_port)
    path = "/blueprints/service/entities"
    body = {"identifier": "a/b", "properties": {"tier": "gold", "replicas": 1}}
    assert local_port.request("POST", "/v1" + path, body).status_code == 201
    assert local_port.error("POST", path, body) == (409, "identifier_taken")
    change = {"identifier": "a/b", "properties": {"replicas": 2}}
    merged = local_port.request("POST", "/v1" + path, change, params={"upsert": "true", "merge": "true"})
    assert merged.status_code == 200
    assert merged.json()["entity"]["properties"] == {"tier": "gold", "replicas": 2}
    overwritten = local_port.api("POST", path, change, params={"upsert": "true"})["entity"]
    assert overwritten["properties"] == {"replicas": 2}
    one = path + "/a%2Fb"
    assert local_port.api("GET", one)["entity"] == overwritten
    assert local_port.api("PATCH", one, {"title": "T"})["entity"]["properties"] == {"replicas": 2}
    assert local_port.api("PUT", one, {"properties": {}})["entity"]["title"] == "a/b"
    local_port.api("DELETE", one)
    assert local_port.error("GET", one) == (404, "not_found")
    assert local_port.error("PATCH", one, {}) == (404, "not_found")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ({"properties": {"tier": "tin"}}, (422, "blueprint_schema_mismatch")),
        ({"properties": {"replicas": "1"}}, (422, "blueprint_schema_mismatch")),
        ({"properties": {"unknown": 1}}, (422, "blueprint_schema_mismatch")),
        ({"relations": {"unknown": "a"}}, (422, "blueprint_schema_mismatch")),
        ({"identifier": "a b"}, (422, "invalid_request")),
        ({"colour": "red"}, (422, "invalid_request")),
    ],
)
def test_entities_that_do_not_fit(
    local_port: LocalPort, body: dict[str, Any], error: tuple[int, str]
) -> None:
    with_service(local_port)
    path = "/blueprints/service/entities"
    assert local_port.error("POST", path, {"identifier": "a", **body}) == error
    assert local_port.api("GET", path)["entities"] == []


def test_validation_only_stores_nothing(local_port: LocalPort) -> None:
    with_service(local_port)
    path = "/blueprints/service/entities"
    local_port.api("POST", path, {"identifier": "a"}, params={"validation_only": "true"})
    assert local_port.api("GET", path)["entities"] == []
    assert local_port.error("POST", path, {"identifier": "a"}, params={"upsert": "yes"}) == (
        422,
        "invalid_request",
    )


def test_relations_of_entities(local_port: LocalPort) -> None:
    with_service(local_port, "a")
    relations = {
        "service": {"target": "service", "required": True, "many": False},
        "others": {"target": "service", "required": False, "many": True},
    }
    local_port.api("POST", "/blueprints", blueprint("deployment", relations=relations))
    path = "/blueprints/deployment/entities"

    def refused(**values: Any) -> tuple[int, str]:
        return local_port.error("POST", path, {"identifier": "d", "relations": values})

    assert refused() == (422, "required_relation")
    assert refused(service="absent") == (404, "not_found")
    assert refused(service=["a"]) == (422, "relation_many_violation")
    assert refused(service="a", others="a") == (422, "relation_many_violation")
    created = local_port.api(
        "POST",
        path,
        {"identifier": "d", "relations": {"service": "a", "others": ["new"]}},
        params={"create_missing_related_entities": "true"},
    )["entity"]
    assert created["relations"] == {"service": "a", "others": ["new"]}
    assert local_port.api("GET", "/blueprints/service/entities/new")
    assert local_port.error("DELETE", "/blueprints/service/entities/a") == (403, "required_relation")
    assert local_port.api("GET", "/blueprints/service/entities/a")
    local_port.api("DELETE", "/blueprints/service/entities/new")
    assert local_port.api("GET", path + "/d")["entity"]["relations"] == {"service": "a", "others": []}
    local_port.api("DELETE", "/blueprints/service/entities/a", params={"delete_dependents": "true"})
    assert local_port.api("GET", path)["entities"] == []


def test_searches(local_port: LocalPort) -> None:
    with_service(local_port, "a", "b", "c", tier="gold")
    rules = {"combinator": "and", "rules": [{"property": "$identifier", "operator": "!=", "value": "b"}]}
    found = local_port.api("POST", "/entities/search", rules)["entities"]
    assert [item["identifier"] for item in found] == ["a", "c"]
    path = "/blueprints/service/entities/search"
    page = local_port.api("POST", path, {"query": rules, "limit": 1})
    assert [item["identifier"] for item in page["entities"]] == ["a"]
    rest = local_port.api("POST", path, {"query": rules, "limit": 1, "from": page["next"]})
    assert [item["identifier"] for item in rest["entities"]] == ["c"]
    assert "next" not in rest


def test_mirror_and_calculation_properties(local_port: LocalPort) -> None:
    with_service(local_port, "a", tier="gold")
    relation = {"target": "service", "required": False, "many": False}
    model = blueprint(
        "deployment",
        relations={"service": relation, "all": {**relation, "many": True}},
        mirrorProperties={
            "tier_of": {"path": "service.tier"},
            "names": {"path": "all.$title"},
            "absent": {"path": "service.nothing"},
        },
        calculationProperties={
            "twice": {"type": "number", "calculation": ".properties.replicas * 2"},
            "shout": {"type": "string", "calculation": ".properties.tier_of | ascii_upcase"},
            "broken": {"type": "string", "calculation": "nonsense("},
        },
    )
    local_port.api("POST", "/blueprints", model)
    path = "/blueprints/deployment/entities"
    body = {"identifier": "d", "properties": {"replicas": 2}, "relations": {"service": "a", "all": ["a"]}}
    wanted = {
        "replicas": 2, "tier_of": "gold", "names": ["a"], "absent": None, "twice": 4, "shout": "GOLD",
        "broken": None,
    }  # fmt: skip
    assert local_port.api("POST", path, body)["entity"]["properties"] == wanted
    assert local_port.api("GET", path + "/d")["entity"]["properties"] == wanted
    plain = local_port.api("GET", path + "/d", params={"exclude_calculated_properties": "true"})["entity"]
    assert plain["properties"] == {"replicas": 2}
    rules = {"rules": [{"property": "shout", "operator": "=", "value": "GOLD"}]}
    assert len(local_port.api("POST", "/entities/search", rules)["entities"]) == 1
    assert local_port.error("PATCH", path + "/d", {"properties": {"twice": 1}}) == (
        422,
        "blueprint_schema_mismatch",
    )


# --- actions ------------------------------------------------------------------------------------------


def test_action_life(local_port: LocalPort) -> None:
    document = action("x", URL, title="X")
    created = local_port.api("POST", "/actions", document)["action"]
    added = {"id", "createdAt", "createdBy", "updatedAt", "updatedBy"}
    assert {key: value for key, value in created.items() if key not in added} == document
    assert created["id"].startswith("action_")
    assert local_port.api("GET", "/actions/x")["action"] == created
    assert local_port.error("POST", "/actions", document) == (409, "identifier_taken")
    replaced = local_port.api("PUT", "/actions/x", action("x", URL))["action"]
    assert "title" not in replaced
    assert replaced["id"] == created["id"]
    local_port.api("DELETE", "/actions/x")
    for method in ("GET", "DELETE"):
        assert local_port.error(method, "/actions/x") == (404, "not_found")
    assert local_port.error("PUT", "/actions/x", document) == (404, "not_found")


def test_renaming_keeps_runs_and_permissions(local_port: LocalPort) -> None:
    local_port.api("POST", "/actions", action("x", URL))
    local_port.api("POST", "/actions", action("y", URL))
    run = local_port.execute("x")
    assert local_port.error("PUT", "/actions/x", action("y", URL)) == (409, "identifier_taken")
    local_port.api("PUT", "/actions/x", action("z", URL))
    assert local_port.error("GET", "/actions/x") == (404, "not_found")
    assert local_port.run(run)["action"]["identifier"] == "z"
    local_port.api("DELETE", "/actions/z")
    assert local_port.run(run)["action"]["deleted"] is True


@pytest.mark.parametrize(
    "document",
    [
        action("x", URL, colour="red"),
        action("a b", URL),
        action("x", URL, trigger={"operation": "MERGE"}),
        action("x", URL, trigger={"extra": 1}),
        action("x", URL, trigger={"userInputs": {"properties": {}, "extra": 1}}),
        action("x", URL, trigger={"userInputs": {"properties": {}, "order": [], "steps": []}}),
        action("x", URL, trigger={"userInputs": {"properties": {"a b": {"type": "string"}}}}),
        action("x", URL, trigger={"actionCardButtonText": " a"}),
        action("x", URL, method={"timeout": 3}),
        action("x", URL, method={"agent": "true"}),
        action("x", URL, method={"type": "TELEGRAM"}),
        automation("x", URL, {"type": "ENTITY_CREATED"}),
        automation("x", URL, {"type": "ENTITY_RENAMED", "blueprintIdentifier": "b"}),
        automation("x", URL, {"type": "RUN_CREATED", "actionIdentifier": "a", "blueprintIdentifier": "b"}),
        automation(
            "x", URL, {"type": "RUN_CREATED", "actionIdentifier": "a"}, trigger={"condition": {"type": "JQ"}}
        ),
    ],
)
def test_documents_with_unknown_or_wrong_keys(local_port: LocalPort, document: dict[str, Any]) -> None:
    assert local_port.error("POST", "/actions", document) == (422, "invalid_request")


@pytest.mark.parametrize(
    "user_inputs",
    [
        {"properties": {}, "required": ["a"]},
        {"properties": {}, "order": ["a"]},
        {"properties": {"a": {"type": "string", "pattern": "("}}},
        {"properties": {"a": {"type": "array", "items": {"type": "text"}}}},
        {"properties": {"a": {"type": "number", "encryption": "aes256-gcm"}}},
        {"properties": {"a": {"type": "string", "encryption": {"algorithm": "client-side", "key": "x"}}}},
    ],
)
def test_forms_that_cannot_work(local_port: LocalPort, user_inputs: dict[str, Any]) -> None:
    document = action("x", URL, trigger={"userInputs": user_inputs})
    assert local_port.error("POST", "/actions", document) == (422, "user_inputs_schema_invalid")


def test_an_action_needs_its_blueprint(local_port: LocalPort) -> None:
    document = action("x", URL, trigger={"blueprintIdentifier": "service"})
    assert local_port.error("POST", "/actions", document) == (404, "not_found")


def test_list_filters(local_port: LocalPort) -> None:
    with_service(local_port)
    local_port.api("POST", "/actions", action("a", URL, trigger={"blueprintIdentifier": "service"}))
    local_port.api("POST", "/actions", action("b", URL))
    event = {"type": "ENTITY_CREATED", "blueprintIdentifier": "service"}
    local_port.api("POST", "/actions", automation("c", URL, event))
    local_port.api("POST", "/actions", automation("d", URL, event, publish=False))

    def listed(**params: Any) -> list[str]:
        found = local_port.api("GET", "/actions", params={"version": "v2", **params})["actions"]
        return [item["identifier"] for item in found]

    assert listed() == ["a", "b", "c", "d"]
    assert listed(**{"action_identifier[]": ["a", "c"]}) == ["a", "c"]
    assert listed(**{"blueprint_identifier[]": "service"}) == ["a", "c", "d"]
    assert listed(trigger_type="automation", published="true") == ["c"]
    assert listed(**{"trigger_event[]": "ENTITY_CREATED"}) == ["c", "d"]
    assert listed(**{"operation[]": "DAY-2"}) == []


def test_permissions_appear_a_moment_later(local_port: LocalPort) -> None:
    local_port.admin("PUT", "/settings", {"permissionsDelaySeconds": 0.4})
    local_port.api("POST", "/actions", action("x", URL))
    assert local_port.error("GET", "/actions/x/permissions") == (404, "not_found")
    eventually(lambda: local_port.request("GET", "/v1/actions/x/permissions").ok)
    change = {"execute": {"users": ["a@b.c"], "roles": []}}
    changed = local_port.api("PATCH", "/actions/x/permissions", change)["permissions"]
    assert changed["execute"]["users"] == ["a@b.c"]
    assert changed["approve"]["roles"] == ["Admin"]
    assert local_port.error("PATCH", "/actions/x/permissions", {"see": {}}) == (422, "invalid_request")
    assert local_port.error("POST", "/actions/x/runs", {"properties": {}}, params={"run_as": "d@e.f"}) == (
        403,
        "missing_permissions",
    )
    run = local_port.api("POST", "/actions/x/runs", {"properties": {}}, params={"run_as": "a@b.c"})["run"]
    assert (
        local_port.api("GET", "/actions/runs", params={"user_email": "a@b.c"})["runs"][0]["id"] == run["id"]
    )


def test_a_thousand_actions(local_port: LocalPort) -> None:
    started = time.monotonic()
    for number in range(1000):
        local_port.api("POST", "/actions", action(f"a{number}", URL))
    assert len(local_port.api("GET", "/actions")["actions"]) == 1000
    assert time.monotonic() - started < 30
