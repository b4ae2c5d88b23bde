"""Synchronous runs of this process, which are answered without a coroutine."""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.unit.runtime.kit import envelope
from tests.unit.runtime.test_receiver import Bench, bench, sign

from port_webhook_handlers.runtime.claims import Answer
from port_webhook_handlers.runtime.receiver import Invocation, Response

BODY = envelope("ask", "r_1", text="a")
Then = Callable[[Answer, bytes], None]


@dataclass
class Handler:
    """Stands for the dispatcher: keeps the runs that began until `end`."""

    bench: Bench
    begun: list[tuple[Invocation, Then]] = field(default_factory=list)

    def begin(self, invocation: Invocation, seconds: float, then: Then) -> None:
        self.begun.append((invocation, then))

    def end(self) -> None:
        invocation, then = self.begun[-1]
        text = b'{"number":%d}' % len(self.begun)
        answer = Answer(200, json.loads(text))
        self.bench.ledger.answer_soon(invocation.run_id, 200, text, lambda error: then(answer, text))


@dataclass
class Quick:
    """A receiver with a quick executor."""

    bench: Bench
    handler: Handler

    def post(self, body: bytes) -> asyncio.Future[Response]:
        answer: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        assert self.bench.receiver.serve("POST", "/webhooks/ask", sign(body), body, answer.set_result)
        return answer

    async def begun(self, count: int) -> None:
        async with asyncio.timeout(10):
            while len(self.handler.begun) < count:
                await asyncio.sleep(0.001)


def run(folder: Path, scenario: Callable[[Quick], Any]) -> None:
    async def main() -> None:
        async with bench(folder) as b:
            handler = Handler(b)
            b.receiver._quick = (b.ledger, handler)
            await scenario(Quick(b, handler))

    asyncio.run(main())


def test_a_repeat_gets_the_first_answer_before_and_after_it_is_there(tmp_path: Path) -> None:
    async def scenario(quick: Quick) -> None:
        first = quick.post(BODY)
        await quick.begun(1)
        repeats = [quick.post(BODY) for _ in range(3)]
        done, _ = await asyncio.wait([first, *repeats], timeout=0.05)
        assert not done
        quick.handler.end()
        answers = [await first, *[await repeat for repeat in repeats], await quick.post(BODY)]
        assert [(answer.status, answer.body) for answer in answers] == [(200, b'{"number":1}')] * 5
        assert len(quick.handler.begun) == 1

    run(tmp_path, scenario)


def test_refusals_are_answered_at_once(tmp_path: Path) -> None:
    async def scenario(quick: Quick) -> None:
        other = quick.post(envelope("ask", "r_1", text=1))
        assert (other.done(), other.result().status) == (True, 422)
        quick.post(BODY)
        await quick.begun(1)
        assert (await quick.post(envelope("ask", "r_1", text="b"))).status == 409
        quick.handler.end()

    run(tmp_path, scenario)


def test_nothing_starts_that_is_not_stored(tmp_path: Path) -> None:
    async def scenario(quick: Quick) -> None:
        await quick.bench.ledger.close()
        assert (await quick.post(BODY)).status == 503
        assert quick.handler.begun == []

    run(tmp_path, scenario)


def test_other_routes_are_left_to_coroutines(tmp_path: Path) -> None:
    async def scenario(quick: Quick) -> None:
        for path in ("/health", "/webhooks/deploy", "/webhooks/_verification", "/nothing"):
            assert not quick.bench.receiver.serve("POST", path, sign(BODY), BODY, lambda response: None)

    run(tmp_path, scenario)
