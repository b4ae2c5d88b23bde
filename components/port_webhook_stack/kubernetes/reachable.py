"""Whether the cluster answers, asked before anything is created."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from port_webhook_stack.errors import SettingsError, StackError
from port_webhook_stack.kubernetes.settings import KEY

_CONNECT_SECONDS: Final = 5.0


def server_of(kubeconfig: str | None, context: str | None) -> str:
    """URL of the API server that a kubeconfig names.

    Args:
        kubeconfig: its file; None: the first of `KUBECONFIG`, or the user's own.
        context: which context; None: the current one.

    Raises:
        SettingsError: there is no such file, context or cluster.
    """
    import yaml

    path = Path(
        kubeconfig or os.environ.get("KUBECONFIG", "").split(os.pathsep)[0] or "~/.kube/config"
    ).expanduser()
    try:
        body: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        contexts = {item["name"]: item["context"] for item in body.get("contexts") or ()}
        clusters = {item["name"]: item["cluster"] for item in body.get("clusters") or ()}
        wanted = context or body.get("current-context")
    except (OSError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
        raise SettingsError(
            f"{KEY}.kubeconfig",
            f"{path} is no readable kubeconfig ({type(error).__name__})",
            "Set the path of a kubeconfig file, or export KUBECONFIG",
        ) from error
    if wanted not in contexts:
        raise SettingsError(
            f"{KEY}.context",
            f"{wanted!r} is no context of {path}",
            f"Use one of {', '.join(sorted(contexts)) or 'none: the file has no contexts'}",
        )
    server = clusters.get(contexts[wanted].get("cluster"), {}).get("server")
    if not isinstance(server, str):
        raise SettingsError(
            f"{KEY}.context", f"{wanted!r} names no cluster with a server", "Repair the kubeconfig"
        )
    return server


def require(kubeconfig: str | None, context: str | None) -> None:
    """Connects to the API server.

    Raises:
        StackError: it cannot be reached.
    """
    server = server_of(kubeconfig, context)
    parts = urlsplit(server)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname or "", port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        raise StackError(
            f"{KEY}.kubeconfig: the cluster {server} does not answer ({error}); nothing was created. "
            "Start it, connect to its network, or choose another context"
        ) from error
