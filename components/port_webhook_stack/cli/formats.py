"""Choices of the command line, apart from what they choose, which is slower to import."""

from __future__ import annotations

from enum import StrEnum


class Format(StrEnum):
    """How lint prints findings: as lines, as one JSON document, or as annotations of GitHub Actions."""

    text = "text"
    json = "json"
    github = "github"
