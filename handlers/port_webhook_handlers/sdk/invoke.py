"""Runs one handler in the child process: a request in, messages out, the result last.

Request:

    {"run": {"id", "action", "blueprint", "entity", "trigger", "event", "attempt", "deadline",
             "idempotency_key"},
     "inputs": {…}, "handler": "module:function", "secrets": {…}, "settings": {…}}

Messages: `{"log": text}`, `{"progress": text}`, `{"link": url or urls}`, `{"summary": text}`,
`{"entity": {"op": "upsert" or "delete", "blueprint", "body", "ref"}}` and, exactly once and last,
`{"result": {"status", "summary", "link", "response", "retryable", "error_type"}}`.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from port_webhook_handlers.sdk.errors import InputError, RetryableError, SdkError
from port_webhook_handlers.sdk.handler import Handler, handler_of
from port_webhook_handlers.sdk.inputs import Form
from port_webhook_handlers.sdk.redaction import Redactor
from port_webhook_handlers.sdk.results import Failure, HandedOver, Result, Success
from port_webhook_handlers.sdk.run import Message, Run, Send, check_size, shortened
from port_webhook_handlers.sdk.values import to_json

_RESULTS = (Success, Failure, HandedOver)
_NO_SECRETS = Redactor(())
# Those that ran in this process before.
_handlers: dict[str, Handler] = {}

_STATUS = {Success: "SUCCESS", Failure: "FAILURE", HandedOver: "HANDED_OVER"}


def run_request(request: Mapping[str, Any], send: Send) -> None:
    """Imports the handler of a request, runs it and sends what it reports, the result last.

    Whatever the handler raises becomes a FAILURE with the type and message of the error; its traceback is
    written to standard error, for the listener's log only.

    Args:
        request: as above; inputs that arrived encrypted are plain here.
        send: takes one message; may be called from several threads, one at a time.
    """
    try:
        handler = _handlers.get(request["handler"]) or _find(request["handler"])
    except Exception as error:  # noqa: BLE001 - a handler's module may raise anything
        redactor = Redactor(_secret_texts(request.get("secrets")))
        _log_traceback(redactor)
        send({"result": redactor.json(_failure(error, f"cannot load {request.get('handler')}: "))})
        return
    run_handler(handler, request, send)


def run_handler(handler: Handler, request: Mapping[str, Any], send: Send) -> None:
    """Runs a handler that is imported already; otherwise as `run_request`."""
    inputs = request.get("inputs") or {}
    secrets = request.get("secrets") or {}
    redactor = _NO_SECRETS
    encrypted = handler.form.encrypted
    if secrets or encrypted:
        hidden = [inputs.get(key) for key in encrypted if isinstance(inputs, Mapping)]
        redactor = Redactor([*_secret_texts(secrets), *(text for text in hidden if isinstance(text, str))])
    try:
        run = Run(
            request["run"],
            send,
            secrets=secrets,
            settings=request.get("settings"),
            declared_secrets=handler.secrets,
            redactor=redactor,
        )
    except Exception as error:  # noqa: BLE001 - exactly one result, whatever the request holds
        _log_traceback(redactor)
        send({"result": redactor.json(_failure(error, "the request cannot be run: "))})
        return
    try:
        result = _call(handler, inputs, run)
        message = _message(result)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - a handler may raise anything
        _log_traceback(redactor)
        message = _failure(error)
    run._end({"result": message})


def _find(target: str) -> Handler:
    module_name, _, path = target.partition(":")
    found: Any = importlib.import_module(module_name)
    for name in path.split("."):
        found = getattr(found, name)
    return _handlers.setdefault(target, handler_of(found))


def _call(handler: Handler, inputs: Mapping[str, Any], run: Run) -> Result | None:
    arguments: dict[str, object] = {}
    for name, kind in handler.parameters.items():
        if kind is Run:
            arguments[name] = run
        else:
            _check_decrypted(handler.form, inputs)
            arguments[name] = kind.from_json(inputs)  # type: ignore[attr-defined]
    result = handler.function(**arguments)
    if result is not None and not isinstance(result, _RESULTS):
        if inspect.isawaitable(result):
            import asyncio

            async def wait() -> Any:
                return await result

            result = asyncio.run(wait())
        if result is not None and not isinstance(result, _RESULTS):
            raise TypeError(
                f"the handler returned {type(result).__name__}; "
                "return Success(…), Failure(…), HandedOver(…) or None"
            )
    if isinstance(result, HandedOver) and handler.mode == "sync":
        raise TypeError("a synchronous run ends with its answer; hand over in mode async")
    return result


def _check_decrypted(form: Form, inputs: Mapping[str, Any]) -> None:
    """Holds decrypted inputs against the rules that the receiver could not check."""
    if not form.encrypted:
        return
    import fastjsonschema

    properties = form.schema(encrypted=False)["properties"]
    for key in form.encrypted:
        value = inputs.get(key)
        if value is None:
            continue
        schema = properties[key]
        if "object" in schema["type"] and isinstance(value, str):
            import json

            try:
                value = json.loads(value)
            except ValueError:
                raise InputError(f"inputs.{key}", "must be an object in JSON") from None
        try:
            fastjsonschema.compile(schema)(value)
        except fastjsonschema.JsonSchemaValueException as error:
            raise InputError(f"inputs.{key}", error.message.removeprefix("data").lstrip()) from None


def _message(result: Result | None) -> Message:
    result = result or Success()
    response = None if isinstance(result, HandedOver) else to_json(result.response, "response")
    check_size(response, "the response")
    return {
        "status": _STATUS[type(result)],
        "summary": None if result.summary is None else shortened(str(result.summary)),
        "link": to_json(result.link, "link"),
        "response": response,
        "retryable": False,
        "error_type": None,
    }


def _failure(error: BaseException, prefix: str = "") -> Message:
    name = type(error).__name__
    text = str(error) or "no message"
    if isinstance(error, SystemExit):
        text = f"the handler ended its process (exit {error.code}); return a result instead"
    # Errors of the SDK are written to be read alone.
    summary = f"{prefix}{text}" if isinstance(error, SdkError) else f"{prefix}{name}: {text}"
    return {
        "status": "FAILURE",
        "summary": shortened(summary),
        "link": None,
        "response": None,
        "retryable": isinstance(error, RetryableError),
        "error_type": name,
    }


def _log_traceback(redactor: Redactor) -> None:
    sys.stderr.write(redactor.text(traceback.format_exc()))
    sys.stderr.flush()


def _secret_texts(secrets: object) -> list[str]:
    return (
        [value for value in secrets.values() if isinstance(value, str)]
        if isinstance(secrets, Mapping)
        else []
    )
