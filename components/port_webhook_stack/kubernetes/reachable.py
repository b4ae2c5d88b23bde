"""Whether the cluster answers, asked before anything is created."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
import urllib.request
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from port_webhook_stack.errors import SettingsError, StackError
from port_webhook_stack.kubernetes.settings import KEY

_ANSWER_SECONDS: Final = 5.0


def server_of(kubeconfig: str | None, context: str | None) -> str:
    """URL of the API server that a kubeconfig names.

    Args:
        kubeconfig: its file; None: the one of `KUBECONFIG`, or the user's own.
        context: which context; None: the current one.

    Raises:
        SettingsError: there is no such file, context or cluster.
    """
    return str(_cluster(kubeconfig, context)["server"])


def require(kubeconfig: str | None, context: str | None) -> None:
    """Asks the API server for a sign of life; what it answers does not matter, and it is told no credentials.

    Raises:
        SettingsError: there is no such file, context or cluster.
        StackError: nothing answers.
    """
    cluster = _cluster(kubeconfig, context)
    server = str(cluster["server"])
    try:
        _ask(server, cluster.get("proxy-url"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = str(error) or type(error).__name__
        raise StackError(
            f"{KEY}.kubeconfig: the cluster {server} does not answer ({reason}); nothing was created. "
            "Start it, connect to its network, or choose another context"
        ) from error


def _cluster(kubeconfig: str | None, context: str | None) -> dict[str, Any]:
    import yaml

    files = (
        [kubeconfig] if kubeconfig else list(filter(None, os.environ.get("KUBECONFIG", "").split(os.pathsep)))
    )
    if len(files) > 1:
        raise SettingsError(
            f"{KEY}.kubeconfig",
            "is missing, and KUBECONFIG lists several files, which Pulumi's provider does not merge",
            "Set one of them, or write one file with `kubectl config view --flatten`",
        )
    path = Path(files[0] if files else "~/.kube/config").expanduser()
    try:
        body: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        contexts = {item["name"]: item["context"] for item in body.get("contexts") or ()}
        clusters = {item["name"]: item["cluster"] for item in body.get("clusters") or ()}
        wanted = context or body.get("current-context")
    except (OSError, ValueError, yaml.YAMLError, AttributeError, KeyError, TypeError) as error:
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
    found: Any = clusters.get((contexts[wanted] or {}).get("cluster"))
    if not isinstance(found, dict) or not isinstance(found.get("server"), str):
        raise SettingsError(
            f"{KEY}.context", f"{wanted!r} names no cluster with a server", "Repair the kubeconfig"
        )
    return found


def _ask(server: str, proxy: str | None) -> None:
    parts = urlsplit(server)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    if proxy is None and not urllib.request.proxy_bypass(host):
        proxy = urllib.request.getproxies().get(parts.scheme)
    if proxy is not None:
        # What is behind a proxy is seen by the provider alone.
        way = urlsplit(proxy)
        socket.create_connection((way.hostname or "", way.port or 80), timeout=_ANSWER_SECONDS).close()
        return
    connection: http.client.HTTPConnection
    if parts.scheme == "https":
        # Nothing secret is sent and nothing received is used, so that any certificate is a sign of life.
        anyone = ssl.create_default_context()
        anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(host, port, timeout=_ANSWER_SECONDS, context=anyone)
    else:
        connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", f"{parts.path.rstrip('/')}/version")
        connection.getresponse()
    finally:
        connection.close()
