"""The bundle as immutable ConfigMaps whose names come from its content."""

from __future__ import annotations

import base64
import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from port_webhook_handlers.bundle import Bundle, archive
from port_webhook_stack.errors import StackError

SHARD_BYTES: Final = 768 * 1024
"""Kubernetes takes ConfigMaps up to 1 MiB, names and labels included."""

MAX_SHARDS: Final = 16


@dataclass(frozen=True, slots=True)
class Shard:
    """A piece of the bundle's archive: the name of its ConfigMap, its key, its bytes."""

    name: str
    key: str
    data: bytes


def shards(bundle: Bundle) -> list[Shard]:
    """Cuts a bundle's archive into pieces.

    Raises:
        StackError: it needs more ConfigMaps than a Pod should mount.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Every byte is stored twice in the cluster and several times in Pulumi's state.
        data = archive(bundle, Path(folder) / "bundle.zip", compressed=True).read_bytes()
    return cut(data)


def cut(data: bytes) -> list[Shard]:
    """As `shards`, of an archive's bytes."""
    count = -(-len(data) // SHARD_BYTES)
    if count > MAX_SHARDS:
        limit = MAX_SHARDS * SHARD_BYTES // 1024 // 1024
        raise StackError(
            f"port-webhook-stack:handlers: the bundle is {len(data) / 1024 / 1024:.1f} MiB, more than the "
            f"{limit} MiB that fit into ConfigMaps. Put large files and libraries into an image of the handlers' "
            "own (port-webhook-stack:kubernetes.groups.<group>.image)"
        )
    # Not the bundle's digest: another zlib packs the same bundle into other bytes, and these objects are immutable.
    short = hashlib.sha256(data).hexdigest()[:16]
    return [
        Shard(
            f"bundle-{short}-{index:02d}",
            f"bundle.{index:02d}",
            data[index * SHARD_BYTES : (index + 1) * SHARD_BYTES],
        )
        for index in range(count)
    ]


def config_maps(pieces: list[Shard], metadata: Any) -> list[dict[str, Any]]:
    """Manifests of the ConfigMaps.

    Args:
        pieces: of one bundle.
        metadata: function of a name that gives an object's metadata.
    """
    return [
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": metadata(piece.name),
            "immutable": True,
            "binaryData": {piece.key: base64.b64encode(piece.data).decode()},
        }
        for piece in pieces
    ]
