"""Reads the settings of bundled handlers: whatever is wrong is named with its key and a remedy."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.sdk import Run, SettingError

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")


class Options:
    """One map of the settings, such as `hosts.api.example.com`.

    Args:
        values: the map, as the stack file holds it.
        where: its place, for errors.

    Raises:
        SettingError: it is no map.
    """

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, Mapping):
            raise SettingError(f"{where}: must be a map of settings; correct it in handlerSettings")
        self._values: Mapping[str, Any] = values
        self._where = where
        self._taken: set[str] = set()

    def text(self, key: str, default: str | None = None) -> str:
        """A text that is not empty, required unless it has a default."""
        value = self._take(key, default)
        if not isinstance(value, str) or (not value and default != ""):
            raise self.error(key, "must be a text that is not empty")
        return value

    def choice(self, key: str, choices: tuple[str, ...], default: str) -> str:
        """One of some words."""
        value = self._take(key, default)
        if value not in choices:
            raise self.error(key, f"must be one of {', '.join(choices)}")
        return str(value)

    def flag(self, key: str) -> bool:
        """True or false, by default false."""
        value = self._take(key, False)
        if not isinstance(value, bool):
            raise self.error(key, "must be true or false")
        return value

    def number(self, key: str, default: float, *, lowest: float, highest: float) -> float:
        """A number within bounds, inclusive."""
        value = self._take(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not lowest <= value <= highest:
            raise self.error(key, f"must be a number from {lowest:g} to {highest:g}")
        return value

    def whole(self, key: str, default: int, *, lowest: int, highest: int) -> int:
        """A whole number within bounds, inclusive."""
        value = self.number(key, default, lowest=lowest, highest=highest)
        if not isinstance(value, int):
            raise self.error(key, "must be a whole number")
        return value

    def texts(self, key: str, default: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """A list of texts, not empty, required unless it has a default."""
        value = self._take(key, default)
        if value == default and default is not None:
            return default
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            raise self.error(key, "must be a list of texts, at least one")
        return tuple(value)

    def mapping(self, key: str) -> Mapping[str, Any]:
        """A map of any values, by default an empty one."""
        value = self._take(key, {})
        if not isinstance(value, Mapping):
            raise self.error(key, "must be a map")
        return value

    def words(self, key: str) -> dict[str, str]:
        """A map of texts, by default an empty one."""
        value = self.mapping(key)
        if not all(isinstance(item, str) for item in value.values()):
            raise self.error(key, "must map names to texts")
        return dict(value)

    def part(self, key: str) -> Options | None:
        """A map within this one; None if it is missing."""
        value = self._take(key, None)
        return None if value is None else Options(value, f"{self._where}.{key}")

    def end(self) -> None:
        """Refuses what nobody has asked for: a misspelt setting must not be silently without effect."""
        if unknown := sorted(set(map(str, self._values)) - self._taken):
            raise self.error(unknown[0], f"unknown key; remove it (known: {', '.join(sorted(self._taken))})")

    def error(self, key: str, problem: str) -> SettingError:
        """The error for a key."""
        return SettingError(f"{self._where}.{key}: {problem}")

    def _take(self, key: str, default: Any) -> Any:
        self._taken.add(key)
        return self._values.get(key, default)


def own(run: Run, keys: Sequence[str]) -> Options:
    """The settings that a handler has at the top.

    Args:
        run: whose action the errors name, because several handlers may read the same keys.
        keys: all that it knows; those of every handler stand beside them, so that others are no mistake.
    """
    return Options({key: run.settings[key] for key in keys if key in run.settings}, run.action)


def folders(settings: Mapping[str, Any]) -> tuple[Path, Path]:
    """Folders of the stack's state and of the project.

    Raises:
        SettingError: the listener gives no folder.
    """
    state = settings.get("state_dir")
    if not isinstance(state, str) or not Path(state).is_absolute():
        raise SettingError("state_dir: the listener gives no folder for the state; start it with one")
    # The state of a stack is <project>/.state/<stack>.
    return Path(state), Path(settings.get("project_dir", str(Path(state).parent.parent)))


def entry(settings: Mapping[str, Any], section: str, name: str, remedy: str) -> Options:
    """The settings of one named thing.

    Args:
        settings: of the handler.
        section: key of the map of all of them.
        name: which one.
        remedy: what to write if there is none.

    Raises:
        SettingError: there is none of that name.
    """
    entries = settings.get(section)
    if not isinstance(entries, Mapping) or name not in entries:
        known = ", ".join(sorted(map(str, entries))) if isinstance(entries, Mapping) and entries else "none"
        raise SettingError(
            f"{section}.{name}: is not in the settings of this handler (known: {known}); {remedy}"
        )
    return Options(entries[name], f"{section}.{name}")


def fill(template: str, values: Mapping[str, Any], where: str) -> str:
    """Puts values in place of `{name}` and `{name.key}`; everything else stays as it is.

    Unlike `str.format` it reaches no attribute of an object, and values are not templates themselves.

    Args:
        template: the text.
        values: JSON by name; null becomes an empty text.
        where: the template's setting, for the error.

    Raises:
        SettingError: the template names something that does not exist.
    """

    def value(match: re.Match[str]) -> str:
        found: Any = values
        for key in match[1].split("."):
            if isinstance(found, Mapping) and key in found:
                found = found[key]
            elif isinstance(found, list) and key.isdecimal() and int(key) < len(found):
                found = found[int(key)]
            else:
                raise SettingError(f"{where}: {{{match[1]}}} does not exist; known here: {_names(values)}")
        if isinstance(found, bool):
            return str(found).lower()
        return "" if found is None else str(found)

    return _PLACEHOLDER.sub(value, template)


def _names(values: Mapping[str, Any]) -> str:
    return ", ".join(sorted(values)[:20]) or "nothing"
