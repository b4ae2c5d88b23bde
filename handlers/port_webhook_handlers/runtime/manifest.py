"""The manifest of a bundle: what each route accepts and which function runs it.

Receiver, dispatcher and child start from this file alone; no handler module is imported to route, verify
or validate a request.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.port.payload import ENVELOPE, Payload

FILE_NAME: Final = "manifest.json"
VERSION: Final = 1

_KINDS: Final = ("action", "automation")
_METHODS: Final = ("POST", "PUT", "PATCH", "DELETE", "GET")
_MODES: Final = ("async", "sync")
_SCHEMES: Final = ("raw", "official-agent")
_ON_INTERRUPT: Final = ("fail", "retry")
_TARGET = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}")


class ManifestError(ValueError):
    """A manifest that cannot be used, or a bundle whose files are not those that its manifest names."""


@dataclass(frozen=True, slots=True)
class Route:
    """One action or automation that the listener accepts.

    Attributes:
        name: the last segment of the route's path, decoded.
        kind: `action` or `automation`.
        action: what a request must name, where its form does (`port_context.action` in the envelope).
        method: the one HTTP method accepted.
        mode: `async` (answered 202, reported later) or `sync` (the answer is the result).
        scheme: signature scheme, `raw` or `official-agent`.
        payload: where its requests hold the run id, the inputs and the rest.
        inputs_schema: JSON Schema (draft 7) of the user inputs.
        encrypted_inputs: names of the inputs that arrive encrypted.
        handler: `module:function`.
        timeout_seconds: the handler is killed after this time.
        privilege_group: handlers of one group may share credentials.
        on_interrupt: `fail` (started at most once) or `retry` (at least once).
        max_attempts: how often a run is started when it fails in a retryable way.
        max_concurrency: how many runs of this route may be running at once.
        secrets: names of the secrets that the handler gets.
        source: `file:line` of the handler, relative to the bundle.
    """

    name: str
    kind: str
    action: str
    handler: str
    method: str = "POST"
    mode: str = "async"
    scheme: str = "raw"
    payload: Payload = ENVELOPE
    inputs_schema: Mapping[str, Any] = field(default_factory=lambda: {"type": "object"})
    encrypted_inputs: tuple[str, ...] = ()
    timeout_seconds: float = 870
    privilege_group: str = "default"
    on_interrupt: str = "fail"
    max_attempts: int = 1
    max_concurrency: int = 10
    secrets: tuple[str, ...] = ()
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """The route as it stands in `manifest.json`, without its name."""
        body: dict[str, Any] = {}
        for item in fields(self):
            if item.name == "name":
                continue
            value = getattr(self, item.name)
            if isinstance(value, Payload):
                value = value.to_json()
            body[item.name] = list(value) if isinstance(value, tuple) else value
        return body


@dataclass(frozen=True, slots=True)
class Manifest:
    """Routes and files of a bundle.

    Attributes:
        files: path relative to the bundle, with `/`, to the SHA-256 of the file in hex.
        routes: route name to route.
    """

    files: Mapping[str, str]
    routes: Mapping[str, Route]

    def dumps(self) -> bytes:
        """Canonical JSON (sorted keys, no blanks, UTF-8): the content of `manifest.json`."""
        body = {
            "version": VERSION,
            "files": dict(self.files),
            "routes": {name: route.to_json() for name, route in self.routes.items()},
        }
        return json.dumps(
            body, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()

    @property
    def digest(self) -> str:
        """Digest of the bundle that this manifest describes."""
        return digest_of(self.dumps())


def digest_of(manifest_bytes: bytes) -> str:
    """Digest of a bundle: `sha256:` and the hash of its `manifest.json`."""
    return "sha256:" + hashlib.sha256(manifest_bytes).hexdigest()


def parse(data: bytes) -> Manifest:
    """Reads a manifest strictly.

    Raises:
        ManifestError: not JSON, or a key is unknown, missing or has a wrong value; the message names it.
    """
    try:
        body = json.loads(data)
    except ValueError as error:
        raise ManifestError(f"{FILE_NAME} is not JSON: {error}; build the bundle again") from error
    top = _object(body, FILE_NAME)
    _refuse_unknown(top, ("version", "files", "routes"), FILE_NAME)
    if top.get("version") != VERSION:
        raise ManifestError(
            f"{FILE_NAME}: version is {top.get('version')!r}, this listener reads {VERSION}; "
            "build the bundle with the same release"
        )
    files = _object(top.get("files"), "files")
    for path, digest in files.items():
        parts = path.split("/")
        if not path or path.startswith("/") or "\\" in path or any(part in ("", ".", "..") for part in parts):
            raise ManifestError(f"files: {path!r} is not a relative path inside the bundle")
        if not isinstance(digest, str) or not _SHA256.fullmatch(digest):
            raise ManifestError(f"files.{path}: {digest!r} is not a SHA-256 in hex")
    routes = _object(top.get("routes"), "routes")
    return Manifest(files, {name: _route(name, value) for name, value in routes.items()})


def load(bundle: Path) -> tuple[Manifest, str]:
    """Reads the manifest of a bundle folder; does not look at the other files.

    Returns:
        the manifest, and the digest of the bundle computed from the bytes on disk.

    Raises:
        ManifestError: no readable manifest there.
    """
    path = bundle / FILE_NAME
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read ({error.strerror}); build the bundle again") from error
    return parse(data), digest_of(data)


def hash_file(path: Path) -> str:
    """SHA-256 of a file in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify_files(bundle: Path, manifest: Manifest) -> None:
    """Checks that the bundle holds exactly the files that its manifest names.

    Raises:
        ManifestError: files are changed, missing or not listed; the message names the first few.
    """
    problems: list[str] = []
    for name, expected in manifest.files.items():
        path = bundle / name
        # A link could be pointed elsewhere after the check.
        if path.is_symlink() or not path.is_file():
            problems.append(f"{name} is missing")
        elif hash_file(path) != expected:
            problems.append(f"{name} is changed")
    for path in bundle.rglob("*"):
        if path.is_dir() and not path.is_symlink():
            continue
        name = path.relative_to(bundle).as_posix()
        if name != FILE_NAME and name not in manifest.files:
            problems.append(f"{name} is not in the manifest")
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ManifestError(f"bundle {bundle.name} differs from its manifest: {shown}; build it again")


def _route(name: str, value: object) -> Route:
    where = f"routes.{name}"
    body = _object(value, where)
    known = tuple(item.name for item in fields(Route) if item.name != "name")
    _refuse_unknown(body, known, where)
    missing = [key for key in known if key not in body]
    if missing:
        raise ManifestError(f"{where}: {', '.join(missing)} is missing; build the bundle again")
    if not name or name == "." or name == "..":
        raise ManifestError(f"{where}: a route needs a name")
    route = Route(
        name=name,
        kind=_choice(body, "kind", _KINDS, where),
        action=_text(body, "action", where),
        handler=_text(body, "handler", where),
        method=_choice(body, "method", _METHODS, where),
        mode=_choice(body, "mode", _MODES, where),
        scheme=_choice(body, "scheme", _SCHEMES, where),
        payload=_payload(body["payload"], f"{where}.payload"),
        inputs_schema=_object(body["inputs_schema"], f"{where}.inputs_schema"),
        encrypted_inputs=_texts(body, "encrypted_inputs", where),
        timeout_seconds=_number(body, "timeout_seconds", where),
        privilege_group=_text(body, "privilege_group", where),
        on_interrupt=_choice(body, "on_interrupt", _ON_INTERRUPT, where),
        max_attempts=_count(body, "max_attempts", where),
        max_concurrency=_count(body, "max_concurrency", where),
        secrets=_texts(body, "secrets", where),
        source=_text(body, "source", where, empty=True),
    )
    if not _TARGET.fullmatch(route.handler):
        raise ManifestError(f"{where}.handler: {route.handler!r} is not 'module:function'")
    return route


def _payload(value: object, where: str) -> Payload:
    body = _object(value, where)
    known = tuple(item.name for item in fields(Payload))
    _refuse_unknown(body, known, where)
    if missing := [key for key in known if key not in body]:
        raise ManifestError(f"{where}: {', '.join(missing)} is missing; build the bundle again")
    try:
        payload = Payload(**body)
    except ValueError as error:
        raise ManifestError(f"{where.removesuffix('.payload')}.{error}") from error
    # One object, so that the receiver knows the usual form by its identity.
    return ENVELOPE if payload == ENVELOPE else payload


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ManifestError(f"{where}: must be an object, not {type(value).__name__}")
    return value


def _refuse_unknown(body: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    unknown = sorted(set(body) - set(known))
    if unknown:
        raise ManifestError(f"{where}: unknown key {', '.join(unknown)}; known are {', '.join(known)}")


def _text(body: Mapping[str, Any], key: str, where: str, *, empty: bool = False) -> str:
    value = body[key]
    if not isinstance(value, str) or not (value or empty):
        raise ManifestError(f"{where}.{key}: must be a non-empty string, not {value!r}")
    return value


def _texts(body: Mapping[str, Any], key: str, where: str) -> tuple[str, ...]:
    value = body[key]
    if not isinstance(value, list) or not all(isinstance(item, str) and item for item in value):
        raise ManifestError(f"{where}.{key}: must be a list of non-empty strings, not {value!r}")
    return tuple(value)


def _choice(body: Mapping[str, Any], key: str, choices: tuple[str, ...], where: str) -> str:
    value = body[key]
    if value not in choices:
        raise ManifestError(f"{where}.{key}: {value!r} is not one of {', '.join(choices)}")
    return str(value)


def _number(body: Mapping[str, Any], key: str, where: str) -> float:
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < float("inf"):
        raise ManifestError(f"{where}.{key}: must be a number above zero, not {value!r}")
    return value


def _count(body: Mapping[str, Any], key: str, where: str) -> int:
    value = body[key]
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ManifestError(f"{where}.{key}: must be a whole number from 1, not {value!r}")
    return value
