from __future__ import annotations

from pathlib import Path

import pytest

from port_webhook_stack.definition_files import DefinitionFileError, FileDefinition, find, path_steps, read

YAML = """\
# Comments are for people.
identifier: greet
title: No            # text, as in JSON
trigger:
  type: self-service
  operation: CREATE
  userInputs:
    properties:
      on: {type: boolean, default: true}
      at: {type: string, default: 2026-01-31}
      time: {type: string, default: 1:30}
      zip: {type: string, default: 0123}
      count: {type: number, default: 3}
      "a key": {type: string}
---
identifier: second
"""


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def test_yaml_says_what_json_would(tmp_path: Path) -> None:
    first, second = read(write(tmp_path, "a.yaml", YAML))
    assert first.body["title"] == "No"
    defaults = {
        name: item.get("default") for name, item in first.body["trigger"]["userInputs"]["properties"].items()
    }
    assert defaults == {
        "on": True,
        "at": "2026-01-31",
        "time": "1:30",
        "zip": "0123",
        "count": 3,
        "a key": None,
    }
    assert second.body == {"identifier": "second"}


def test_lines_of_paths(tmp_path: Path) -> None:
    file = write(tmp_path, "a.yaml", YAML)
    first, second = read(file)
    assert first.source == f"{file}:2"
    assert first.line("trigger.userInputs.properties.count.default") == 13
    assert first.line("trigger.userInputs.properties['a key'].pattern") == 14  # nearest part that is there
    assert second.source == f"{file}:16"


@pytest.mark.parametrize("indent", [None, 2, "\t"])
def test_json_as_one_as_a_list_and_as_the_corpus_has_it(tmp_path: Path, indent: int | str | None) -> None:
    import json

    for name, content in {
        "one.json": {"identifier": "a"},
        "list.json": [{"identifier": "a"}],
        "sources.json": [{"source": "page.md", "definition": {"identifier": "a"}}],
    }.items():
        (found,) = read(write(tmp_path, name, json.dumps(content, indent=indent)))
        assert found.body == {"identifier": "a"}
        assert found.line("identifier") >= 1


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.yaml", "a: 1\nb: [\n", r"a\.yaml:3: .*; correct the YAML"),
        ("a.yaml", "a: 1\nb: 2\na: 3\n", r"a\.yaml:3: the key 'a' stands here twice"),
        ("a.json", '{"a": 1,\n "b" 2}', r"a\.json:2: Expecting ':' delimiter"),
        ("a.json", '{"a": 1, "a": 2}', r"a\.json: an object has the key 'a' twice"),
        ("a.yaml", "a: !!python/object:os.system x\n", r"a\.yaml:1: could not determine a constructor"),
    ],
)
def test_what_cannot_be_read_names_the_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DefinitionFileError, match=message):
        read(write(tmp_path, name, text))


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DefinitionFileError, match="it is not UTF-8"):
        read(path)


def test_find_takes_files_folders_and_globs_once(tmp_path: Path) -> None:
    for name in ("port/a.yaml", "port/deep/b.json", "port/notes.md", "c.yml"):
        write(tmp_path, name, "{}")
    names = [str(path.relative_to(tmp_path)) for path in find(["port", "*.yml", "port/a.yaml"], tmp_path)]
    assert names == ["port/a.yaml", "port/deep/b.json", "c.yml"]
    absolute = find([f"{tmp_path}/port/*.yaml"], Path("/"))
    assert absolute == [tmp_path / "port" / "a.yaml"]
    for pattern, message in (("none/*.yaml", "matches no file"), ("port/notes.md", "is no definition file")):
        with pytest.raises(DefinitionFileError, match=message):
            find([pattern], tmp_path)


def test_steps_of_a_path() -> None:
    path = "trigger.userInputs.properties['a \\'b\\''].enum[2]['{{ .x }}']"
    assert path_steps(path) == ("trigger", "userInputs", "properties", "a 'b'", "enum", 2, "{{ .x }}")
    assert FileDefinition({}, Path("none.yaml")).line("a") == 1
