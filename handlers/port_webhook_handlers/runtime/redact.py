"""Removes known secrets from text before it reaches a log or Port."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Final
from urllib.parse import quote

REPLACEMENT: Final = "[redacted]"
# Shorter values would blank out ordinary words and numbers.
_SHORTEST: Final = 4


class Redactor:
    """Replaces secrets, also where they are percent-encoded or escaped as JSON."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        forms: set[str] = set()
        for secret in secrets:
            if len(secret) >= _SHORTEST:
                forms |= {secret, quote(secret, safe=""), json.dumps(secret)[1:-1]}
                forms |= {line for line in secret.splitlines() if len(line.strip()) >= 2 * _SHORTEST}
        # The longest first, so that a secret which contains another is not left in part.
        ordered = sorted(forms, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, ordered))) if ordered else None
        # What those look like within JSON in ASCII.
        escaped = {json.dumps(form)[1:-1] for form in ordered}
        self._escaped = re.compile("|".join(map(re.escape, escaped))) if escaped else None

    def finds(self, text: str) -> bool:
        """Whether JSON in ASCII may hold a secret."""
        return self._escaped is not None and self._escaped.search(text) is not None

    def __call__(self, text: str) -> str:
        """The text without secrets."""
        return text if self._pattern is None else self._pattern.sub(REPLACEMENT, text)
