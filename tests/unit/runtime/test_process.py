"""Processes that are ended, and those that were detached from them."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
from tests.unit.runtime.kit import poll

from port_webhook_handlers.process import ProcessIdentity, spawn_detached

PARENT = """
import subprocess, sys, time
from pathlib import Path
from port_webhook_handlers.process import spawn_detached
folder = Path(sys.argv[1])
sleep = [sys.executable, "-c", "import time; time.sleep(60)"]
service = spawn_detached(sleep, log_file=folder / "service.log")
helper = subprocess.Popen(sleep)
(folder / "pids.new").write_text(f"{service.pid} {helper.pid}")
(folder / "pids.new").rename(folder / "pids")
time.sleep(60)
"""


def test_a_detached_service_outlives_the_end_of_who_started_it(tmp_path: Path) -> None:
    parent = spawn_detached([sys.executable, "-c", PARENT, str(tmp_path)], log_file=tmp_path / "log")
    pids = tmp_path / "pids"
    poll(pids.exists)
    service, helper = (ProcessIdentity.of(int(pid)) for pid in pids.read_text().split())
    try:
        assert service.pid in [child.pid for child in psutil.Process(parent.pid).children()]
        assert parent.terminate(grace_seconds=5)
        assert not parent.is_alive()
        assert not helper.is_alive()
        assert service.is_alive()
    finally:
        parent.terminate(0)
        assert service.terminate(grace_seconds=5)
    assert not service.is_alive()


_STARTS_AND_FORGETS = """\
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
print(child.pid, flush=True)
time.sleep(60)
"""


def test_a_process_whose_parent_does_not_ask_for_its_end_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", _STARTS_AND_FORGETS], stdout=subprocess.PIPE) as parent:
        try:
            assert parent.stdout is not None
            child = ProcessIdentity.of(int(parent.stdout.readline()))
            began = time.monotonic()
            assert child.terminate(20)
            # It is a zombie as long as its parent lives.
            assert time.monotonic() - began < 5
            assert not child.is_alive()
        finally:
            parent.kill()
