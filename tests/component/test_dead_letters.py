"""What `dead-letters retry` gives to Port again, from each form of a request."""

from typing import Any

import pytest

from port_webhook_stack.cli import dead_letters

FORM: dict[str, Any] = {"text": {"type": "string"}, "key": {"type": "string", "encryption": "aes256-gcm"}}
CART = {"identifier": "cart", "blueprint": "service"}


@pytest.mark.parametrize(
    "request_body",
    [
        {"port_context": {"action": "a", "runId": "r"}, "inputs": {"text": "x"}, "entity": CART},
        {
            "action": "a",
            "context": {"runId": "r", "entity": "cart"},
            "payload": {"entity": CART, "properties": {"text": "x"}},
        },
        {"text": "x", "port_context": {"runId": "r", "entity": "cart"}},
        {"text": "x", "port_context": {"run_id": "r", "entity": CART}},
    ],
)
def test_inputs_and_entity_of_a_request(request_body: dict[str, Any]) -> None:
    assert dead_letters._body(request_body, FORM) == {"properties": {"text": "x"}, "entity": "cart"}


@pytest.mark.parametrize(
    ("request_body", "problem"),
    [
        ({"text": "x"}, "form of its own"),
        ({"key": "x", "port_context": {"runId": "r"}}, "is encrypted"),
        ({"port_context": {"action": "a"}, "inputs": {"key": "x"}}, "is encrypted"),
    ],
)
def test_what_cannot_be_given_again(request_body: dict[str, Any], problem: str) -> None:
    with pytest.raises(dead_letters._NotRepeatableError, match=problem):
        dead_letters._body(request_body, FORM)
