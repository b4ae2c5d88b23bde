import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.unit.runtime.kit import ROUTES, SECRET, envelope, route, signature, write_secrets

from port_webhook_handlers.port.payload import Payload
from port_webhook_handlers.runtime.claims import Answer, LedgerError
from port_webhook_handlers.runtime.config import Limits
from port_webhook_handlers.runtime.confirmation import Confirm
from port_webhook_handlers.runtime.ledger import Ledger
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.manifest import Manifest, Route
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.receiver import Headers, Invocation, Receiver, Response
from port_webhook_handlers.runtime.secret_file import LiveSecrets, SecretFile, SigningSecret, StoredSecrets

ALL_ROUTES = (
    *ROUTES,
    route("agent", scheme="official-agent"),
    route("put", method="PUT"),
    route("foreign", payload=Payload(run_id="context.runId", inputs="inputs")),
    route("name with/odd ✓", handler="app:work"),
    route("on_change", kind="automation", handler="app:work"),
)


@dataclass
class Recorder:
    """Stands for the dispatcher."""

    ledger: Ledger
    started: list[tuple[str, str]] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    answers: int = 0
    hold: asyncio.Event | None = None

    def accepted(self, run_id: str, route: str) -> None:
        self.started.append((run_id, route))

    def refused(self, run_id: str) -> None:
        self.ended.append(run_id)

    async def answer(self, invocation: Invocation, seconds: float) -> Answer:
        self.answers += 1
        if self.hold is not None:
            await self.hold.wait()
        answer = Answer(200, {"echo": invocation.body["inputs"], "number": self.answers})
        await self.ledger.answer(invocation.run_id, answer)
        return answer

    async def fail_now(self, run_id: str, summary: str) -> None:
        self.failed.append(run_id)


@dataclass
class Bench:
    receiver: Receiver
    recorder: Recorder
    ledger: Ledger
    store: SecretFile
    log: Path

    async def post(self, name: str, body: bytes, headers: Headers | None = None, method: str = "POST") -> Any:
        response = await self.raw(f"/webhooks/{name}", body, headers, method)
        return response.status, json.loads(response.body)

    async def raw(
        self, path: str, body: bytes, headers: Headers | None = None, method: str = "POST"
    ) -> Response:
        return await self.receiver.handle(method, path, sign(body) if headers is None else headers, body)


def sign(body: bytes, secret: str = SECRET, at: float | None = None, scale: int = 1) -> Headers:
    timestamp = str(int((time.time() if at is None else at) * scale))
    return [
        (b"x-port-timestamp", timestamp.encode()),
        (b"x-port-signature", signature(body, timestamp, secret).encode()),
    ]


@asynccontextmanager
async def bench(
    folder: Path, routes: tuple[Route, ...] = ALL_ROUTES, confirm: Confirm | None = None
) -> AsyncIterator[Bench]:
    folder.mkdir(parents=True, exist_ok=True)
    store = write_secrets(folder)
    ledger = Ledger(folder / "ledger.db", store.key(), "1:1.0:test")
    ledger.open()
    recorder = Recorder(ledger)
    manifest = Manifest({}, {item.name: item for item in routes})
    with (folder / "log").open("wb") as stream:
        receiver = Receiver(
            manifest,
            "sha256:digest",
            "nonce",
            LiveSecrets(store),
            ledger,
            recorder,
            Limits(),
            Log(stream.fileno()),
            Metrics(),
            confirm=confirm,
        )
        try:
            yield Bench(receiver, recorder, ledger, store, folder / "log")
        finally:
            await ledger.close()


def run(folder: Path, scenario: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        async with bench(folder) as built:
            await scenario(built)

    asyncio.run(main())


def test_a_signed_run_is_accepted_once(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        body = envelope("work", "r_1", text="a")
        expected = (202, {"accepted": True, "runId": "r_1"})
        assert await b.post("work", body) == expected
        assert await b.post("work", body) == expected
        reordered = json.dumps(dict(reversed(json.loads(body).items())), indent=1).encode()
        assert await b.post("work", reordered) == expected, "blanks and order do not make another request"
        assert b.recorder.started == [("r_1", "work")]
        status, answer = await b.post("work", envelope("work", "r_1", text="b"))
        assert (status, answer["error"]) == (409, "run_id_reused")
        assert await b.ledger.queued() == [("r_1", "work")]

    run(tmp_path, scenario)


def test_concurrent_repeats_start_one_run(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        body = envelope("work", "r_1", text="a")
        answers = await asyncio.gather(*(b.post("work", body) for _ in range(50)))
        assert {status for status, _ in answers} == {202}
        assert b.recorder.started == [("r_1", "work")]

    run(tmp_path, scenario)


BODY = envelope("work", "r_1", text="a")


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        (list, 401, "missing_signature"),
        (lambda: sign(BODY)[:1], 401, "missing_signature"),
        (lambda: sign(BODY)[1:], 401, "missing_timestamp"),
        (lambda: [*sign(BODY), sign(BODY)[1]], 400, "duplicate_header"),
        (lambda: [*sign(BODY), sign(BODY)[0]], 400, "duplicate_header"),
        (lambda: sign(BODY, "another-secret"), 401, "bad_signature"),
        (lambda: sign(BODY + b" "), 401, "bad_signature"),
        (lambda: sign(BODY, at=time.time() - 400), 401, "stale_timestamp"),
        (lambda: sign(BODY, at=time.time() + 400), 401, "stale_timestamp"),
        (lambda: [sign(BODY)[0], (b"x-port-signature", b"v1,")], 400, "malformed_signature"),
        (
            lambda: [sign(BODY)[0], (b"x-port-signature", b"v2" + sign(BODY)[1][1][2:])],
            400,
            "malformed_signature",
        ),
        (lambda: [sign(BODY)[0], (b"x-port-signature", b"\xff\xfe\x00")], 400, "malformed_signature"),
        (lambda: [(b"x-port-timestamp", b"1e9"), sign(BODY)[1]], 400, "malformed_timestamp"),
        (
            lambda: [(b"x-port-timestamp", "１７０００００００0".encode()), sign(BODY)[1]],
            400,
            "malformed_timestamp",
        ),
        (lambda: [(b"x-port-timestamp", b" " + sign(BODY)[0][1]), sign(BODY)[1]], 400, "malformed_timestamp"),
    ],
)
def test_a_request_that_is_not_ports(
    tmp_path: Path, headers: Callable[[], Headers], status: int, reason: str
) -> None:
    async def scenario(b: Bench) -> None:
        for name in ("work", "ask", "no_such_route", "_verification"):
            found, answer = await b.post(name, BODY, headers())
            assert (found, answer["error"]) == (status, reason), name
            assert set(answer) == {"error", "message"}
        assert b.recorder.started == []
        assert await b.ledger.queued() == []

    run(tmp_path, scenario)


def test_milliseconds_are_understood(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        assert (await b.post("work", BODY, sign(BODY, scale=1000)))[0] == 202

    run(tmp_path, scenario)


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"", 400, "invalid_json"),
        (b"{", 400, "invalid_json"),
        (b"[]", 400, "not_an_object"),
        (b'"x"', 400, "not_an_object"),
        (b'{"a":1,"a":2}', 400, "duplicate_key"),
        (b'{"a":NaN}', 400, "number_out_of_range"),
        (b'{"a":1e999}', 400, "number_out_of_range"),
        (b"\xff", 400, "invalid_utf8"),
        (b'{"a":"\\ud800"}', 400, "lone_surrogate"),
        (b"[" * 1000 + b"]" * 1000, 400, "too_deep"),
        (b"{}", 403, "wrong_route"),
        (b'{"port_context":1}', 403, "wrong_route"),
        (b'{"port_context":{"action":"greet","runId":"r_1"},"inputs":{"text":""}}', 403, "wrong_route"),
        (b'{"port_context":{"action":["work"],"runId":"r_1"}}', 403, "wrong_route"),
        (b'{"port_context":{"action":"work"}}', 400, "missing_run_id"),
        (b'{"port_context":{"action":"work","runId":null}}', 400, "missing_run_id"),
        (b'{"port_context":{"action":"work","runId":7}}', 400, "invalid_run_id"),
        (b'{"port_context":{"action":"work","runId":""}}', 400, "invalid_run_id"),
        (b'{"port_context":{"action":"work","runId":"../x"}}', 400, "invalid_run_id"),
        (b'{"port_context":{"action":"work","runId":"r_1\\n"}}', 400, "invalid_run_id"),
    ],
)
def test_a_signed_body_that_is_no_invocation(tmp_path: Path, body: bytes, status: int, reason: str) -> None:
    async def scenario(b: Bench) -> None:
        found, answer = await b.post("work", body)
        assert (found, answer["error"]) == (status, reason)
        assert b.recorder.started == []

    run(tmp_path, scenario)


def test_one_method_for_each_route(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        body = envelope("put", "r_1", text="a")
        response = await b.raw("/webhooks/put", body)
        assert (response.status, response.headers) == (405, ((b"allow", b"PUT"),))
        assert (await b.post("put", body, method="PUT"))[0] == 202
        assert (await b.post("put", body, [], method="GET"))[1]["error"] == "missing_signature"

    run(tmp_path, scenario)


def test_a_route_is_found_however_its_name_is_encoded(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        for number, path in enumerate(("name%20with%2Fodd%20%E2%9C%93", "n%61me%20with%2fodd%20%e2%9c%93")):
            assert (await b.post(path, envelope("name with/odd ✓", f"r_{number}", text="a")))[0] == 202
        assert (await b.post("%FF", BODY))[0] == 404
        assert (await b.raw("/elsewhere", BODY)).status == 404
        assert (await b.raw("/", b"", [])).status == 404

    run(tmp_path, scenario)


def test_a_foreign_definition_names_its_run_id(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        body = b'{"context":{"runId":"r_1"},"inputs":{"text":"a"}}'
        assert await b.post("foreign", body) == (202, {"accepted": True, "runId": "r_1"})
        other = b'{"context":{"runId":"r_2"},"port_context":{"action":"work"},"inputs":{"text":"a"}}'
        assert (await b.post("foreign", other))[0] == 403
        assert (await b.post("foreign", BODY))[0] == 403

    run(tmp_path, scenario)


def test_the_schemes_do_not_replace_one_another(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        compact = envelope("agent", "r_1", text="é")
        spaced = json.dumps(json.loads(compact)).encode()
        as_agent = sign(json.dumps(json.loads(compact), separators=(",", ":")).encode())
        assert (await b.post("agent", spaced, as_agent))[0] == 202
        assert (await b.post("agent", compact))[1]["error"] == "malformed_body"
        for_raw = json.dumps(json.loads(BODY)).encode()
        assert (await b.post("work", for_raw, sign(BODY)))[1]["error"] == "bad_signature"

    run(tmp_path, scenario)


def test_bad_inputs_of_an_asynchronous_run_end_it(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        body = envelope("work", "r_1", count=0, colour="red")
        status, answer = await b.post("work", body)
        assert status == 202
        assert answer["accepted"] is False
        assert answer["error"] == "invalid_inputs"
        assert set(answer["fields"]) == {"text", "count", "colour"}
        assert answer["fields"]["count"].startswith("must be")
        assert await b.post("work", body) == (status, answer)
        assert b.recorder.started == []
        assert b.recorder.ended == ["r_1"]
        (report,) = await b.ledger.reports("r_1")
        assert report.kind == "final"
        assert report.body["status"] == "FAILURE"
        for name in ("text", "count", "colour"):
            assert name in report.body["summary"]

    run(tmp_path, scenario)


def test_bad_inputs_of_a_synchronous_run_are_the_answer(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        status, answer = await b.post("ask", envelope("ask", "r_1", text=1))
        assert (status, answer["error"]) == (422, "invalid_inputs")
        assert answer["fields"] == {"text": "must be string"}
        assert b.recorder.answers == 0

    run(tmp_path, scenario)


def test_values_of_inputs_are_neither_answered_nor_logged(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        _, answer = await b.post(
            "work", envelope("work", "r_1", text="hidden-value" * 50, other="hidden-value")
        )
        assert answer["fields"]
        assert "hidden-value" not in json.dumps(answer)

    run(tmp_path, scenario)
    assert "hidden-value" not in (tmp_path / "log").read_text()


def test_an_automation_has_no_inputs(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        body = json.dumps(
            {"port_context": {"action": "on_change", "runId": "r_1"}, "event": {"action": "UPDATE"}}
        ).encode()
        assert (await b.post("on_change", body))[0] == 202

    run(tmp_path, scenario)


def test_an_unknown_action_is_answered_and_ended(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        status, answer = await b.post("gone", envelope("gone", "r_1"))
        assert (status, answer["error"]) == (404, "unknown_route")
        assert b.recorder.ended == ["r_1"]
        status, answer = await b.post("gone", BODY)
        assert (status, answer["error"]) == (404, "unknown_route")
        assert b.recorder.ended == ["r_1"], "a body of another action must not end that action's run"

    run(tmp_path, scenario)


@pytest.mark.parametrize("reason", ["stopping", "overloaded"])
def test_what_cannot_be_served_now(tmp_path: Path, reason: str) -> None:
    async def scenario(b: Bench) -> None:
        setattr(b.receiver, reason, True)
        status, answer = await b.post("work", BODY)
        assert (status, answer["accepted"], answer["error"]) == (202, False, reason)
        assert b.recorder.ended == ["r_1"]
        status, answer = await b.post("ask", envelope("ask", "r_2", text="a"))
        assert (status, answer["error"]) == (503, reason)

    run(tmp_path, scenario)


def test_what_cannot_be_stored_is_failed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def full(*args: Any, **options: Any) -> Any:
        raise LedgerError("nothing was stored: database or disk is full")

    async def scenario(b: Bench) -> None:
        assert (await b.post("work", BODY))[0] == 202
        monkeypatch.setattr(b.ledger, "claim", full)
        status, answer = await b.post("work", envelope("work", "r_2", text="a"))
        assert (status, answer["error"]) == (503, "not_stored")
        assert (await b.post("work", BODY))[0] == 202, "a repeat needs no place"
        assert b.recorder.failed == ["r_2"]
        assert (await b.post("ask", envelope("ask", "r_3", text="a")))[0] == 503
        assert b.recorder.failed == ["r_2"], "the status of a synchronous run is not set"

    run(tmp_path, scenario)


def test_a_repeated_synchronous_request_waits_for_the_first_answer(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        b.recorder.hold = asyncio.Event()
        body = envelope("ask", "r_1", text="a")
        requests = [asyncio.ensure_future(b.post("ask", body)) for _ in range(5)]
        await asyncio.sleep(0.05)
        assert not any(request.done() for request in requests)
        b.recorder.hold.set()
        answers = await asyncio.gather(*requests)
        assert answers == [(200, {"echo": {"text": "a"}, "number": 1})] * 5
        assert await b.post("ask", body) == answers[0]
        assert (await b.post("ask", envelope("ask", "r_1", text="b")))[0] == 409
        await b.ledger.purge(answers_before=time.time() + 1, claims_before=0)
        assert (await b.post("ask", body))[1]["error"] == "answer_expired"
        assert b.recorder.answers == 1

    run(tmp_path, scenario)


def test_a_lost_connection_does_not_end_a_synchronous_run(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        b.recorder.hold = asyncio.Event()
        body = envelope("ask", "r_1", text="a")
        request = asyncio.ensure_future(b.post("ask", body))
        while b.recorder.answers == 0:
            await asyncio.sleep(0.001)
        request.cancel()
        b.recorder.hold.set()
        assert await b.post("ask", body) == (200, {"echo": {"text": "a"}, "number": 1})

    run(tmp_path, scenario)


def test_probes_are_executed_once(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        expected = (200, {"digest": "sha256:digest", "executions": 1})
        for body in (envelope("_verification", "v_1"), envelope("_verification", "v_2")):
            assert [await b.post("_verification", body) for _ in range(3)] == [expected] * 3
        assert (await b.post("_verification", envelope("_verification", "v_1", x=1)))[0] == 409
        assert (await b.post("_verification", BODY))[0] == 403
        assert (await b.post("_verification", envelope("_verification", "v_3"), method="PUT"))[0] == 405
        agent = json.dumps(json.loads(envelope("_verification", "v_4"))).encode()
        assert await b.post("_verification", agent, sign(envelope("_verification", "v_4"))) == expected
        assert b.recorder.started == []

    run(tmp_path, scenario)


def test_health(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        response = await b.raw("/health", b"", [], method="GET")
        assert (response.status, json.loads(response.body)) == (
            200,
            {"status": "ok", "nonce": "nonce", "digest": "sha256:digest"},
        )
        assert (await b.raw("/health", b"", [])).status == 405

    run(tmp_path, scenario)


def test_secrets_are_rotated_without_a_restart(tmp_path: Path) -> None:
    async def scenario(b: Bench) -> None:
        async def works(secret: str, run_id: str) -> bool:
            body = envelope("work", run_id, text="a")
            return bool((await b.post("work", body, sign(body, secret)))[0] == 202)

        assert [await works(SECRET, "r_1"), await works("new-secret", "r_2")] == [True, False]
        ends = time.time() + 0.3
        b.store.write(StoredSecrets((SigningSecret("new-secret"), SigningSecret(SECRET, ends))))
        assert [await works(SECRET, "r_3"), await works("new-secret", "r_4")] == [True, True]
        while time.time() <= ends:
            await asyncio.sleep(0.02)
        assert [await works(SECRET, "r_5"), await works("new-secret", "r_6")] == [False, True]
        b.store.path.write_bytes(b"broken")
        assert await works("new-secret", "r_7"), "a store that is half written does not turn requests away"
        b.store.write(StoredSecrets())
        number = 8
        while await works("new-secret", f"r_{number}"):
            number += 1
            await asyncio.sleep(0.02)
        assert number < 100

    run(tmp_path, scenario)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    headers=st.lists(
        st.tuples(
            st.sampled_from([b"x-port-signature", b"x-port-timestamp", b"host", b"x-other"]),
            st.binary(max_size=80) | st.sampled_from([b"v1,", b"v1,AA==", b"1700000000", b"nan", b"-1"]),
        ),
        max_size=5,
    ),
    body=st.binary(max_size=200) | st.sampled_from([BODY, b"{}", b"[" * 5000]),
    path=st.sampled_from(
        ["/webhooks/work", "/webhooks/ask", "/webhooks/", "/webhooks/%", "/webhooks/_verification"]
    )
    | st.text(max_size=30),
    method=st.sampled_from(["GET", "POST", "PUT", "X"]),
)
def test_no_garbage_is_answered_with_a_server_error(
    tmp_path: Path, headers: list[tuple[bytes, bytes]], body: bytes, path: str, method: str
) -> None:
    async def main() -> None:
        async with bench(tmp_path / "garbage") as built:
            response = await built.receiver.handle(method, path, headers, body)
            assert 400 <= response.status < 500
            assert set(json.loads(response.body)) == {"error", "message"}

    asyncio.run(main())


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["port_context", "action", "runId", "inputs", "text", "x"]), inner
            )
        ),
        max_leaves=12,
    )
)
def test_no_signed_garbage_is_answered_with_a_server_error(tmp_path: Path, body: Any) -> None:
    async def main() -> None:
        async with bench(tmp_path / "garbage") as built:
            for name in ("work", "ask", "foreign", "_verification", "unknown"):
                status, _ = await built.post(name, json.dumps(body).encode())
                assert 200 <= status < 500

    asyncio.run(main())
