"""Keys that tests make lie in a folder of their own, not among the user's."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

_USER_STATE = tempfile.mkdtemp(prefix="port-webhook-user-state-")
atexit.register(shutil.rmtree, _USER_STATE, ignore_errors=True)
os.environ["XDG_STATE_HOME"] = _USER_STATE
