"""The local secrets store under rotation: what stays valid, for how long, and what counts as a change."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from port_webhook_handlers.runtime.secret_file import StoredSecrets
from port_webhook_stack.port.handler import Context
from port_webhook_stack.secrets_store.local_handler import (
    LocalSecretsStoreHandler,
    end_previous,
    secret_file,
)

HANDLER = LocalSecretsStoreHandler()


@dataclass
class Stack:
    """One stack's store, written as `up` would."""

    ctx: Context
    state: dict[str, Any] = field(default_factory=dict)

    def up(self, *signing: Any, client_id: str = "org", overlap: float = 3600) -> bool:
        """Whether there was something to do."""
        values = [item if isinstance(item, dict) else {"value": item} for item in signing]
        inputs = {
            "signing": values,
            "api": {"clientId": client_id, "clientSecret": values[0]["value"]},
            "decryption": [values[0]["value"]],
            "secrets": {},
            "overlapSeconds": overlap,
        }
        if not self.state:
            self.state = HANDLER.create(self.ctx, inputs, preview=False).outputs
            return True
        if not HANDLER.diff(self.ctx, "secrets-store", self.state, inputs).changes:
            return False
        self.state = HANDLER.update(self.ctx, "secrets-store", self.state, inputs, preview=False)
        return True

    @property
    def stored(self) -> StoredSecrets:
        return secret_file(self.ctx.state_dir).read()

    def accepted(self, seconds_from_now: float = 0) -> list[str]:
        return self.stored.active_signing(time.time() + seconds_from_now)


@pytest.fixture
def stack(tmp_path: Path) -> Stack:
    class Here:
        state_dir = tmp_path / "state"

    stack = Stack(cast("Context", Here()))
    stack.up("secret-one")
    return stack


def test_a_replaced_secret_stays_valid_for_the_overlap(stack: Stack) -> None:
    assert stack.up("secret-two")
    assert stack.accepted() == ["secret-two", "secret-one"]
    assert stack.accepted(3590) == ["secret-two", "secret-one"]
    assert stack.accepted(3610) == ["secret-two"]
    assert stack.up("secret-two") is False


def test_two_rotations_in_a_row(stack: Stack) -> None:
    stack.up("secret-two")
    stack.up("secret-three", overlap=60)
    assert stack.accepted() == ["secret-three", "secret-two", "secret-one"]
    assert stack.accepted(70) == ["secret-three", "secret-one"]
    # Back to an earlier one: it is not listed twice.
    stack.up("secret-one")
    assert stack.accepted() == ["secret-one", "secret-three", "secret-two"]


def test_without_overlap_it_ends_at_once(stack: Stack) -> None:
    stack.up("secret-two", overlap=0)
    assert stack.accepted() == ["secret-two"]


def test_another_organisation_is_no_rotation(stack: Stack) -> None:
    stack.up("secret-two", client_id="another")
    assert stack.accepted() == ["secret-two"]


def test_an_end_that_was_set_before_is_not_put_off(stack: Stack) -> None:
    stack.up("secret-two", {"value": "secret-one", "notAfter": "2000-01-01T00:00:00Z"})
    stack.up("secret-three")
    assert stack.accepted() == ["secret-three", "secret-two"]


def test_the_end_can_be_set_afterwards_and_is_no_change(stack: Stack) -> None:
    stack.up("secret-two")
    assert end_previous(stack.ctx.state_dir, time.time() + 60) == 1
    assert stack.accepted(50) == ["secret-two", "secret-one"]
    assert stack.accepted(70) == ["secret-two"]
    assert stack.up("secret-two") is False
    assert end_previous(stack.ctx.state_dir, 0) == 1
    assert stack.accepted() == ["secret-two"]
    assert end_previous(stack.ctx.state_dir, 0) == 0
    assert stack.up("secret-two") is False


def test_a_lost_file_is_written_again(stack: Stack) -> None:
    secret_file(stack.ctx.state_dir).delete()
    assert stack.up("secret-one")
    assert stack.accepted() == ["secret-one"]
