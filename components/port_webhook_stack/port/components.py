"""Components that the plugin offers to programs in other languages."""

from __future__ import annotations

from collections.abc import Sequence

from pulumi import ComponentResource

COMPONENTS: Sequence[type[ComponentResource]] = ()
