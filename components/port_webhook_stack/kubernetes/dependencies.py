"""Which modules the handlers import that the runtime image does not have."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from port_webhook_stack.errors import StackError
from port_webhook_stack.kubernetes.settings import KubernetesSettings

IMAGE_MODULES: Final = frozenset(
    {
        "certifi", "cffi", "charset_normalizer", "click", "confluent_kafka", "cryptography", "fastjsonschema",
        "h11", "httptools", "idna", "jq", "orjson", "port_webhook_handlers", "psutil", "pycparser", "requests", "urllib3",
        "uvicorn", "uvloop",
    }
)  # fmt: skip
"""Top-level modules of requirements/runtime.txt, which the image installs."""


def check(bundle: Path, routes: Mapping[str, Mapping[str, Any]], settings: KubernetesSettings) -> None:
    """Refuses handlers whose imports the image of their group cannot satisfy.

    Only imports at the top of a module count: one inside a function or a `try` may be meant to be optional.

    Raises:
        StackError: names the handler's file, the import and the remedy.
    """
    own = {path.stem if path.is_file() else path.name for path in bundle.iterdir()}
    for name, route in routes.items():
        group = str(route.get("privilege_group", "default"))
        module = str(route["handler"]).partition(":")[0]
        if settings.group(group).image is not None or module.startswith("port_webhook_handlers."):
            continue
        for path in _files(bundle, module):
            for imported in _imports(path):
                if imported in own or imported in IMAGE_MODULES or imported in sys.stdlib_module_names:
                    continue
                raise StackError(
                    f"port-webhook-stack:handlers: {path.relative_to(bundle)} (route {name}) imports {imported}, "
                    "which the runtime image does not have. Build an image with it and set "
                    f"port-webhook-stack:kubernetes.groups.{group}.image"
                )


def _files(bundle: Path, module: str) -> list[Path]:
    top = bundle / module.split(".")[0]
    return sorted(top.rglob("*.py")) if top.is_dir() else [top.with_suffix(".py")]


def _imports(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_bytes()).body:
        if isinstance(node, ast.Import):
            yield from (item.name.split(".")[0] for item in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.split(".")[0]
