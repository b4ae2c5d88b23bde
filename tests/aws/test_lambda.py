"""The archive as deployed: real runtime client, real queues' semantics, local Port at both ends."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from tests.aws.account import json_line
from tests.aws.cloud import moto
from tests.aws.stack import AwsStack, http_event, signed
from tests.fixtures_localport import LocalPort, eventually, local_port

from port_webhook_handlers.bundle import Bundle, build
from port_webhook_handlers.runtime.aws.messages import RunMessage
from port_webhook_stack.listener.aws_archive import LambdaArchive, build_archive

__all__ = ["local_port"]

pytestmark = pytest.mark.aws

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "handler-token-value"
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

HANDLERS = """
import os, time
from pathlib import Path
from port_webhook_handlers.sdk import Failure, Field, HandedOver, Inputs, RetryableError, Run, Success, action, payloads

class Form(Inputs):
    text: str = ""

def mark(run: Run) -> None:
    with open(Path(run.settings["marks"]) / run.id, "a") as stream:
        stream.write(f"{run.attempt}\\n")

@action("greet", title="Greet", secrets=["TOKEN"])
def greet(inputs: Form, run: Run) -> Success:
    mark(run)
    run.log(f"hello {inputs.text}")
    print("printed", run.secret("TOKEN"), sorted(os.environ), flush=True)
    run.progress("half way")
    run.upsert_entity("thing", "t1", title=inputs.text)
    return Success(summary=f"greeted {inputs.text}", link="https://example.com/x")

@action("rework", title="Rework", on_interrupt="retry")
def rework(inputs: Form, run: Run) -> Success:
    mark(run)
    run.log("at it")
    if inputs.text == "retry" and run.attempt < 3:
        raise RetryableError("not yet")
    if inputs.text == "die":
        os._exit(7)
    if inputs.text == "hang":
        time.sleep(60)
    return Success(summary=f"attempt {run.attempt}")

@action("pass_on", title="Pass on")
def pass_on(inputs: Form, run: Run) -> HandedOver:
    mark(run)
    return HandedOver("Waiting for a worker.", "https://example.com/queue")

@action("serial", title="Serial", max_concurrency=1)
def serial(inputs: Form, run: Run) -> Success:
    mark(run)
    return Success()

@action("theirs", title="Theirs", payload=payloads.RUN_ID_HEADER, manage=True)
def theirs(inputs: Form, run: Run) -> Success:
    mark(run)
    return Success(summary=inputs.text)

@action("ask", title="Ask", mode="sync")
def ask(inputs: Form, run: Run) -> Success | Failure:
    mark(run)
    if inputs.text == "hang":
        time.sleep(60)
    if inputs.text == "fail":
        return Failure("no way")
    return Success(response={"text": inputs.text, "environment": sorted(os.environ)})

@action("vault", title="Vault", mode="sync", secrets=["TOKEN"], privilege_group="other")
def vault(inputs: Form, run: Run) -> Success:
    return Success(response={"length": len(run.secret("TOKEN"))})
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, LambdaArchive, Path]:
    folder = tmp_path_factory.mktemp("archive")
    marks = folder / "marks"
    marks.mkdir()
    (folder / "hooks.py").write_text(HANDLERS)
    bundle = build([folder / "hooks.py"], folder / "bundles")
    archive = build_archive(
        bundle,
        folder / "archives",
        architecture="x86_64",
        python=PYTHON,
        requirements=[ROOT / "requirements" / "handlers.txt"],
        handler_settings={"*": {"marks": str(marks)}},
        delegated=["vault"],
    )
    return bundle, archive, marks


@pytest.fixture(scope="module")
def moto_url() -> Iterator[str]:
    with moto() as url:
        yield url


class Listener:
    """The deployed stack, known to local Port."""

    def __init__(self, stack: AwsStack, port: LocalPort, marks: Path, bundle: Bundle) -> None:
        self.stack = stack
        self.port = port
        self._marks = marks
        port.api(
            "POST", "/blueprints", {"identifier": "thing", "title": "Thing", "schema": {"properties": {}}}
        )
        for name, body in bundle.definitions.items():
            url = f"{stack.url}/webhooks/{name}"
            port.api(
                "POST", "/actions", {**body, "invocationMethod": {**body["invocationMethod"], "url": url}}
            )

    def run(self, action: str, text: str = "") -> str:
        """Starts a run in Port and waits until Port has delivered it."""
        run_id = self.port.execute(action, {"text": text})
        eventually(lambda: self.port.deliveries(run=run_id), message="not delivered")
        return run_id

    def marks(self, run_id: str) -> list[str]:
        """Starts of the handler."""
        path = self._marks / run_id
        return path.read_text().split() if path.exists() else []

    def status(self, run_id: str) -> str:
        return str(self.port.run(run_id)["status"])

    def post(
        self, action: str, run_id: str, text: str = "", secret: str = "", **changes: Any
    ) -> requests.Response:
        """A delivery that Port did not make."""
        body = envelope(action, run_id, text)
        headers = signed(secret or self.port.client_secret, body, **changes)
        return requests.post(f"{self.stack.url}/webhooks/{action}", data=body, headers=headers, timeout=60)


def envelope(action: str, run_id: str, text: str = "") -> bytes:
    context = {"action": action, "runId": run_id}
    return json.dumps(
        {"port_context": context, "inputs": {"text": text}, "entity": None, "trigger": {}}
    ).encode()


def deploy(
    folder: Path, made: tuple[Bundle, LambdaArchive, Path], moto_url: str, port: LocalPort, **deployment: Any
) -> AwsStack:
    secrets = {
        "signing": [{"value": port.client_secret, "not_after": None}],
        "api": {"client_id": port.client_id, "client_secret": port.client_secret},
        "secrets": {"TOKEN": TOKEN},
        "decryption": [],
    }
    return AwsStack(folder, made[1].path, made[0].digest, moto_url, port.url, secrets, **deployment)


@pytest.fixture(scope="module")
def shared(
    tmp_path_factory: pytest.TempPathFactory, made: tuple[Bundle, LambdaArchive, Path], moto_url: str
) -> Iterator[Callable[[LocalPort], AwsStack]]:
    """One stack for all tests that leave its functions and secrets as they are."""
    stacks: list[AwsStack] = []

    def get(port: LocalPort) -> AwsStack:
        if not stacks:
            stacks.append(deploy(tmp_path_factory.mktemp("stack"), made, moto_url, port))
        return stacks[0]

    yield get
    for stack in stacks:
        stack.close()


@pytest.fixture
def listener(
    shared: Callable[[LocalPort], AwsStack], made: tuple[Bundle, LambdaArchive, Path], local_port: LocalPort
) -> Iterator[Listener]:
    stack = shared(local_port)
    yield Listener(stack, local_port, made[2], made[0])
    # What a test leaves open must not reach the next one.
    stack.gate.reset()
    local_port.admin("DELETE", "/faults")
    stack.settle()


@pytest.fixture
def own(
    tmp_path: Path, made: tuple[Bundle, LambdaArchive, Path], moto_url: str, local_port: LocalPort
) -> Iterator[Listener]:
    """A stack of this test alone."""
    stack = deploy(tmp_path, made, moto_url, local_port)
    yield Listener(stack, local_port, made[2], made[0])
    stack.close()


def test_an_asynchronous_run_goes_through_queue_worker_and_outbox(listener: Listener) -> None:
    run_id = listener.run("greet", "you")
    assert listener.port.deliveries(run=run_id)[0]["status"] == 202
    assert listener.stack.gate.calls[-2:] == ["secretsmanager.GetSecretValue", "AmazonSQS.SendMessage"]
    listener.stack.deliver()
    run = listener.port.run(run_id)
    assert (run["status"], run["summary"], run["link"]) == (
        "SUCCESS",
        "greeted you",
        ["https://example.com/x"],
    )
    assert listener.port.logs(run_id)[-1] == "hello you"
    assert listener.port.api("GET", "/blueprints/thing/entities/t1")["entity"]["title"] == "you"
    assert listener.stack.item(run_id)["state"] == "done"
    assert listener.marks(run_id) == ["1"]
    log = listener.stack.functions["worker"].log
    assert TOKEN not in log
    assert "[redacted]" in log
    assert "AWS_SECRET_ACCESS_KEY" not in log
    assert listener.port.client_secret not in listener.stack.log()


def test_a_run_that_only_a_header_names_is_confirmed_by_port(listener: Listener) -> None:
    run_id = listener.run("theirs", "confirmed")
    assert listener.port.deliveries(run=run_id)[0]["status"] == 202
    body = json.dumps({"text": "forged"}).encode()
    other = listener.port.execute("greet", {"text": "other"})
    for name in (other, "r_0000000000000000"):
        headers = {**signed(listener.port.client_secret, body), "RUN_ID": name}
        reply = requests.post(f"{listener.stack.url}/webhooks/theirs", data=body, headers=headers, timeout=60)
        assert (reply.status_code, reply.json()["error"]) == (403, "unconfirmed_run")
    listener.stack.deliver()
    assert listener.port.run(run_id)["summary"] == "confirmed"
    assert (listener.marks(run_id), listener.marks("r_0000000000000000")) == (["1"], [])


def test_a_run_that_is_handed_over_stays_open_for_the_worker(listener: Listener) -> None:
    run_id = listener.run("pass_on")
    listener.stack.settle()
    run = listener.port.run(run_id)
    assert (run["status"], run["statusLabel"], run["summary"], run["link"]) == (
        "IN_PROGRESS",
        "Handed over",
        "Waiting for a worker.",
        ["https://example.com/queue"],
    )
    # For the stack it is over: nothing waits, and a repeat is dropped.
    assert listener.stack.item(run_id)["state"] == "done"
    listener.post("pass_on", run_id)
    listener.stack.settle()
    assert listener.marks(run_id) == ["1"]
    # Not even a message that came back too often ends it.
    item = listener.stack.item(run_id)
    late = RunMessage(run_id, "pass_on", item["body_hash"], b"{}", 1.0)
    listener.stack.sqs.send_message(
        QueueUrl=listener.stack.dead, MessageBody=late.dumps(), MessageGroupId="1", MessageDeduplicationId="1"
    )
    listener.stack.settle()
    assert listener.status(run_id) == "IN_PROGRESS"
    end = {"status": "SUCCESS", "summary": "rotated"}
    listener.port.api("PATCH", f"/actions/runs/{run_id}", end)
    listener.stack.settle()
    assert listener.status(run_id) == "SUCCESS"


def test_an_action_with_a_concurrency_of_one_is_handed_over_one_at_a_time(listener: Listener) -> None:
    sqs, work = listener.stack.sqs, listener.stack.work
    runs = [listener.run("serial") for _ in range(3)] + [listener.run("greet") for _ in range(2)]

    # One at a time, as Lambda takes them for a worker.
    first = []
    while found := sqs.receive_message(QueueUrl=work, VisibilityTimeout=600).get("Messages"):
        first += [json.loads(item["Body"]) | {"receipt": item["ReceiptHandle"]} for item in found]
    assert [item["run_id"] for item in first] == [runs[0], runs[3], runs[4]]
    for item in first:
        sqs.change_message_visibility(QueueUrl=work, ReceiptHandle=item["receipt"], VisibilityTimeout=0)
    listener.stack.settle()
    assert [listener.status(run_id) for run_id in runs] == ["SUCCESS"] * 5
    assert [listener.marks(run_id) for run_id in runs] == [["1"]] * 5


def test_a_repeated_delivery_never_runs_twice(listener: Listener) -> None:
    run_id = listener.run("greet", "once")
    assert [listener.post("greet", run_id, "once").status_code for _ in range(2)] == [202, 202]
    listener.stack.settle()
    assert listener.marks(run_id) == ["1"]
    assert listener.status(run_id) == "SUCCESS"
    listener.post("greet", run_id, "once")
    listener.stack.settle()
    assert listener.marks(run_id) == ["1"]


def test_a_run_id_with_another_body_changes_nothing(listener: Listener) -> None:
    run_id = listener.run("greet", "first")
    listener.stack.settle()
    listener.post("greet", run_id, "second")
    listener.stack.settle()
    assert listener.marks(run_id) == ["1"]
    assert listener.port.run(run_id)["summary"] == "greeted first"


def test_refused_inputs_end_as_failure_in_port(listener: Listener) -> None:
    run_id = listener.port.execute("greet", {"text": "x"})
    eventually(lambda: listener.port.deliveries(run=run_id))
    other = listener.port.execute("rework", {"text": "x"})
    listener.stack.settle()
    body = json.loads(envelope("greet", "r_refused_1"))
    body["inputs"] = {"text": 7, "more": True}
    data = json.dumps(body).encode()
    answer = requests.post(
        f"{listener.stack.url}/webhooks/greet",
        data=data,
        headers=signed(listener.port.client_secret, data),
        timeout=60,
    )
    assert answer.status_code == 202
    assert answer.json()["accepted"] is False
    assert answer.json()["error"] == "invalid_inputs"
    listener.stack.deliver()
    item = listener.stack.item("r_refused_1")
    assert (item["state"], item["route"]) == ("done", "greet")
    assert listener.marks("r_refused_1") == []
    # A later, valid request with that id is another one.
    listener.post("greet", "r_refused_1", "x")
    listener.stack.settle()
    assert listener.marks("r_refused_1") == []
    assert listener.status(other) == "SUCCESS"


@pytest.mark.parametrize("encoded", [False, True])
def test_the_bytes_are_verified_as_they_were_sent(listener: Listener, encoded: bool) -> None:
    body = envelope("ask", f"r_bytes_{encoded}", "grüße ☃")
    headers = {name.title(): value for name, value in signed(listener.port.client_secret, body).items()}
    receiver = listener.stack.functions["receiver"]
    made = receiver.invoke(http_event("POST", "/webhooks/ask", headers, body, encoded=encoded))
    assert made.payload["statusCode"] == 200
    assert json.loads(made.payload["body"])["text"] == "grüße ☃"
    changed = http_event("POST", "/webhooks/ask", headers, body + b" ", encoded=encoded)
    assert receiver.invoke(changed).payload["statusCode"] == 401


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"x-port-signature": None}, 401, "missing_signature"),
        ({"x-port-signature": "v1,AAAA"}, 400, "malformed_signature"),
        ({"x-port-timestamp": None}, 401, "missing_timestamp"),
        ({"x-port-timestamp": "1000000000"}, 401, "stale_timestamp"),
        ({"x-port-timestamp": "twice"}, 400, "duplicate_header"),
        ({"x-port-signature": "twice"}, 400, "duplicate_header"),
    ],
)
def test_what_port_did_not_sign_is_refused(
    listener: Listener, headers: dict[str, str | None], status: int, reason: str
) -> None:
    body = envelope("greet", "r_unsigned")
    sent = signed(listener.port.client_secret, body)
    for name, value in headers.items():
        if value is None:
            del sent[name]
        else:
            # The gateway joins several values of a header.
            sent[name] = f"{sent[name]},{sent[name]}" if value == "twice" else value
    answer = (
        listener.stack.functions["receiver"].invoke(http_event("POST", "/webhooks/greet", sent, body)).payload
    )
    assert (answer["statusCode"], json.loads(answer["body"])["error"]) == (status, reason)
    assert listener.stack.item("r_unsigned") == {}
    assert listener.stack.waiting(listener.stack.work) == 0


@pytest.mark.parametrize(
    "event",
    [{}, {"Records": []}, {"requestContext": {}}, {"requestContext": {"http": {"method": 1}}, "body": "é"}],
)
def test_an_event_that_is_no_request_is_a_400(listener: Listener, event: dict[str, Any]) -> None:
    assert listener.stack.functions["receiver"].invoke(event).payload["statusCode"] == 400


def test_a_synchronous_run_is_answered_here_without_credentials(listener: Listener) -> None:
    answer = listener.post("ask", "r_sync", "a")
    assert answer.status_code == 200
    assert answer.json()["text"] == "a"
    assert not [name for name in answer.json()["environment"] if name.startswith(("AWS", "PORT"))]
    assert listener.post("ask", "r_sync", "a").json() == answer.json()
    assert listener.post("ask", "r_sync", "b").status_code == 409
    assert listener.marks("r_sync") == ["1"]
    assert listener.post("ask", "r_sync_failed", "fail").status_code == 422


def test_a_synchronous_handler_with_secrets_runs_in_its_own_function(listener: Listener) -> None:
    assert listener.post("vault", "r_vault").json() == {"length": len(TOKEN)}
    assert "run started" in listener.stack.functions["synchronous"].log
    assert "r_vault" not in listener.stack.functions["receiver"].log.replace("ready", "")


def test_a_synchronous_run_ends_at_its_deadline(own: Listener) -> None:
    receiver = own.stack.functions["receiver"]
    deployment = json.loads(receiver.environment["PORT_WEBHOOK"]) | {"sync_deadline_seconds": 1.5}
    receiver.environment["PORT_WEBHOOK"] = json.dumps(deployment)
    answer = own.post("ask", "r_hang", "hang")
    assert (answer.status_code, answer.json()["error"]) == (504, "timed_out")


def test_an_interrupted_synchronous_run_is_not_run_again(own: Listener) -> None:
    own.stack.gate.after = lambda caller, operation: _killed(own, caller, operation.endswith("PutItem"))
    assert own.post("ask", "r_cut", "a").status_code == 502
    own.stack.gate.reset()
    own.stack.pass_time()
    assert own.post("ask", "r_cut", "a").json()["error"] == "interrupted"
    assert own.marks("r_cut") == []


def test_the_probe_counts_one_execution(listener: Listener, made: tuple[Bundle, LambdaArchive, Path]) -> None:
    body = json.dumps({"port_context": {"action": "_verification", "runId": "r_probe"}}).encode()
    headers = signed(listener.port.client_secret, body)
    url = f"{listener.stack.url}/webhooks/_verification"
    answers = [requests.post(url, data=body, headers=headers, timeout=60).json() for _ in range(2)]
    assert answers == [{"digest": made[0].digest, "executions": 1}] * 2
    assert requests.get(f"{listener.stack.url}/health", timeout=60).json()["digest"] == made[0].digest


def test_changed_code_is_not_served(own: Listener) -> None:
    victim = own.stack.folder / "task" / "bundle" / "port_webhook_handlers" / "port" / "signature.py"
    victim.write_text(victim.read_text() + "\nNOTE = 1\n")
    made = own.stack.functions["receiver"].invoke(http_event("GET", "/health", {}, b""))
    assert "signature.py is not the file that the manifest names" in made.error


def test_a_rotated_secret_is_fetched_on_the_first_signature_that_fails(own: Listener) -> None:
    assert own.post("greet", "r_before").status_code == 202
    new = {"signing": [{"value": "new-secret", "not_after": None}]}
    own.stack.secretsmanager.put_secret_value(
        SecretId=own.stack.secrets["signing"], SecretString=json.dumps(new)
    )
    pid = own.stack.functions["receiver"].pid
    assert own.post("greet", "r_new", secret="new-secret").status_code == 202
    # The version before stays valid for the overlap.
    assert own.post("greet", "r_old").status_code == 202
    assert own.stack.functions["receiver"].pid == pid
    calls = len(own.stack.gate.calls)
    assert [own.post("greet", "r_forged", secret="forged").status_code for _ in range(5)] == [401] * 5
    # Somebody without a secret must not cause a call to AWS for each request.
    assert len(own.stack.gate.calls) == calls


def test_a_retired_secret_is_refused(own: Listener) -> None:
    name = own.stack.secrets["signing"]
    new = {"signing": [{"value": "new-secret", "not_after": None}]}
    own.stack.secretsmanager.put_secret_value(SecretId=name, SecretString=json.dumps(new))
    versions = own.stack.secretsmanager.list_secret_version_ids(SecretId=name, IncludeDeprecated=True)[
        "Versions"
    ]
    former = next(item["VersionId"] for item in versions if "AWSPREVIOUS" in item.get("VersionStages", []))
    own.stack.secretsmanager.update_secret_version_stage(
        SecretId=name, VersionStage="AWSPREVIOUS", RemoveFromVersionId=former
    )
    assert own.post("greet", "r_retired").status_code == 401
    assert own.post("greet", "r_fresh", secret="new-secret").status_code == 202


def test_a_missing_secret_refuses_everything_but_health(own: Listener) -> None:
    own.stack.gate.away = True
    answer = own.post("greet", "r_blind")
    assert (answer.status_code, answer.json()["error"]) == (503, "no_secrets")
    assert requests.get(f"{own.stack.url}/health", timeout=60).status_code == 200


def test_an_expired_token_is_renewed(listener: Listener) -> None:
    first = listener.run("greet", "a")
    listener.stack.settle()
    listener.port.admin("POST", "/expire-token")
    second = listener.run("greet", "b")
    listener.stack.settle()
    assert [listener.status(run_id) for run_id in (first, second)] == ["SUCCESS", "SUCCESS"]


def test_the_outbox_drains_when_port_comes_back(listener: Listener) -> None:
    listener.port.admin(
        "PUT",
        "/faults",
        {"api": [{"prefix": "/v1/actions/runs", "method": m, "status": 500} for m in ("PATCH", "POST")]},
    )
    runs = [listener.run("greet", str(number)) for number in range(3)]
    listener.stack.deliver()
    listener.stack.pass_time()
    listener.stack.deliver()
    assert [listener.status(run_id) for run_id in runs] == ["IN_PROGRESS"] * 3
    assert {listener.stack.item(run_id)["state"] for run_id in runs} == {"reporting"}
    # What an alarm watches: how old an accepted run is that Port does not know the end of.
    waits = [json_line(line) for line in listener.stack.functions["reporter"].log.splitlines()]
    ages = {line["run"]: line["age"] for line in waits if line.get("event") == "report waits"}
    assert all(0 < ages[run_id] < 60 for run_id in runs)
    listener.port.admin("DELETE", "/faults")
    listener.stack.settle()
    assert [listener.status(run_id) for run_id in runs] == ["SUCCESS"] * 3
    assert listener.port.logs(runs[0])[-1] == "hello 0"
    assert [listener.marks(run_id) for run_id in runs] == [["1"]] * 3


def test_a_retryable_error_starts_the_run_again(listener: Listener) -> None:
    run_id = listener.run("rework", "retry")
    listener.stack.settle()
    assert listener.marks(run_id) == ["1", "2", "3"]
    assert listener.port.run(run_id)["summary"] == "attempt 3"


def test_a_handler_that_kills_its_process_ends_after_three_starts(listener: Listener) -> None:
    run_id = listener.run("rework", "die")
    listener.stack.settle()
    assert listener.marks(run_id) == ["1", "2", "3"]
    assert listener.status(run_id) == "FAILURE"
    assert "ended with code 7" in listener.port.run(run_id)["summary"]


def test_a_poison_message_ends_as_failure_and_is_kept(own: Listener) -> None:
    run_id = own.run("greet", "poison")
    # The worker dies before it can write anything.
    own.stack.gate.before = lambda caller, operation: (
        caller == "worker" and _killed(own, caller, operation.endswith("UpdateItem"))
    )
    for _ in range(4):
        own.stack.deliver()
        own.stack.pass_time()
        if own.stack.waiting(own.stack.work) == 0:
            break
    own.stack.gate.reset()
    own.stack.settle()
    assert own.status(run_id) == "FAILURE"
    assert "could not be started" in own.port.run(run_id)["summary"]
    assert own.marks(run_id) == []
    item = own.stack.item(run_id)
    assert (item["state"], item["dead"]) == ("done", "1")
    assert json.loads(item["payload"])["inputs"] == {"text": "poison"}


def _killed(listener: Listener, function: str, now: bool) -> bool:
    if now:
        listener.stack.functions[function].kill()
    return now


POINTS = [
    # function, operation that it dies at, whether AWS took the call, which one of that name
    ("receiver", "SendMessage", False, 0),
    ("receiver", "SendMessage", True, 0),
    ("worker", "UpdateItem", False, 0),
    ("worker", "UpdateItem", True, 0),
    ("worker", "ChangeMessageVisibility", True, 0),
    ("worker", "GetSecretValue", True, 0),
    ("worker", "SendMessage", True, 0),
    ("worker", "UpdateItem", False, 1),
    ("worker", "UpdateItem", True, 1),
    ("worker", "SendMessage", False, 1),
    ("worker", "SendMessage", True, 1),
    ("reporter", "GetItem", True, 0),
    # It has reported a log line, progress and an entity before it closes the run.
    ("reporter", "UpdateItem", True, 0),
    ("reporter", "UpdateItem", False, 3),
]


@pytest.mark.parametrize(("action", "points"), [("greet", POINTS), ("rework", POINTS[3:9:2])])
def test_a_function_may_die_between_any_two_writes(
    own: Listener, action: str, points: list[tuple[str, str, bool, int]]
) -> None:
    outcomes: dict[str, str] = {}
    died: list[str] = []
    for function, operation, stored, nth in points:
        # A fresh one reads its secrets as well.
        own.stack.functions[function].kill()
        _die_at(own, function if function == "receiver" else "", operation, stored, nth, died)
        run_id = own.port.execute(action, {"text": f"{function} {operation} {stored} {nth}"})
        eventually(lambda run_id=run_id: own.port.deliveries(run=run_id))  # type: ignore[misc]
        own.stack.gate.reset()
        if function == "receiver":
            # Port got no 2xx, so nothing was promised; a repeat must still work.
            body = own.stack.received[-1]
            headers = signed(own.port.client_secret, body)
            again = requests.post(
                f"{own.stack.url}/webhooks/{action}", data=body, headers=headers, timeout=60
            )
            assert again.status_code == 202
        else:
            _die_at(own, function, operation, stored, nth, died)
        own.stack.deliver()
        own.stack.gate.reset()
        own.stack.settle()
        point = (function, operation, stored, nth)
        assert died == [function], point
        died.clear()
        outcomes[run_id] = own.status(run_id)
        starts = own.marks(run_id)
        assert outcomes[run_id] in ("SUCCESS", "FAILURE"), point
        if action == "greet":
            assert len(starts) <= 1, point
    assert set(outcomes.values()) <= {"SUCCESS", "FAILURE"}
    if action == "rework":
        assert set(outcomes.values()) == {"SUCCESS"}
    assert own.stack.waiting(own.stack.work) == own.stack.waiting(own.stack.reports) == 0
    # 0 runs without a terminal status, nothing left anywhere.
    assert own.stack.waiting(own.stack.dead) == 0


def _die_at(
    listener: Listener, function: str, operation: str, stored: bool, nth: int, died: list[str]
) -> None:
    seen = 0

    def strike(caller: str, name: str) -> bool:
        nonlocal seen
        if caller != function or not name.endswith(operation):
            return False
        seen += 1
        if seen != nth + 1:
            return False
        died.append(function)
        return _killed(listener, function, True)

    if stored:
        listener.stack.gate.after = strike
    else:
        listener.stack.gate.before = strike


def test_an_agent_hands_invocations_to_the_receiver_without_an_endpoint(own: Listener) -> None:
    from port_webhook_handlers.agent.core import RetryLaterError
    from port_webhook_handlers.agent.messages import Invocation, Message
    from port_webhook_handlers.runtime.aws.agent import InvokeSink
    from port_webhook_handlers.runtime.aws.api import AwsApi
    from port_webhook_handlers.runtime.aws.sigv4 import Credentials
    from port_webhook_handlers.runtime.secret_file import SigningSecret, StoredSecrets

    class Secrets:
        content = StoredSecrets((SigningSecret(own.port.client_secret),))

    def message(action: str, run_id: str, text: str, synchronized: bool = False, **headers: str) -> Message:
        body = json.loads(envelope(action, run_id, text))
        invocation = Invocation({"method": "POST", "synchronized": synchronized, "headers": headers})
        return Message("m", run_id, action, run_id, invocation, body, {}, route=action)

    endpoint = {"AWS_ENDPOINT_URL": own.stack.functions["receiver"].environment["AWS_ENDPOINT_URL_LAMBDA"]}

    def api() -> AwsApi:
        return AwsApi("eu-west-1", lambda: Credentials("id", "key"), endpoint)

    sink = InvokeSink(api, "receiver", Secrets())

    async def deliver_all() -> None:
        assert (await sink.deliver(message("greet", "r_pulled", "a"))).result == "delivered"
        answer = await sink.deliver(message("ask", "r_asked", "b", synchronized=True))
        assert (answer.status, answer.response["text"]) == ("SUCCESS", "b")
        refused = await sink.deliver(message("ask", "r_failed", "fail", synchronized=True))
        assert (refused.status, refused.summary) == ("FAILURE", "no way")
        assert (await sink.deliver(message("unknown", "r_unknown", "c"))).status == "FAILURE"
        run_id = own.port.execute("theirs", {"text": "e"})
        named = message("theirs", run_id, "e", RUN_ID=run_id)
        assert (await sink.deliver(named)).result == "delivered"
        assert "RUN_ID" in str((await sink.deliver(message("theirs", run_id, "e"))).summary)
        own.stack.gate.away = True
        with pytest.raises(RetryLaterError):
            await sink.deliver(message("greet", "r_later", "d"))
        own.stack.gate.reset()

    asyncio.run(deliver_all())
    own.stack.settle()
    assert own.marks("r_pulled") == ["1"]


def test_a_handler_cannot_read_the_process_that_started_it() -> None:
    # Whether a process may be read by others of its user is what PR_GET_DUMPABLE tells.
    script = (
        "import ctypes\n"
        "from pathlib import Path\n"
        "from port_webhook_handlers.runtime.aws import child\n"
        "from port_webhook_handlers.runtime.logs import Log\n"
        "run = {'run': {'id': 'r_1'}}\n"
        "nothing = lambda *_: None\n"
        "child.run(Path('none'), '', run, 60, nothing, nothing, Log(), credentials=False)\n"
        "print(ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "0"
