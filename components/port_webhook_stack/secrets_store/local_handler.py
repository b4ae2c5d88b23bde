"""The provider's side of the local secrets store."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime.secret_file import (
    ApiCredentials,
    SecretFile,
    SecretFileError,
    SigningSecret,
    StoredSecrets,
)
from port_webhook_stack.port import ownership
from port_webhook_stack.port.handler import (
    UNKNOWN,
    CheckResult,
    Context,
    CreateResult,
    Diff,
    Failure,
    Kind,
    Properties,
    ProviderError,
    ReadResult,
    has_unknown,
)

_INPUTS = ("signing", "api", "decryption", "secrets")


def secret_file(state_dir: Path) -> SecretFile:
    """The store of a stack, with its key in the user's state folder: a copy of the clone has not got it."""
    base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = hashlib.sha256(str(state_dir).encode()).hexdigest()[:24]
    return SecretFile(_folder(state_dir) / "store", base / "port-webhook-stack" / f"{name}.key")


def _folder(state_dir: Path) -> Path:
    return state_dir / "secrets"


def end_previous(state_dir: Path, not_after: float) -> int:
    """Ends the signing secrets of before a rotation at `not_after` (seconds since the epoch), now if that is past.

    The listener notices by itself; what is deployed does not change.

    Returns:
        how many there were.

    Raises:
        SecretFileError: there is no store, or it cannot be opened.
    """
    file = secret_file(state_dir)
    content = file.read()
    previous = tuple(replace(item, not_after=not_after) for item in content.previous)
    if previous:
        file.write(replace(content, previous=previous if not_after > time.time() else ()))
    return len(previous)


class LocalSecretsStoreHandler:
    """Writes the encrypted file; a lost or changed one is written again by the next `up`."""

    schema: Mapping[str, Any] = {
        "description": "Secrets of the listener on this machine, in an encrypted file.",
        "inputProperties": {
            "signing": {
                "type": "array",
                "secret": True,
                "items": {"$ref": "pulumi.json#/Any"},
                "description": "Secrets that Port signs with: value, notAfter.",
            },
            "api": {
                "type": "object",
                "secret": True,
                "additionalProperties": {"type": "string"},
                "description": "clientId and clientSecret for reports to Port.",
            },
            "decryption": {
                "type": "array",
                "secret": True,
                "items": {"type": "string"},
                "description": "Keys of encrypted inputs, tried in order.",
            },
            "secrets": {
                "type": "object",
                "secret": True,
                "additionalProperties": {"type": "string"},
                "description": "Values for handlers, by name.",
            },
            "overlapSeconds": {
                "type": "number",
                "description": "How long a signing secret that was replaced stays valid.",
            },
        },
        "requiredInputs": ["signing", "api"],
        "properties": {
            "version": {"type": "string", "description": "Changes with the content."},
            "owner": {"type": "string", "description": "Tells it from a successor in the same folder."},
        },
        "required": ["version", "owner"],
    }
    secrets = frozenset(_INPUTS)

    def check(self, ctx: Context, news: Properties, olds: Properties) -> CheckResult:
        inputs = {"decryption": [], "secrets": {}, **news}
        if has_unknown(inputs):
            return CheckResult(inputs)
        try:
            _stored(inputs)
        except (SecretFileError, ValueError, KeyError, TypeError) as error:
            return CheckResult(inputs, [Failure("signing", f"cannot be stored: {type(error).__name__}")])
        return CheckResult(inputs)

    def diff(self, ctx: Context, id: str, olds: Properties, news: Properties) -> Diff:
        changes = {name: Kind.UPDATE for name in _INPUTS if olds.get(name) != news.get(name)}
        if not changes and _present_version(ctx) != olds.get("version"):
            changes["version"] = Kind.UPDATE
        return Diff(changes)

    def create(self, ctx: Context, inputs: Properties, preview: bool) -> CreateResult:
        state = self._write(ctx, inputs, preview)
        owner = UNKNOWN if preview else ownership.take(_folder(ctx.state_dir))
        return CreateResult("" if preview else "secrets-store", {**state, "owner": owner})

    def read(self, ctx: Context, id: str, state: Properties, inputs: Properties) -> ReadResult | None:
        version = _present_version(ctx)
        return None if version is None else ReadResult(id, {**state, "version": version}, inputs)

    def update(self, ctx: Context, id: str, olds: Properties, news: Properties, preview: bool) -> Properties:
        return {**self._write(ctx, news, preview), "owner": olds.get("owner")}

    def delete(self, ctx: Context, id: str, state: Properties) -> None:
        if ownership.owns(_folder(ctx.state_dir), state.get("owner")):
            secret_file(ctx.state_dir).delete(with_key=True)
            shutil.rmtree(_folder(ctx.state_dir), ignore_errors=True)

    def _write(self, ctx: Context, inputs: Properties, preview: bool) -> Properties:
        if preview:
            return {**inputs, "version": UNKNOWN}
        file, content = secret_file(ctx.state_dir), _stored(inputs)
        try:
            previous = _previous(file, content, float(inputs.get("overlapSeconds", 0)))
            file.write(replace(content, previous=previous))
            return {**inputs, "version": _version(file, content)}
        except SecretFileError as error:
            raise ProviderError(str(error)) from error


def _stored(inputs: Properties) -> StoredSecrets:
    signing = [
        SigningSecret(str(item["value"]), _seconds(item.get("notAfter"))) for item in inputs["signing"]
    ]
    api = ApiCredentials(str(inputs["api"]["clientId"]), str(inputs["api"]["clientSecret"]))
    content = StoredSecrets(tuple(signing), api, tuple(inputs["decryption"]), dict(inputs["secrets"]))
    return StoredSecrets.from_json(content.to_json())


def _previous(file: SecretFile, content: StoredSecrets, overlap_seconds: float) -> tuple[SigningSecret, ...]:
    """Signing secrets that `content` replaces: Port may have signed with them a moment ago.

    None if the API's client id is another: that is another organisation, not a rotation.
    """
    try:
        present = file.read()
    except SecretFileError:
        return ()
    ids = {item.api.client_id for item in (present, content) if item.api is not None}
    if len(ids) > 1:
        return ()
    now = time.time()
    kept = {item.value for item in content.signing}
    found = []
    for item in (*present.signing, *present.previous):
        ends = now + overlap_seconds if item in present.signing else item.not_after
        not_after = min(ends or now, item.not_after or float("inf"))
        if item.value not in kept and not_after > now:
            kept.add(item.value)
            found.append(SigningSecret(item.value, not_after))
    return tuple(found)


def _seconds(not_after: str | None) -> float | None:
    return None if not_after is None else datetime.fromisoformat(not_after).timestamp()


def _version(file: SecretFile, content: StoredSecrets) -> str:
    # What a rotation leaves behind comes and goes by itself, so it is no change to deploy.
    content = replace(content, previous=())
    # Keyed, so that nobody can try guesses of a secret against the version in the state.
    canonical = json.dumps(content.to_json(), sort_keys=True, separators=(",", ":")).encode()
    return hmac.digest(file.key(), canonical, "sha256").hex()[:24]


def _present_version(ctx: Context) -> str | None:
    file = secret_file(ctx.state_dir)
    try:
        return _version(file, file.read())
    except SecretFileError:
        return None
