"""The stack files that ship: every key is known, and every setting stands in one of them or in the documentation."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import yaml
from tests.component.aws.document import PAGE, page

from port_webhook_stack.aws.settings import Agent, AwsSettings, GroupSettings
from port_webhook_stack.settings import Settings, parse

ROOT = Path(__file__).resolve().parents[3]


def load(name: str) -> Settings:
    config = yaml.safe_load((ROOT / "stacks" / f"Pulumi.{name}.yaml").read_text())["config"]
    values = {key: value if isinstance(value, str) else json.dumps(value) for key, value in config.items()}
    environment = {"PORT_CLIENT_ID": "id", "PORT_CLIENT_SECRET": "secret"}
    return parse(name, values, frozenset(), environment, ROOT)


@pytest.mark.parametrize("name", ["aws-dev", "aws-prod"])
def test_a_stack_file_needs_credentials_only(name: str) -> None:
    settings = load(name)
    assert settings.target == "aws"
    assert settings.aws is not None
    assert settings.aws.region == "eu-west-1"
    assert all((ROOT / handler).is_file() for handler in settings.handlers)


def test_production_is_the_careful_one() -> None:
    production = load("aws-prod").aws
    assert production is not None
    assert (production.ingress, production.protect, production.secret_recovery_days) == ("http-api", True, 30)


def test_every_setting_is_documented() -> None:
    text = (ROOT / "docs" / "aws.md").read_text()
    for kind, prefix in ((AwsSettings, "aws"), (Agent, "aws.agent"), (GroupSettings, "aws.groups.<group>")):
        for field in dataclasses.fields(kind):
            key = re.sub(r"_(\w)", lambda match: match[1].upper(), field.name)
            assert f"| `{prefix}.{key}" in text, key


def test_the_page_of_resources_is_what_is_registered(tmp_path: Path) -> None:
    written = PAGE.read_text(encoding="utf-8")
    assert written == page(tmp_path), "run .venv/bin/python -m tests.component.aws.document"
