"""Bundles: the runtime and a set of handlers in one content-addressed folder.

A bundle is the same wherever it is built from the same files: it knows no absolute path, no time and no
order of directory listings.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from port_webhook_handlers.runtime import manifest

_RUNTIME = "port_webhook_handlers"
_MODULE = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*", re.ASCII)
_DISCOVERY_SECONDS = 60
# First moment that a ZIP archive can hold.
_ZIP_TIME = (1980, 1, 1, 0, 0, 0)
_START = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from port_webhook_handlers.sdk.discovery import main; main(sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:])"
)


class BundleError(Exception):
    """A bundle cannot be built from the given handlers; one message with place, problem and remedy."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """A built bundle.

    Attributes:
        path: its folder.
        digest: `sha256:` and the hash of its `manifest.json`.
        routes: entries of the manifest by route name.
        definitions: Port's action documents by identifier, with `route:NAME` for an address.
        permissions: Port's permissions by identifier, of the actions that declare some.
        aws_permissions: statements by identifier, of the handlers that declare some.
        kubernetes_permissions: rules by identifier, of the handlers that declare some.
    """

    path: Path
    digest: str
    routes: Mapping[str, dict[str, Any]]
    definitions: Mapping[str, dict[str, Any]]
    permissions: Mapping[str, dict[str, Any]]
    aws_permissions: Mapping[str, list[dict[str, list[str]]]] = field(default_factory=dict)
    kubernetes_permissions: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Source:
    """Where a handler's module is, and what of it goes into the bundle.

    Attributes:
        module: importable name.
        path: file or folder to copy to the top of the bundle; None for what ships with the runtime.
    """

    module: str
    path: Path | None


def build(
    handlers: Sequence[str | Path],
    out: Path,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
) -> Bundle:
    """Builds a bundle, or finds it built.

    Args:
        handlers: importable module names (`port_webhook_handlers.bundled.deploy`), or paths: a `.py` file
            or a package folder. Text with a path separator or ending in `.py` is a path.
        out: folder of bundles; the bundle is the folder `<first 16 hex digits of its digest>` in it.
        settings: by handler, for permissions that depend on them; they are not part of the bundle.

    Raises:
        BundleError: a module does not exist, cannot be imported, declares no handler, or two clash.
    """
    sources = [_locate(handler) for handler in handlers]
    if not sources:
        raise BundleError("no handlers are named; list at least one module or file")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=out) as scratch:
        content = Path(scratch) / "bundle"
        _copy(Path(__file__).parent, content / _RUNTIME)
        for path in _distinct(sources):
            _copy(path, content / path.name)
        # Links on the way would make the paths of modules differ from that of the bundle.
        found = _discover(content.resolve(), [source.module for source in sources], settings or {})
        digest = _write_manifest(content, found["routes"])
        path = _settle(content, out / digest.removeprefix("sha256:")[:16])
    return Bundle(
        path,
        digest,
        found["routes"],
        found["definitions"],
        found["permissions"],
        found["aws_permissions"],
        found["kubernetes_permissions"],
    )


def archive(bundle: Bundle, out_zip: Path, *, compressed: bool = False) -> Path:
    """Packs a bundle into a ZIP archive, byte for byte the same on every machine.

    Args:
        bundle: as built.
        out_zip: file to write.
        compressed: a quarter of the size, but the bytes depend on the machine's zlib.

    Returns:
        the archive's path.
    """
    out_zip.parent.mkdir(parents=True, exist_ok=True)
    temporary = out_zip.with_name(f".{out_zip.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w") as package:
            for file in _contents(bundle.path):
                entry = zipfile.ZipInfo(file.relative_to(bundle.path).as_posix(), _ZIP_TIME)
                entry.create_system = 3
                entry.external_attr = 0o100644 << 16
                entry.compress_type = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
                package.writestr(entry, file.read_bytes())
        temporary.replace(out_zip)
    finally:
        temporary.unlink(missing_ok=True)
    return out_zip


def _locate(handler: str | Path) -> _Source:
    if isinstance(handler, Path) or handler.endswith(".py") or "/" in handler or os.sep in handler:
        return _locate_path(Path(handler))
    if not _MODULE.fullmatch(handler):
        raise BundleError(f"{handler!r} is neither a module's name nor a path; write a path with /")
    top, *rest = handler.split(".")
    if top == _RUNTIME:
        package = Path(__file__).parent
        if not _exists(package, rest):
            raise BundleError(f"{handler} does not exist; bundled are {', '.join(_bundled(package))}")
        return _Source(handler, None)
    if top in sys.stdlib_module_names:
        raise BundleError(f"{handler} belongs to Python itself and holds no handlers")
    # Found without being imported: nothing of the handlers runs in this process.
    spec = PathFinder.find_spec(top, [os.getcwd()]) or importlib.util.find_spec(top)
    if spec is None:
        raise BundleError(f"module {handler} is not found; install its package or give the path of its file")
    places = list(spec.submodule_search_locations or ()) or ([spec.origin] if spec.origin else [])
    path = Path(places[0])
    if rest and not (path.is_dir() and _exists(path, rest)):
        raise BundleError(f"module {handler} is not found in {path.name}; check its name")
    return _Source(handler, path)


def _locate_path(path: Path) -> _Source:
    path = path.absolute()
    name = path.stem if path.suffix == ".py" else path.name
    if not path.exists():
        raise BundleError(f"{path} does not exist; check the path")
    if path.is_file() and path.suffix != ".py":
        raise BundleError(f"{path} is no Python file; give a .py file or a package folder")
    if path.is_file() and name == "__init__":
        raise BundleError(f"{path} belongs to a package; give the folder {path.parent}")
    if not _MODULE.fullmatch(name) or "." in name:
        raise BundleError(f"{path}: {name!r} cannot be imported; rename it to letters, digits and _")
    if name == _RUNTIME or name in sys.stdlib_module_names or _is_installed(name, path):
        raise BundleError(f"{path}: a module {name} exists already and would be hidden; rename the file")
    return _Source(name, path)


def _is_installed(name: str, path: Path) -> bool:
    """Whether another module of that name comes with the interpreter's packages."""
    paths = sysconfig.get_paths()
    spec = PathFinder.find_spec(name, [paths["purelib"], paths["platlib"]])
    if spec is None:
        return False
    places = [*(spec.submodule_search_locations or ()), *([spec.origin] if spec.origin else [])]
    return not any(Path(place).resolve().is_relative_to(path.resolve()) for place in places)


def _exists(package: Path, names: Sequence[str]) -> bool:
    path = package.joinpath(*names)
    return not names or path.is_dir() or path.with_name(f"{path.name}.py").is_file()


def _bundled(package: Path) -> list[str]:
    folders = sorted(path.parent.name for path in (package / "bundled").glob("*/__init__.py"))
    return [f"{_RUNTIME}.bundled.{name}" for name in folders]


def _distinct(sources: Sequence[_Source]) -> Iterator[Path]:
    by_name: dict[str, Path] = {}
    for source in sources:
        if source.path is None:
            continue
        name = source.module.split(".")[0]
        known = by_name.get(name)
        if known is None:
            by_name[name] = source.path
            yield source.path
        elif known != source.path:
            raise BundleError(f"{known} and {source.path} are both imported as {name}; rename one of them")


def _copy(source: Path, destination: Path) -> None:
    """Copies a file, or of a folder what a running handler needs: no caches, no tests, nothing hidden."""
    if source.is_file():
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, destination)
        return
    for file in _wanted(source):
        target = destination / file.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, target)


def _contents(bundle: Path) -> list[Path]:
    return sorted(path for path in bundle.rglob("*") if path.is_file())


def _wanted(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        name = path.name
        if name.startswith(".") or name in ("__pycache__", "tests") or path.suffix in (".pyc", ".pyo"):
            continue
        if path.is_dir():
            if path.is_symlink():
                raise BundleError(
                    f"{path} is a link to a folder, which could lead in circles; put the folder there"
                )
            yield from _wanted(path)
        elif not (path.suffix == ".py" and (name.startswith("test_") or name == "conftest.py")):
            yield path


def _discover(
    root: Path, modules: Sequence[str], settings: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """Imports the handlers' modules in an interpreter that knows neither this one's path nor its secrets."""
    output, given = root.parent / "discovered.json", root.parent / "settings.json"
    given.write_text(json.dumps(settings), encoding="utf-8")
    arguments = [str(root), str(output), str(given), *modules]
    command = [sys.executable, "-I", "-B", "-X", "utf8", "-c", _START, *arguments]
    # What a handler reads from the environment when it is imported would differ in the listener.
    environment = {name: os.environ[name] for name in ("PATH", "SYSTEMROOT") if name in os.environ}
    try:
        done = subprocess.run(
            command,
            cwd=root,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_DISCOVERY_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise BundleError(
            f"importing {', '.join(modules)} takes more than {_DISCOVERY_SECONDS} s; "
            "do the work in the handler, not when its module is imported"
        ) from None
    if not output.exists():
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        raise BundleError(
            f"importing {', '.join(modules)} ended the interpreter (exit {done.returncode})"
            + (f": {lines[-1]}" if lines else "")
        )
    found: dict[str, Any] = json.loads(output.read_text(encoding="utf-8"))
    if "error" in found:
        raise BundleError(found["error"])
    return found


def _write_manifest(content: Path, routes: Mapping[str, Mapping[str, Any]]) -> str:
    files = {file.relative_to(content).as_posix(): manifest.hash_file(file) for file in _contents(content)}
    body = {"version": manifest.VERSION, "files": files, "routes": routes}
    # The listener's own reader decides what a manifest is.
    try:
        data = manifest.parse(json.dumps(body).encode()).dumps()
    except manifest.ManifestError as error:
        raise BundleError(str(error)) from error
    (content / manifest.FILE_NAME).write_bytes(data)
    return manifest.digest_of(data)


def _settle(content: Path, path: Path) -> Path:
    """Moves a finished bundle to its place, unless it stands there already."""
    if path.exists():
        try:
            manifest.verify_files(path, manifest.load(path)[0])
            return path
        except manifest.ManifestError:
            # Somebody changed it; nothing may run from it any more.
            shutil.rmtree(path)
    try:
        content.rename(path)
    except OSError:
        # Another process was faster with the same content.
        manifest.verify_files(path, manifest.load(path)[0])
    return path
