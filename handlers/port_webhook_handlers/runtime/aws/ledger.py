"""The record of runs in a DynamoDB table: one item a run, every change a conditional write.

| state | meaning |
|---|---|
| `running` | started; whoever started it may work on it until its lease ends |
| `queued` | to be started again |
| `reporting` | ended, with its last report in the item until Port has taken it |
| `done` | nothing is left to do |

Items disappear by the table's time to live. The table is encrypted at rest.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from port_webhook_handlers.runtime.aws.api import AwsApi, AwsError
from port_webhook_handlers.runtime.claims import Answer, Claim, LedgerError

DEAD_INDEX: Final = "dead-letters"
INTERRUPTED: Final = Answer(
    500,
    {
        "error": "interrupted",
        "message": "The first request of this run was interrupted; its outcome is unknown.",
    },
)

_CONDITION: Final = "ConditionalCheckFailedException"
_DAY: Final = 86_400
_MAX_NOTES: Final = 10


@dataclass(frozen=True, slots=True)
class Item:
    """A run as the table has it.

    Attributes:
        run_id, route, mode, state: as in the table above.
        body_hash: of the canonical body, in hex.
        attempt: how often it was started.
        holder: who started it last.
        lease: seconds since the epoch until which the holder may be at work.
        final: the last report of a run that has ended.
        answer: status and body of a synchronous run's answer.
        answer_until: seconds since the epoch.
        executions: of a probe.
        notes: reports that Port refused.
        reported: the last report that Port has dealt with.
        dead: why nobody could run it; "" otherwise.
        accepted_at: seconds since the epoch.
    """

    run_id: str
    route: str = ""
    mode: str = "async"
    state: str = ""
    body_hash: str = ""
    attempt: int = 0
    holder: str = ""
    lease: float = 0
    final: dict[str, Any] | None = None
    answer: list[Any] | None = None
    answer_until: float = 0
    executions: int = 0
    notes: tuple[str, ...] = ()
    reported: int = 0
    dead: str = ""
    accepted_at: float = 0


class DynamoLedger:
    """The ledger of a listener on AWS.

    Args:
        api: calls to AWS.
        table: name of the table.
        retention_days: how long a run is remembered.
        clock: seconds since the epoch.
    """

    def __init__(
        self, api: AwsApi, table: str, retention_days: float, clock: Callable[[], float] = time.time
    ) -> None:
        self._api = api
        self._table = table
        self._retention = retention_days * _DAY
        self._clock = clock

    def get(self, run_id: str) -> Item | None:
        """A run, as it is after every write that was answered before."""
        found = self._call("GetItem", {"Key": _key(run_id), "ConsistentRead": True}).get("Item")
        return None if found is None else _item(found)

    # Claims of the receiver

    def claim(self, run_id: str, route: str, mode: str, body_hash: str, holder: str, seconds: float) -> Claim:
        """Takes the place of a synchronous run or a probe, or tells who has it.

        Args:
            mode: `sync` or `probe`.
            holder: unique to this request.
            seconds: how long it may be worked on.
        """
        now = self._clock()
        values = {
            "run_id": run_id,
            "route": route,
            "mode": mode,
            "body_hash": body_hash,
            "state": "running" if mode == "sync" else "done",
            "holder": holder,
            "lease": now + seconds,
            "accepted_at": now,
            "updated_at": now,
            "expires": int(now + self._retention),
        }
        put = {"Item": _values(values), "ConditionExpression": "attribute_not_exists(run_id)"}
        new = self._conditionally("PutItem", put) is not None
        item = Item(run_id, route, mode, str(values["state"]), body_hash, holder=holder)
        if not new:
            item = self.get(run_id) or item
            # The first attempt of this very call may have been stored and its answer lost.
            new = item.holder == holder
        if new and mode == "probe":
            # The probe's whole work: a second execution would be seen.
            item = self._change(run_id, "ADD executions :one", {":one": 1}) or item
        return self._seen(item, route, body_hash, new)

    def lookup(self, run_id: str, route: str, body_hash: str) -> Claim | None:
        """The claim that a request would meet; None if the run id is unknown."""
        item = self.get(run_id)
        return None if item is None else self._seen(item, route, body_hash, new=False)

    def answer(self, run_id: str, answer: Answer, seconds: float) -> None:
        """Ends a synchronous run with its answer, which is kept for some seconds."""
        now = self._clock()
        values = {
            ":done": "done",
            ":answer": json.dumps([answer.status, answer.body], separators=(",", ":")),
            ":until": now + seconds,
            ":now": now,
        }
        self._change(
            run_id, "SET #state = :done, answer = :answer, answer_until = :until, updated_at = :now", values
        )

    def _seen(self, item: Item, route: str, body_hash: str, new: bool) -> Claim:
        same = item.route == route and item.body_hash == body_hash
        answer = None
        state = item.state
        if item.answer is not None and self._clock() <= item.answer_until:
            answer = Answer(*item.answer)
        elif not new and item.mode == "sync" and state == "running" and item.lease < self._clock():
            state, answer = "done", INTERRUPTED
        return Claim(new, same, state, item.holder or None, answer, item.executions)

    # Execution

    def start(
        self, run_id: str, route: str, body_hash: str, holder: str, lease: float, accepted_at: float
    ) -> int:
        """Marks an unknown or queued run as running.

        Args:
            holder: unique to this start.
            lease: seconds since the epoch.
            accepted_at: seconds since the epoch.

        Returns:
            how often it was started, from 1; 0 if it is in another state, or another run has its id.
        """
        now = self._clock()
        values = {
            ":running": "running",
            ":queued": "queued",
            ":route": route,
            ":mode": "async",
            ":hash": body_hash,
            ":holder": holder,
            ":lease": lease,
            ":accepted": accepted_at,
            ":now": now,
            ":expires": int(now + self._retention),
            ":one": 1,
        }
        item = self._change(
            run_id,
            "SET #state = :running, route = :route, #mode = :mode, body_hash = :hash, holder = :holder, lease = :lease,"
            " accepted_at = if_not_exists(accepted_at, :accepted), updated_at = :now, expires = :expires"
            " ADD attempt :one",
            values,
            "attribute_not_exists(run_id) OR (#state = :queued AND route = :route AND body_hash = :hash)",
            {"#mode": "mode"},
        )
        return 0 if item is None else item.attempt

    def take_over(self, item: Item, holder: str, lease: float) -> int:
        """Starts a run again whose holder has gone.

        Returns:
            how often it was started; 0 if somebody else was faster.
        """
        values = {":running": "running", ":old": item.holder, ":holder": holder, ":lease": lease, ":one": 1}
        found = self._change(
            item.run_id,
            "SET holder = :holder, lease = :lease ADD attempt :one",
            values,
            "#state = :running AND holder = :old",
        )
        return 0 if found is None else found.attempt

    def requeue(self, run_id: str, holder: str) -> None:
        """Lets a run start again."""
        values = {":queued": "queued", ":running": "running", ":holder": holder, ":now": self._clock()}
        self._change(
            run_id,
            "SET #state = :queued, updated_at = :now REMOVE holder, lease",
            values,
            "#state = :running AND holder = :holder",
        )

    def finish(self, run_id: str, final: Mapping[str, Any], holder: str) -> bool:
        """Ends a run: its last report is in the table until Port has taken it.

        Args:
            holder: who may end it; with "" whoever started it, or nobody.

        Returns:
            False if it had ended before, or somebody else holds it.
        """
        now = self._clock()
        values = {
            ":reporting": "reporting",
            ":final": json.dumps(final, separators=(",", ":")),
            ":now": now,
            ":expires": int(now + self._retention),
            ":running": "running",
            ":queued": "queued",
            **({":holder": holder} if holder else {}),
        }
        condition = "#state IN (:running, :queued)" + (" AND holder = :holder" if holder else "")
        change = "SET #state = :reporting, last_report = :final, updated_at = :now, expires = :expires REMOVE holder, lease"
        return self._change(run_id, change, values, condition) is not None

    def refuse(self, run_id: str, route: str, body_hash: str, final: Mapping[str, Any]) -> Item:
        """Remembers a run that ends without having been started; the item tells what it is now."""
        now = self._clock()
        values = {
            "run_id": run_id,
            "route": route,
            "mode": "async",
            "body_hash": body_hash,
            "state": "reporting",
            "last_report": json.dumps(final, separators=(",", ":")),
            "accepted_at": now,
            "updated_at": now,
            "expires": int(now + self._retention),
        }
        put = {"Item": _values(values), "ConditionExpression": "attribute_not_exists(run_id)"}
        if self._conditionally("PutItem", put) is None:
            found = self.get(run_id)
            if found is not None:
                return found
        return Item(run_id, route, "async", "reporting", body_hash, final=dict(final), accepted_at=now)

    def bury(self, run_id: str, reason: str, payload: bytes) -> None:
        """Keeps the request of a run that nobody could run, for `dead-letters list`."""
        values: dict[str, Any] = {
            ":dead": "1",
            ":reason": reason[:1000],
            ":payload": payload,
            ":now": self._clock(),
        }
        self._change(
            run_id, "SET dead = :dead, reason = :reason, payload = :payload, updated_at = :now", values
        )

    # Reports

    def reported(self, run_id: str, seq: int, note: str = "") -> None:
        """Remembers how far Port has been told, and what it refused."""
        values: dict[str, Any] = {":seq": seq, ":none": [], ":note": [note] if note else []}
        self._change(
            run_id, "SET reported = :seq, notes = list_append(if_not_exists(notes, :none), :note)", values
        )

    def close(self, run_id: str) -> None:
        """A reported run has ended: nothing is left to do for it."""
        now = self._clock()
        values = {
            ":done": "done",
            ":reporting": "reporting",
            ":now": now,
            ":expires": int(now + self._retention),
        }
        self._change(
            run_id,
            "SET #state = :done, updated_at = :now, expires = :expires REMOVE last_report",
            values,
            "#state = :reporting",
        )

    # Calls

    def _change(
        self,
        run_id: str,
        change: str,
        values: Mapping[str, Any],
        condition: str = "attribute_exists(run_id)",
        names: Mapping[str, str] | None = None,
    ) -> Item | None:
        """The item after a change; None if the condition does not hold."""
        used = {**(names or {}), **({"#state": "state"} if "#state" in change + condition else {})}
        body = {
            "Key": _key(run_id),
            "UpdateExpression": change,
            "ConditionExpression": condition,
            "ExpressionAttributeValues": _values(values),
            "ReturnValues": "ALL_NEW",
            **({"ExpressionAttributeNames": used} if used else {}),
        }
        answer = self._conditionally("UpdateItem", body)
        return None if answer is None else _item(answer["Attributes"])

    def _conditionally(self, operation: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
        try:
            return self._call(operation, body)
        except _ConditionError:
            return None

    def _call(self, operation: str, body: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return self._api.call("dynamodb", operation, {"TableName": self._table, **body})
        except AwsError as error:
            if error.code == _CONDITION:
                raise _ConditionError from None
            raise LedgerError(f"ledger {self._table}: {error}") from error


class _ConditionError(Exception):
    pass


def _key(run_id: str) -> dict[str, Any]:
    return {"run_id": {"S": run_id}}


def _values(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _value(value) for name, value in plain.items()}


def _value(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"S": value}
    if isinstance(value, bytes):
        from base64 import b64encode

        return {"B": b64encode(value).decode()}
    if isinstance(value, list):
        return {"L": [_value(item) for item in value]}
    return {"N": repr(value)}


def _item(found: Mapping[str, Mapping[str, Any]]) -> Item:
    text = {name: str(value["S"]) for name, value in found.items() if "S" in value}
    number = {name: float(value["N"]) for name, value in found.items() if "N" in value}
    notes = found.get("notes", {}).get("L", [])
    return Item(
        run_id=text["run_id"],
        route=text.get("route", ""),
        mode=text.get("mode", "async"),
        state=text.get("state", ""),
        body_hash=text.get("body_hash", ""),
        attempt=int(number.get("attempt", 0)),
        holder=text.get("holder", ""),
        lease=number.get("lease", 0),
        final=json.loads(text["last_report"]) if "last_report" in text else None,
        answer=json.loads(text["answer"]) if "answer" in text else None,
        answer_until=number.get("answer_until", 0),
        executions=int(number.get("executions", 0)),
        notes=tuple(str(item["S"]) for item in notes)[:_MAX_NOTES],
        reported=int(number.get("reported", 0)),
        dead=text.get("reason", "") if "dead" in text else "",
        accepted_at=number.get("accepted_at", 0),
    )
