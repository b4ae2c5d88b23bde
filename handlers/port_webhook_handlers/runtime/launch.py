"""How the listener's processes are started: isolated, with code of the bundle, in a bare environment."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

SERVER_LIBRARIES: Final = (
    "cryptography.hazmat.primitives.ciphers.aead",
    "fastjsonschema",
    "httptools",
    "orjson",
    "psutil",
    "requests",
    "sqlite3",
    "uvloop",
)
CHILD_LIBRARIES: Final = ("dataclasses", "datetime", "inspect", "json", "queue", "socket", "orjson")
PROXY_VARIABLES: Final = (
    "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "all_proxy", "no_proxy",
)  # fmt: skip

_KEPT_VARIABLES: Final = (
    "PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE",
)  # fmt: skip
_BOOT: Final = """\
import importlib, sys
_, bundle, cache, libraries, module = sys.argv[:5]
for library in libraries.split(","):
    try:
        importlib.import_module(library)
    except ImportError:
        # Who needs it says so.
        pass
sys.pycache_prefix = cache
sys.path.insert(0, bundle)
del sys.argv[2:5]
importlib.import_module(module).main()
"""


def python_command(
    bundle: Path, cache: Path, libraries: Sequence[str], module: str, *arguments: str
) -> list[str]:
    """Command that runs `main` of a module with the bundle first on the path.

    The environment is ignored (`-I`), and compiled files are kept away from the bundle, where they could stand
    in for sources that were checked. Libraries are loaded before that, so that they use the compiled files that
    they came with. `sys.argv` of the module: program, bundle, arguments.

    Args:
        bundle: folder of the bundle.
        cache: folder for compiled files of the bundle.
        libraries: modules outside the bundle that are loaded first.
        module: module to run.
        arguments: its arguments.
    """
    return [
        sys.executable,
        "-I",
        "-c",
        _BOOT,
        str(bundle),
        str(cache),
        ",".join(libraries),
        module,
        *arguments,
    ]


def scrubbed_environment(further: Sequence[str] = ()) -> dict[str, str]:
    """The few variables that programs need, and further ones by name; nothing that could hold a credential."""
    return {name: os.environ[name] for name in (*_KEPT_VARIABLES, *further) if name in os.environ}
