"""Handlers may import what the runtime image has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.kubernetes.control_plane import REPOSITORY

from port_webhook_stack.errors import StackError
from port_webhook_stack.kubernetes.dependencies import IMAGE_MODULES, check
from port_webhook_stack.kubernetes.settings import parse

IMAGE = f"registry.example.com/runtime@sha256:{'a' * 64}"


def checked(folder: Path, source: str, **groups: dict[str, str]) -> None:
    (folder / "mine.py").write_text(source, encoding="utf-8")
    (folder / "beside.py").write_text("", encoding="utf-8")
    settings = parse({"image": IMAGE, "apiServer": ["10.0.0.1/32"], "groups": groups})
    check(folder, {"mine": {"handler": "mine:handle", "privilege_group": "ops"}}, settings)


def test_the_list_is_that_of_the_lock() -> None:
    text = (REPOSITORY / "requirements" / "runtime.txt").read_text(encoding="utf-8")
    locked = {name.replace("-", "_") for name in re.findall(r"^([\w-]+)==", text, re.MULTILINE)}
    assert locked | {"port_webhook_handlers"} == IMAGE_MODULES


@pytest.mark.parametrize(
    "source",
    [
        "import os, json.decoder\nfrom requests import Session\nimport beside\nfrom . import x\n",
        "def handle():\n    import numpy\n",
        "try:\n    import numpy\nexcept ImportError:\n    numpy = None\n",
    ],
)
def test_these_may_be_imported(tmp_path: Path, source: str) -> None:
    checked(tmp_path, source)


@pytest.mark.parametrize("source", ["import numpy.linalg\n", "from numpy import array\n"])
def test_others_need_an_image(tmp_path: Path, source: str) -> None:
    with pytest.raises(StackError) as caught:
        checked(tmp_path, source)
    assert str(caught.value).startswith("port-webhook-stack:handlers: mine.py (route mine) imports numpy")
    assert "kubernetes.groups.ops.image" in str(caught.value)
    checked(tmp_path, source, ops={"image": IMAGE})
