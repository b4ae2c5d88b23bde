"""Permissions in a cluster, as handlers declare them."""

from __future__ import annotations

from typing import Any

import pytest

from port_webhook_handlers.sdk import Run, Success, action
from port_webhook_handlers.sdk.errors import HandlerDefinitionError
from port_webhook_handlers.sdk.handler import handler_of
from port_webhook_handlers.sdk.kubernetes import problem_with, rules

GOOD: dict[str, Any] = {
    "namespace": "shop",
    "group": "apps",
    "resources": ["deployments"],
    "names": ["cart"],
    "verbs": ["get", "patch"],
}


def test_exact_permissions_are_taken_as_they_are() -> None:
    assert problem_with([GOOD]) is None
    assert rules([{**GOOD, "verbs": ("get", "patch")}]) == [GOOD]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"verbs": ["*"]}, "cannot be bound to names"),
        ({"verbs": ["list"]}, "cannot be bound to names"),
        ({"verbs": []}, "at least one"),
        ({"resources": ["*"]}, "wildcards are not allowed"),
        ({"names": []}, "at least one"),
        ({"names": ["cart*"]}, "wildcards are not allowed"),
        ({"group": "*"}, "is no API group"),
        ({"namespace": "*"}, "is no namespace"),
        ({"kind": "Role"}, "must have the keys"),
    ],
)
def test_what_a_reviewer_could_not_sign_is_refused(change: dict[str, Any], part: str) -> None:
    assert part in str(problem_with([GOOD | change]))


def test_a_function_of_the_settings_is_checked_when_they_are_known() -> None:
    @action("a", kubernetes_permissions=lambda settings: [{**GOOD, "verbs": settings["verbs"]}])
    def handle(run: Run) -> Success:
        return Success()

    handler = handler_of(handle)
    assert handler.permissions_in("kubernetes", {"verbs": ["get"]}) == [GOOD | {"verbs": ["get"]}]
    with pytest.raises(HandlerDefinitionError, match=r"kubernetes_permissions\[0\].verbs: 'create'"):
        handler.permissions_in("kubernetes", {"verbs": ["create"]})
    assert handler.permissions_in("aws", {}) == []


def test_the_decorator_names_the_place() -> None:
    with pytest.raises(HandlerDefinitionError, match=r"@action 'a': kubernetes_permissions\[0\].names"):

        @action("a", kubernetes_permissions=[GOOD | {"names": ["*"]}])
        def handle(run: Run) -> Success:
            return Success()
