"""Lint of definition files: findings with the lines on which they stand, for people and for machines."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from port_webhook_handlers.port.definitions import DefinitionError, definition_from_body
from port_webhook_handlers.port.lint import Finding, lint
from port_webhook_stack.cli.formats import Format
from port_webhook_stack.definition_files import FileDefinition, find, read


@dataclass(frozen=True)
class Located:
    """A finding and where it stands.

    Attributes:
        file: as the user would write it.
        line: from 1.
    """

    finding: Finding
    file: str
    line: int


@dataclass(frozen=True)
class Report:
    """What lint found in so many definitions."""

    findings: Sequence[Located]
    definitions: int

    @property
    def errors(self) -> int:
        return sum(item.finding.severity == "error" for item in self.findings)

    def summary(self) -> str:
        """One line for people."""
        warnings = len(self.findings) - self.errors
        return (
            f"{_count(self.definitions, 'definition')}: {_count(self.errors, 'error')}, "
            f"{_count(warnings, 'warning')}"
        )


def examine(paths: Iterable[str], disable: Collection[str], folder: Path) -> Report:
    """Lints all definitions of files, folders and globs as one set.

    Args:
        folder: where relative paths start.

    Raises:
        DefinitionFileError: a file cannot be read.
        ValueError: `disable` names a rule that does not exist.
    """
    definitions = [definition for file in find(paths, folder) for definition in read(file)]
    typed, found = [], []
    for number, definition in enumerate(definitions):
        try:
            # The number leads from a finding back to its definition, whose identifier may be wrong.
            typed.append(definition_from_body(definition.body).replace(source=str(number)))
        except DefinitionError:
            found += [
                _locate(finding, definition, folder) for finding in lint([definition.body], disable=disable)
            ]
    for finding in lint(typed, disable=disable):
        if finding.source is not None:
            found.append(_locate(finding, definitions[int(finding.source)], folder))
    return Report(sorted(found, key=lambda item: (item.file, item.line)), len(definitions))


def render(report: Report, form: Format) -> str:
    """The findings as text to print."""
    if form is Format.json:
        return json.dumps([_record(item) for item in report.findings], indent=2, ensure_ascii=False)
    line = _annotation if form is Format.github else _text
    return "\n".join(line(item) for item in report.findings)


def _locate(finding: Finding, definition: FileDefinition, folder: Path) -> Located:
    file = definition.file
    shown = file.relative_to(folder) if file.is_relative_to(folder) else file
    return Located(finding, str(shown), definition.line(finding.path))


def _record(item: Located) -> dict[str, object]:
    finding = item.finding
    return {
        "rule": finding.rule,
        "severity": finding.severity,
        "file": item.file,
        "line": item.line,
        "definition": finding.definition,
        "path": finding.path,
        "message": finding.message,
        "remedy": finding.remedy,
    }


def _text(item: Located) -> str:
    finding = item.finding
    where = ": ".join(part for part in (finding.definition, finding.path) if part)
    return f"{item.file}:{item.line}: {where}: {finding.message}; {finding.remedy} [{finding.rule} {finding.severity}]"


def _annotation(item: Located) -> str:
    finding = item.finding
    where = ": ".join(part for part in (finding.definition, finding.path) if part)
    place = f"file={_property(item.file)},line={item.line},title={finding.rule}"
    return f"::{finding.severity} {place}::{_data(f'{where}: {finding.message}; {finding.remedy}')}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
