"""Puts what is to be deployed into a folder of its own."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath

from port_webhook_handlers.bundled.deploy.deployer import DeploymentError

_ARCHIVES = (".zip", ".whl")


def unpack(source: Path, destination: Path) -> None:
    """Copies a file or folder, or unpacks a ZIP archive or wheel, so that later changes do not matter.

    Args:
        source: the artefact.
        destination: a folder that does not exist; a single file is put into it under its own name.

    Raises:
        DeploymentError: the artefact is missing, broken or would write outside the folder.
    """
    try:
        if source.is_dir():
            shutil.copytree(
                source, destination, symlinks=True, ignore=shutil.ignore_patterns("__pycache__", ".git")
            )
        elif source.suffix in _ARCHIVES and source.is_file():
            _extract(source, destination)
        elif source.is_file():
            destination.mkdir(parents=True)
            shutil.copy2(source, destination / source.name)
        else:
            raise DeploymentError(f"artefact {source} does not exist; build it, or correct the setting")
    except (OSError, shutil.Error, zipfile.BadZipFile) as error:
        raise DeploymentError(f"artefact {source} cannot be used: {error}") from error


def _extract(source: Path, destination: Path) -> None:
    with zipfile.ZipFile(source) as package:
        for member in package.infolist():
            path = PurePosixPath(member.filename.replace("\\", "/"))
            if path.is_absolute() or ".." in path.parts or ":" in (path.parts or ("",))[0]:
                raise DeploymentError(f"artefact {source} holds {member.filename!r}, outside its own folder")
            if stat.S_ISLNK(member.external_attr >> 16):
                raise DeploymentError(
                    f"artefact {source} holds the link {member.filename!r}; pack the file itself"
                )
        package.extractall(destination)
        for member in package.infolist():
            # zipfile forgets permissions; programs in the archive must stay executable.
            if (mode := member.external_attr >> 16 & 0o111) and not member.is_dir():
                target = destination / member.filename
                target.chmod(target.stat().st_mode | mode)
