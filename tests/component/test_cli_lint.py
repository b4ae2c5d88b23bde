"""`port-webhook lint` as a process, the way an editor or a pipeline calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("port-webhook")
GOOD = """\
identifier: deploy
trigger:
  type: self-service
  operation: CREATE
  userInputs: {properties: {version: {type: string}}}
invocationMethod:
  type: WEBHOOK
  url: route:deploy
  body: {version: "{{ .inputs.version }}"}
"""
BAD = GOOD.replace("title", "titel").replace(".inputs.version", ".inputs.versoin").replace("deploy", "bad")


def lint(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [COMMAND, "lint", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=30
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "port").mkdir()
    (tmp_path / "port" / "good.yaml").write_text(GOOD, encoding="utf-8")
    (tmp_path / "port" / "bad.yaml").write_text(BAD, encoding="utf-8")
    return tmp_path


def test_good_definitions_are_silent(folder: Path) -> None:
    done = lint(folder, "port/good.yaml")
    assert (done.returncode, done.stdout) == (0, "1 definition: 0 errors, 0 warnings\n")


def test_an_error_names_file_line_path_and_remedy(folder: Path) -> None:
    done = lint(folder, "port")
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "port/bad.yaml:9: bad: invocationMethod.body.version: reads the input 'versoin', which the form lacks; "
        "did you mean version? [PW306 error]",
        "2 definitions: 1 error, 0 warnings",
    ]


def test_machines_get_json(folder: Path) -> None:
    done = lint(folder, "port", "--format", "json")
    assert done.returncode == 1
    (finding,) = json.loads(done.stdout)
    assert finding["rule"] == "PW306"
    assert (finding["file"], finding["line"]) == ("port/bad.yaml", 9)


def test_github_gets_annotations(folder: Path) -> None:
    done = lint(folder, "port/*.yaml", "--format=github")
    (line,) = done.stdout.splitlines()
    assert line.startswith(
        "::error file=port/bad.yaml,line=9,title=PW306::bad: invocationMethod.body.version:"
    )


def test_rules_can_be_left_out(folder: Path) -> None:
    assert lint(folder, "port", "--disable", "PW101,PW306").returncode == 0
    done = lint(folder, "port", "--disable", "PW999")
    assert done.returncode == 2
    assert "lint has no rule PW999" in done.stderr


def test_the_set_is_examined_as_a_whole(folder: Path) -> None:
    (folder / "port" / "again.json").write_text(json.dumps([{"source": "x", "definition": {}}]))
    done = lint(folder, "port/good.yaml", "port/good.yaml", "port/again.json")
    assert "port/again.json:1: identifier: is missing" in done.stdout
    (folder / "copy.yaml").write_text(GOOD, encoding="utf-8")
    assert "'deploy' is defined 2 times" in lint(folder, "port/good.yaml", "copy.yaml").stdout


def test_paths_start_where_the_user_is(folder: Path) -> None:
    (folder / "Pulumi.yaml").write_text("name: x\n", encoding="utf-8")
    assert lint(folder / "port", "good.yaml").returncode == 0


def test_what_cannot_be_read_is_one_line(folder: Path) -> None:
    done = lint(folder, "none.yaml")
    assert done.returncode == 2
    assert done.stderr == "✗ none.yaml matches no file with definitions; check the path\n"


def test_pulumi_is_not_imported(folder: Path) -> None:
    code = (
        "import sys; from port_webhook_stack.cli.app import app; "
        "app(['lint', 'port/good.yaml'], standalone_mode=False, obj=__import__('pathlib').Path.cwd()); "
        "print('pulumi' in sys.modules, 'requests' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True, timeout=30
    )
    assert done.stdout.splitlines()[-1] == "False False"
