"""Definitions in JSON and YAML files: read as data, with the lines on which they stand.

YAML is read by the rules of version 1.2, which are JSON's: `on`, `yes` and dates are text, not booleans and times.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

SUFFIXES = (".json", ".yaml", ".yml")

_STEP = re.compile(r"""\.?([A-Za-z_$][\w$-]*)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]|\["((?:[^"\\]|\\.)*)"\]""")

Steps = tuple[str | int, ...]


class DefinitionFileError(ValueError):
    """A file of definitions that cannot be read; the message names the file, the line and the remedy."""


@dataclass(frozen=True)
class FileDefinition:
    """One definition of a file.

    Attributes:
        body: the action or automation; anything at all if the file holds something else.
        file: where it was found.
        place: steps from the top of the file down to the body; the first one is the number of the YAML document.
    """

    body: Any
    file: Path
    place: Steps = (0,)

    @property
    def source(self) -> str:
        """File and line, for messages."""
        return f"{self.file}:{self.line()}"

    def line(self, path: str = "") -> int:
        """The line (from 1) of a path below the definition, or of the nearest part of it that is there."""
        number, *steps = (*self.place, *path_steps(path))
        documents = _nodes(self.file)
        node = documents[number] if isinstance(number, int) and number < len(documents) else None
        line = node.start_mark.line + 1 if node else 1
        for step in steps:
            if isinstance(node, yaml.MappingNode):
                pair = next((pair for pair in node.value if pair[0].value == str(step)), None)
                if pair is None:
                    break
                line, node = pair[0].start_mark.line + 1, pair[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line + 1
            else:
                break
        return line


def find(patterns: Iterable[str], folder: Path) -> list[Path]:
    """The files that paths, folders and globs mean; a folder stands for all files below it.

    Raises:
        DefinitionFileError: one of them matches nothing, or a file of another kind.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        path = folder / pattern
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES and file.is_file())
        elif path.exists():
            files = [path]
        else:
            files = sorted(file for file in _glob(pattern, folder) if file.is_file())
        if not files:
            raise DefinitionFileError(f"{pattern} matches no file with definitions; check the path")
        for file in files:
            if file.suffix not in SUFFIXES:
                raise DefinitionFileError(f"{file} is no definition file; name it {' or '.join(SUFFIXES)}")
            found[file] = None
    return list(found)


def read(file: Path) -> list[FileDefinition]:
    """The definitions of a file: one, a list, or a list of `{"source": …, "definition": …}`.

    A YAML file may hold several documents, each of them one of these.

    Raises:
        DefinitionFileError: the file cannot be read or parsed, or an object has a key twice.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise DefinitionFileError(f"{file} cannot be read: {reason}") from None
    try:
        documents = _documents(text, file.suffix)
    except json.JSONDecodeError as error:
        raise DefinitionFileError(f"{file}:{error.lineno}: {error.msg}; correct the JSON") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise DefinitionFileError(f"{file}{line}: {error.problem}; correct the YAML") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DefinitionFileError(f"{file}: {error}; correct the file") from None
    return [
        FileDefinition(body, file, (number, *place))
        for number, document in enumerate(documents)
        if document is not None
        for body, place in _split(document)
    ]


def path_steps(path: str) -> Steps:
    """The steps of a path in lint's notation, `a.b[0]['a key']`."""
    return tuple(
        int(match[2])
        if match[2] is not None
        else next(part for part in (match[1], match[3], match[4]) if part is not None).replace("\\'", "'")
        for match in _STEP.finditer(path)
    )


def _documents(text: str, suffix: str) -> list[Any]:
    if suffix == ".json":
        return [json.loads(text, object_pairs_hook=_object)]
    return list(yaml.load_all(text, Loader=_Loader))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"an object has the key {key!r} twice")
        result[key] = value
    return result


@lru_cache(maxsize=32)
def _nodes(file: Path) -> list[yaml.Node]:
    try:
        return list(yaml.compose_all(file.read_text(encoding="utf-8"), Loader=_Loader))
    except (OSError, yaml.YAMLError):
        return []  # JSON that YAML does not take, such as one indented with tabs


def _split(document: Any) -> Iterator[tuple[Any, Steps]]:
    if not isinstance(document, list):
        yield _unwrap(document)
        return
    for number, item in enumerate(document):
        body, place = _unwrap(item)
        yield body, (number, *place)


def _unwrap(item: Any) -> tuple[Any, Steps]:
    if isinstance(item, Mapping) and "definition" in item and "identifier" not in item:
        return item["definition"], ("definition",)
    return item, ()


def _glob(pattern: str, folder: Path) -> Iterable[Path]:
    path = Path(pattern)
    if path.is_absolute():
        return Path(path.anchor).glob(str(path.relative_to(path.anchor)))
    return folder.glob(pattern)


class _Loader(yaml.SafeLoader):
    """Only what JSON can say."""


# Replaces the schema of YAML 1.1, in which 1:30 is a number and `no` a boolean.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9]*)", list("-+0123456789")),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+\.[0-9]*)(?:[eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("merge", r"<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


def _unique(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value!r} stands here twice", key.start_mark
                )
            seen.add(key.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _unique)
