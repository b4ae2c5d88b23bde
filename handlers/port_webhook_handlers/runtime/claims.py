"""What receiver and outbox need of a ledger, whatever store is behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from port_webhook_handlers.runtime.secret_file import StoredSecrets


class LedgerError(Exception):
    """Nothing was stored: the store is full, failing or out of reach, or another process holds it."""


@dataclass(slots=True)
class Answer:
    """What a request was answered, so that a repeat gets the same.

    Attributes:
        status: HTTP status.
        body: JSON value.
    """

    status: int
    body: Any


@dataclass(frozen=True, slots=True)
class Claim:
    """Outcome of a claim.

    Attributes:
        new: this request was the first with its run id.
        same: route and body equal those of the first request.
        state: `queued`, `running`, `reporting` or `done`.
        owner: the process that runs or reports it; None while nobody does.
        answer: the first request's answer where it is not the plain acceptance, if it is known by now.
        executions: how often a probe was executed.
    """

    new: bool
    same: bool
    state: str
    owner: str | None
    answer: Answer | None
    executions: int


@dataclass(frozen=True, slots=True)
class Report:
    """One thing to tell Port about a run; reports of a run are sent in the order of `seq`."""

    seq: int
    kind: str
    body: dict[str, Any]


class Claims(Protocol):
    """Where the receiver claims runs."""

    async def claim(
        self,
        run_id: str,
        route: str,
        mode: str,
        body_hash: bytes,
        payload: bytes,
        *,
        refusal: Answer | None = None,
        failure: dict[str, Any] | None = None,
    ) -> Claim:
        """Takes the place of a run, or tells who has it; durable when it returns.

        Args:
            run_id: Port's run id.
            route: name of the route.
            mode: `async`, `sync` or `probe`.
            body_hash: hash of the canonical body.
            payload: the body.
            refusal: the run is not to be executed; this is its answer.
            failure: the report that ends a refused run.

        Raises:
            LedgerError: nothing was stored.
        """
        ...

    async def lookup(self, run_id: str, route: str, body_hash: bytes) -> Claim | None:
        """The claim that a request would meet; None if the run id is unknown."""
        ...


class Reports(Protocol):
    """Where the outbox finds what Port has not heard yet."""

    async def reports(self, run_id: str, limit: int = 50) -> list[Report]:
        """The next reports of a run, in order."""
        ...

    async def reported(self, run_id: str, seqs: Sequence[int], note: str = "") -> None:
        """Removes reports that Port took or refused for good, and notes a refusal."""
        ...

    async def notes(self, run_id: str) -> list[str]:
        """Refusals noted for a run."""
        ...

    async def close_run(self, run_id: str) -> None:
        """A reported run has ended: nothing is left to do for it."""
        ...

    async def unreported(self) -> list[str]:
        """Runs that have something to report."""
        ...


class CurrentSecrets(Protocol):
    """A secrets store that may be written while it is read."""

    @property
    def content(self) -> StoredSecrets:
        """Its content now."""
        ...


class SigningSecrets(Protocol):
    """The secrets that requests may be signed with."""

    def signing(self, now: float) -> Sequence[bytes]:
        """Those in force at `now` (seconds since the epoch)."""
        ...

    def refresh(self) -> bool:
        """Looks for new ones; whether there may be some."""
        ...
