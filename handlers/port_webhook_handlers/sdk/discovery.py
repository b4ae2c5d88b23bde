"""Finds the handlers of a bundle; runs in an interpreter of its own, with the bundle first on its path."""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

from port_webhook_handlers.sdk.definition import definition, route
from port_webhook_handlers.sdk.errors import HandlerDefinitionError, SettingError
from port_webhook_handlers.sdk.handler import ATTRIBUTE, Handler

_RUNTIME = "port_webhook_handlers"
_CLOUDS: Final[tuple[Literal["aws"], Literal["kubernetes"]]] = ("aws", "kubernetes")


class DiscoveryError(Exception):
    """The bundle's modules declare no usable set of handlers; the message names file and line."""


def main(root: str, output: str, settings: str, modules: Sequence[str]) -> None:
    """Writes what was found, or the error, as JSON to the file `output`.

    Standard output is not used: the modules may print to it.

    Args:
        root: folder of the bundle.
        output: file to write.
        settings: file with the settings of all handlers, JSON.
        modules: importable names.
    """
    try:
        found = discover(Path(root), modules, json.loads(Path(settings).read_text(encoding="utf-8")))
    except DiscoveryError as error:
        found = {"error": str(error)}
    Path(output).write_text(json.dumps(found), encoding="utf-8")


def discover(root: Path, modules: Sequence[str], settings: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Routes, definitions and permissions of all handlers in the modules, by identifier.

    Args:
        root: folder of the bundle; file names in messages are relative to it.
        modules: importable names; of a package, all its modules count.
        settings: by handler; those under `*` are given to every handler.

    Raises:
        DiscoveryError: a module cannot be imported, or two handlers have one identifier, or none is found.
    """
    found: dict[str, Handler] = {}
    targets: dict[str, str] = {}
    for name in modules:
        before = len(found)
        for module in _with_submodules(root, name):
            for attribute, handler in _handlers_in(module):
                other = found.setdefault(handler.identifier, handler)
                if other is not handler:
                    raise DiscoveryError(
                        f"{_place(root, handler)} and {_place(root, other)} both declare {handler.identifier!r}; "
                        "rename one of them"
                    )
                targets.setdefault(handler.identifier, f"{module.__name__}:{attribute}")
        if len(found) == before and not any(_within(target, name) for target in targets.values()):
            raise DiscoveryError(
                f"{name} declares no handler; decorate a function with @action or @automation"
            )
    return {
        "routes": {
            name: route(handler, _place(root, handler)) | {"handler": targets[name]}
            for name, handler in found.items()
        },
        "definitions": {name: definition(handler) for name, handler in found.items() if handler.manage},
        "permissions": {
            name: dict(handler.permissions)
            for name, handler in found.items()
            if handler.permissions is not None
        },
        **{f"{target}_permissions": _granted(root, target, found, settings) for target in _CLOUDS},
    }


def _granted(
    root: Path,
    target: Literal["aws", "kubernetes"],
    handlers: Mapping[str, Handler],
    settings: Mapping[str, Mapping[str, Any]],
) -> dict[str, list[dict[str, Any]]]:
    """Permissions of the handlers that have some, by identifier."""
    granted = {}
    for name, handler in handlers.items():
        own = {**settings.get("*", {}), **settings.get(name, {})}
        try:
            granted[name] = handler.permissions_in(target, own)
        except SettingError as error:
            raise DiscoveryError(f"handlerSettings of {name}: {error}") from error
        except HandlerDefinitionError as error:
            raise DiscoveryError(f"{_place(root, handler)}: {error.problem}") from error
    return {name: permissions for name, permissions in granted.items() if permissions}


def _with_submodules(root: Path, name: str) -> Iterator[ModuleType]:
    module = _import(root, name)
    yield module
    for part in pkgutil.iter_modules(getattr(module, "__path__", ())):
        if part.name != "__main__":
            yield from _with_submodules(root, f"{name}.{part.name}")


def _within(target: str, module: str) -> bool:
    return target.startswith((f"{module}:", f"{module}."))


def _handlers_in(module: ModuleType) -> Iterator[tuple[str, Handler]]:
    for attribute, value in vars(module).items():
        handler = getattr(value, ATTRIBUTE, None)
        # What a module merely imports from another belongs to that other.
        if isinstance(handler, Handler) and handler.function.__module__ == module.__name__:
            yield attribute, handler


def _import(root: Path, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except HandlerDefinitionError as error:
        file = _relative(root, error.location.file) or error.location.file
        raise DiscoveryError(f"{file}:{error.location.line}: {error.problem}") from error
    except SyntaxError as error:
        file = _relative(root, error.filename or "") or name
        raise DiscoveryError(f"{file}:{error.lineno}: {type(error).__name__}: {error.msg}") from error
    except BaseException as error:
        place = _deepest(root, error) or name
        raise DiscoveryError(f"{place}: {type(error).__name__}: {error}{_remedy(error)}") from error


def _remedy(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError):
        return (
            "; modules of your own go into one package folder together with the handler, "
            "others must be installed where the listener runs"
        )
    return ""


def _deepest(root: Path, error: BaseException) -> str | None:
    """The last line of the bundle's own modules that led to the error."""
    own = [
        (file, frame.lineno)
        for frame in traceback.extract_tb(error.__traceback__)
        if (file := _relative(root, frame.filename)) and not file.startswith(f"{_RUNTIME}/sdk/")
    ]
    return f"{own[-1][0]}:{own[-1][1]}" if own else None


def _place(root: Path, handler: Handler) -> str:
    file = _relative(root, handler.location.file) or Path(handler.location.file).name
    return f"{file}:{handler.location.line}"


def _relative(root: Path, file: str) -> str | None:
    path = Path(file)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else None


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])
