"""Resources made by a real command; the Pulumi program is in tests/engine/test_bundled.py."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from tests.unit.bundled.services import failure
from tests.unit.bundled.smtp_server import PASSWORD, USER, SmtpServer, certificate

from port_webhook_handlers.bundled import resource
from port_webhook_handlers.bundled.expire import expire_resource
from port_webhook_handlers.bundled.notify import mail
from port_webhook_handlers.bundled.resource import create_resource, delete_resource
from port_webhook_handlers.bundled.resource.blueprints import RESOURCE
from port_webhook_handlers.bundled.resource.kinds import SECRET
from port_webhook_handlers.sdk import Entity, Failure, InputError, Success
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.testing import Invocation, invoke

VALUE = "cl0ud-s3cret"
TOOL = """\
#!{python}
import json, os, pathlib, subprocess, sys, time
verb, *arguments = sys.argv[1:]
folder = pathlib.Path("cloud"); folder.mkdir(exist_ok=True)
with open("calls.jsonl", "a") as calls:
    calls.write(json.dumps([verb, arguments, sorted(os.environ)]) + chr(10))
thing = folder / arguments[-1]
print(f"{{verb}} with {{os.environ['CLOUD_TOKEN']}}", file=sys.stderr)
if os.path.exists("broken"):
    sys.exit("quota exceeded")
if os.path.exists("slow"):
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]); time.sleep(60)
if verb == "create":
    thing.touch(); print("made"); print(json.dumps({{"url": f"https://cloud/{{arguments[-1]}}"}}))
else:
    thing.unlink(missing_ok=True)
"""
KIND: dict[str, Any] = {
    "parameters": {
        "size": {"pattern": "small|large", "default": "small"},
        "note": {"pattern": ".*", "default": "x"},
    },
    "command": {
        "create": ["{project}/cloud-tool", "create", "--size={size}", "--note", "{note}", "{identifier}"],
        "delete": ["{project}/cloud-tool", "delete", "{identifier}"],
        "secret_variable": "CLOUD_TOKEN",
    },
}


@pytest.fixture
def project(state: Path) -> Path:
    folder = state.parents[1]
    tool = folder / "cloud-tool"
    tool.write_text(TOOL.format(python=sys.executable))
    tool.chmod(0o755)
    return folder


def settings(project: Path, **more: Any) -> dict[str, Any]:
    return {"state_dir": str(project / ".state" / "local"), "kinds": {"bucket": KIND}} | more


def create(project: Path, seconds: float | None = None, settings_of: Any = KIND, **inputs: Any) -> Invocation:
    return invoke(
        create_resource,
        inputs={"identifier": "logs", "kind": "bucket"} | inputs,
        secrets={SECRET: VALUE},
        settings=settings(project, kinds={"bucket": settings_of}),
        seconds=seconds,
    )


def delete(project: Path, attempt: int = 1, **properties: Any) -> Invocation:
    entity = Entity("logs", blueprint="resource", properties=properties)
    return invoke(
        delete_resource, entity=entity, secrets={SECRET: VALUE}, settings=settings(project), attempt=attempt
    )


def statuses(outcome: Invocation) -> list[str]:
    return [
        "deleted" if entity["op"] == "delete" else entity["body"]["properties"]["status"]
        for entity in outcome.entities
    ]


def calls(project: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (project / "calls.jsonl").read_text().splitlines()]


def test_a_resource_is_created_and_deleted(project: Path) -> None:
    outcome = create(
        project, parameters={"size": "large"}, owner="ann@example.com", expiresAt="2030-01-01T00:00:00Z"
    )
    assert outcome.result == Success("bucket logs is ready: url = https://cloud/logs")
    assert statuses(outcome) == ["Creating", "Ready"]
    first, last = (entity["body"]["properties"] for entity in outcome.entities)
    assert first["parameters"] == {"size": "large", "note": "x"}
    assert first["owner"] == "ann@example.com"
    assert first["expiresAt"].startswith("2030-01-01T00:00:00")
    assert last["outputs"] == {"url": "https://cloud/logs"}
    assert set(first) | set(last) == set(RESOURCE["schema"]["properties"])
    (verb, arguments, environment) = calls(project)[0]
    assert (verb, arguments) == ("create", ["--size=large", "--note", "x", "logs"])
    assert set(environment) <= {"CLOUD_TOKEN", "PATH", "LANG", "LC_ALL", "TZ", "LC_CTYPE"}
    assert outcome.logs == ["create with ***"]
    assert VALUE not in json.dumps(outcome.messages)

    assert failure(create(project)).startswith("resource logs exists already")
    outcome = delete(project, kind="other", parameters={"size": "--evil"})
    assert outcome.result == Success("bucket logs is deleted")
    assert statuses(outcome) == ["Deleting", "deleted"]
    assert not (project / "cloud" / "logs").exists()
    assert isinstance(create(project).result, Success), "the identifier is free again"


def test_a_record_that_cannot_be_written_keeps_no_identifier(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(value: Any, file: Any) -> None:
        file.write("{")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(resource, "json", SimpleNamespace(dump=full))
        assert "No space left on device; make room" in failure(create(project))
    assert isinstance(create(project).result, Success)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"kind": "tape"}, "kinds.tape: is not in the settings of this handler (known: bucket)"),
        ({"parameters": {"colour": "red"}}, "parameters.colour: bucket has no such parameter"),
        ({"parameters": {"size": "huge"}}, "parameters.size: must match small|large"),
        ({"parameters": {"size": "small\n"}}, "parameters.size: must match small|large"),
        (
            {"parameters": {"note": "--force"}},
            "command.create: a value that starts an argument must not start",
        ),
        ({"parameters": {"note": "@/etc/passwd"}}, "command.create: a value that starts an argument"),
        ({"parameters": {"note": "a\0b"}}, "command.create: a value must hold no control characters"),
    ],
)
def test_what_is_refused_before_anything_runs(inputs: dict[str, Any], message: str, project: Path) -> None:
    assert failure(create(project, **inputs)).startswith(message)
    assert not (project / "calls.jsonl").exists()
    assert isinstance(create(project).result, Success), "the identifier is still free"


def test_no_shell_sees_a_value(project: Path) -> None:
    note = "x; touch pwned $(touch pwned) `touch pwned` {identifier}"
    assert isinstance(create(project, parameters={"note": note}).result, Success)
    assert calls(project)[0][1][2] == note
    assert not (project / "pwned").exists()


@pytest.mark.parametrize("identifier", ["-x", "../x", "A", "a/b", "a" * 51, "a-"])
def test_identifiers(identifier: str, project: Path) -> None:
    with pytest.raises(InputError, match="identifier"):
        create(project, identifier=identifier)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ({}, "kinds.bucket.command: give either command or program"),
        ({"command": {"create": "x", "delete": ["x"]}}, "kinds.bucket.command.create: must be a list"),
        ({**KIND, "comand": {}}, "kinds.bucket.comand: unknown key"),
        ({**KIND, "parameters": {"a": {"pattern": "("}}}, "kinds.bucket.parameters.a.pattern: is no regular"),
        ({"program": {"folder": "nothing"}}, "program.folder: nothing holds no Pulumi.yaml"),
    ],
)
def test_settings_that_cannot_be_used_are_named(kind: dict[str, Any], message: str, project: Path) -> None:
    assert failure(create(project, settings_of=kind)).startswith(message)


def test_what_fails_can_be_deleted(project: Path) -> None:
    (project / "broken").touch()
    outcome = create(project)
    assert "cloud-tool ended with exit code 1: quota exceeded. What was made before" in failure(outcome)
    assert statuses(outcome) == ["Creating", "Failed"]
    outcome = delete(project)
    assert "quota exceeded. The resource may still be there" in failure(outcome)
    assert statuses(outcome) == ["Deleting", "Failed"]
    (project / "broken").unlink()
    assert isinstance(delete(project).result, Success)
    assert isinstance(create(project).result, Success)


def test_a_command_that_hangs_is_ended_with_all_it_started(project: Path) -> None:
    (project / "slow").touch()
    before = set(psutil.Process().children(recursive=True))
    outcome = create(project, seconds=22)
    assert "did not end within" in failure(outcome)
    assert statuses(outcome) == ["Creating", "Failed"]
    started = set(psutil.Process().children(recursive=True)) - before
    assert [p for p in started if p.status() != psutil.STATUS_ZOMBIE] == []


def test_a_resource_that_nobody_recorded_needs_its_kind(project: Path) -> None:
    assert "is not known; set its property kind" in failure(delete(project))
    assert isinstance(delete(project, kind="bucket").result, Success)
    assert "must match small|large" in failure(delete(project, kind="bucket", parameters={"size": "x"}))


IN_A_CHILD = """\
import json, sys
from port_webhook_handlers.sdk.invoke import run_request
run_request(json.loads(sys.stdin.read()), lambda message: print(json.dumps(message), flush=True))
"""


def test_interrupted_in_the_middle_it_can_be_deleted(project: Path) -> None:
    assert handler_of(create_resource).on_interrupt == "fail"
    assert handler_of(delete_resource).on_interrupt == "retry"
    (project / "slow").touch()
    request = {
        "run": {"id": "r_1", "action": "create_resource", "deadline": time.time() + 60},
        "inputs": {"identifier": "logs", "kind": "bucket"},
        "handler": handler_of(create_resource).target,
        "secrets": {SECRET: VALUE},
        "settings": settings(project),
    }
    with subprocess.Popen(
        [sys.executable, "-c", IN_A_CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(json.dumps(request).encode())
        child.stdin.close()
        entity = json.loads(child.stdout.readline())["entity"]["body"]
        while b"create with" not in child.stdout.readline():
            assert child.poll() is None
        # As the listener ends a child: with its process group.
        os.killpg(child.pid, signal.SIGKILL)
    assert entity["properties"]["status"] == "Creating"
    (project / "slow").unlink()
    (record,) = (project / ".state" / "local" / "resources" / "records").iterdir()
    assert stat.S_ISREG(record.stat().st_mode)
    assert isinstance(delete(project, attempt=2).result, Success)
    assert not record.exists()


# --- Expiry -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificate(tmp_path_factory.mktemp("smtp"))


@pytest.fixture
def smtp(pem: Path) -> Iterator[SmtpServer]:
    server = SmtpServer(pem)
    yield server
    server.close()


def expire(
    project: Path, smtp: SmtpServer, pem: Path, host: str | None = "127.0.0.1", **properties: Any
) -> Invocation:
    entity = {"identifier": "logs", "blueprint": "resource", "properties": {"kind": "bucket", **properties}}
    server = {
        "server": host,
        "port": smtp.port,
        "ca_file": str(pem),
        "user": USER,
        "sender": "port@example.com",
        "recipients": ["example.com"],
    }
    return invoke(
        expire_resource,
        event={"action": "TIMER_EXPIRED", "diff": {"after": entity}},
        secrets={SECRET: VALUE, mail.PASSWORD: PASSWORD},
        settings=settings(project, **server),
    )


def test_what_expires_is_deleted_and_its_owner_told(project: Path, smtp: SmtpServer, pem: Path) -> None:
    create(project)
    outcome = expire(project, smtp, pem, owner="ann@example.com")
    assert outcome.result == Success("bucket logs is deleted. ann@example.com was told.")
    assert not (project / "cloud" / "logs").exists()
    ((recipients, message),) = smtp.mails
    assert (recipients, message["Subject"]) == (["ann@example.com"], "Resource logs has expired")


def test_an_owner_who_cannot_be_told_keeps_nothing(project: Path, smtp: SmtpServer, pem: Path) -> None:
    create(project)
    smtp.refuse = {"DATA": "452 full"}
    outcome = expire(project, smtp, pem, owner="ann@example.com")
    assert outcome.result == Success(
        "bucket logs is deleted. ann@example.com was not told: 127.0.0.1 refused the message (452): full."
    )
    assert expire(project, smtp, pem).result == Success("bucket logs is deleted. It has no owner to tell.")


def test_an_owner_learns_that_it_could_not_be_deleted(project: Path, smtp: SmtpServer, pem: Path) -> None:
    create(project)
    (project / "broken").touch()
    outcome = expire(project, smtp, pem, owner="ann@example.com")
    assert isinstance(outcome.result, Failure)
    assert "quota exceeded" in outcome.result.summary
    assert ".." not in outcome.result.summary
    ((_, message),) = smtp.mails
    assert message["Subject"] == "Resource logs could not be deleted"
    content = message.get_payload(decode=True)
    assert isinstance(content, bytes)
    assert content.decode().endswith("quota exceeded. The resource may still be there.")


def test_settings_that_are_missing_are_named_where_they_are_missing(
    project: Path, smtp: SmtpServer, pem: Path
) -> None:
    create(project)
    outcome = expire(project, smtp, pem, host=None, owner="ann@example.com")
    assert "expire_resource.server: must be a text" in str(outcome.result.summary)
