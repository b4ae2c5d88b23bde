import asyncio
import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from port_webhook_handlers.runtime.inputs import InputsValidator
from port_webhook_handlers.runtime.logs import Log
from port_webhook_handlers.runtime.metrics import Metrics
from port_webhook_handlers.runtime.redact import Redactor


def test_secrets_are_redacted_in_every_form() -> None:
    redact = Redactor(
        ['se"cret/value', "short-secret", "short-secret-longer", "abc", "line-one-long\nline-two-long"]
    )
    for text in ('a se"cret/value b', "a se%22cret%2Fvalue b", json.dumps('a se"cret/value b')[1:-1]):
        assert redact(text) == "a [redacted] b"
    assert redact("short-secret-longer short-secret") == "[redacted] [redacted]"
    assert redact("abc") == "abc", "too short to be told from a word"
    assert redact("x line-two-long y") == "x [redacted] y"
    assert Redactor()("anything") == "anything"


def test_a_line_is_json_and_bounded(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as stream:
        log = Log(stream.fileno())
        log.redact = Redactor(["secret-value"])
        log("event", text="secret-value" + "x" * 100_000, number=1)
        try:
            raise ValueError("bad secret-value")
        except ValueError as error:
            log.error("failed", error)
    first, second = (json.loads(line) for line in (tmp_path / "log").read_text().splitlines())
    assert first["event"] == "event"
    assert first["text"].startswith("[redacted]x")
    assert len(first["text"]) < 10_000
    assert second["error"] == "ValueError: bad [redacted]"
    assert second["place"].startswith("test_logs.py:")


def test_two_processes_rotate_one_log(tmp_path: Path) -> None:
    path = tmp_path / "log"
    code = (
        "import sys; from pathlib import Path\n"
        "from port_webhook_handlers.runtime.logs import Log\n"
        "log = Log(path=Path(sys.argv[1]))\n"
        "for n in range(800): log('line', writer=sys.argv[2], n=n, text='x' * 8000)\n"
    )
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    writers = [
        subprocess.Popen([sys.executable, "-c", code, str(path), name], stdout=descriptor, stderr=descriptor)
        for name in ("a", "b")
    ]
    os.close(descriptor)
    assert [writer.wait(30) for writer in writers] == [0, 0]
    lines = [
        json.loads(line) for file in (path, tmp_path / "log.1") for line in file.read_text().splitlines()
    ]
    assert len(lines) == 1600, "nothing is lost in one rotation"


def test_metrics_are_escaped_text() -> None:
    metrics = Metrics()
    metrics.count("port_webhook_runs_total", ("route", 'a"b\n'), ("status", "SUCCESS"))
    metrics.count("port_webhook_runs_total", ("route", 'a"b\n'), ("status", "SUCCESS"))
    text = metrics.render({"port_webhook_reports_waiting": {(): 3.0}})
    assert 'port_webhook_runs_total{route="a\\"b\\n",status="SUCCESS"} 2\n' in text
    assert "port_webhook_reports_waiting 3\n" in text
    assert "# TYPE port_webhook_runs_total counter\n" in text


def test_every_wrong_input_is_named() -> None:
    validator = InputsValidator(
        {
            "type": "object",
            "properties": {
                "version": {"type": "string", "pattern": r"^\d+$"},
                "size": {"enum": [1, 2]},
                "nested": {"$ref": "#/definitions/nested"},
                "list": {"type": "array", "items": {"type": "string"}},
                "token": {"type": "object"},
                "name": {"type": "string"},
            },
            "definitions": {"nested": {"type": "object", "properties": {"a": {"type": "integer"}}}},
            "required": ["version", "name"],
            "additionalProperties": False,
        },
        ("token",),
    )
    assert validator.errors({"version": "1", "name": None, "token": "ciphertext"}).keys() == {"name"}
    found = validator.errors(
        {"version": "1\n", "size": 3, "nested": {"a": "x"}, "list": ["a", 1], "other": 1}
    )
    assert set(found) == {"version", "size", "nested.a", "list.1", "name", "other"}
    assert not any("data" in problem for problem in found.values())
    assert validator.errors([]) == {"": "must be an object"}
    conditional = InputsValidator({"type": "object", "minProperties": 1})
    assert list(conditional.errors({}).values()) == ["must contain at least 1 properties"]


@pytest.mark.parametrize(
    "schema", [{"type": "nonsense"}, {"properties": {"a": {"pattern": "("}}}, {"$ref": "#/nowhere"}]
)
def test_what_is_no_schema_is_refused(schema: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="JSON Schema"):
        InputsValidator(schema)


def test_a_line_shows_no_more_of_an_object_than_its_text(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Credentials:
        client_id: str
        client_secret: str = dataclasses.field(repr=False)

    async def main() -> None:
        with (tmp_path / "log").open("ab") as stream:
            log = Log(stream.fileno())
            log("before", who=Credentials("id", "s3cr3t-value"))
            log.gather(asyncio.get_running_loop())
            log("after", who=Credentials("id", "s3cr3t-value"))
            log.flush()

    asyncio.run(main())
    text = (tmp_path / "log").read_text()
    assert "s3cr3t" not in text
    assert text.count("client_id='id'") == 2
