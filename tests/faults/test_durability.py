"""What the system calls of the server say: nothing is accepted before it is on disk."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.faults.test_listener_faults import Bench
from tests.unit.runtime.kit import ROUTES, fake_port, poll, route, write_bundle, write_secrets

from port_webhook_handlers.runtime import control


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    write_bundle(tmp_path / "bundle", (*ROUTES, route("single", handler="app:work", max_concurrency=1)))
    write_secrets(tmp_path)
    with fake_port() as port:
        try:
            yield Bench(tmp_path, port)
        finally:
            control.stop(tmp_path / "listener")


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_an_fdatasync_comes_before_each_202(bench: Bench, tmp_path: Path) -> None:
    # The route is busy, so that no other run writes to the ledger meanwhile.
    bench.send("single", "r_busy", text=f"until {tmp_path / 'go'}")
    poll(lambda: bench.marks("r_busy"))
    trace = tmp_path / "trace"
    command = ["strace", "-f", "-s", "24", "-e", "trace=fdatasync,read,recvfrom,write,writev,sendto,sendmsg"]
    with (tmp_path / "strace.err").open("w+") as errors:
        tracer = subprocess.Popen([*command, "-o", str(trace), "-p", str(bench.server().pid)], stderr=errors)
        try:
            started = time.monotonic()
            while "attached" not in (said := (tmp_path / "strace.err").read_text()):
                if "not permitted" in said or tracer.poll() is not None:
                    pytest.skip(f"strace may not look at the server: {said.strip()}")
                assert time.monotonic() < started + 10
                time.sleep(0.02)
            time.sleep(0.2)
            for number in range(8):
                assert bench.send("single", f"r_{number}", text="a").status_code == 202
        finally:
            tracer.terminate()
            tracer.wait()
    events = [
        "request" if '"POST ' in line else "sync" if "fdatasync" in line else "answer"
        for line in trace.read_text().splitlines()
        if re.search(r'"POST /|HTTP/1\.1 202|fdatasync\(.*= 0|fdatasync resumed.*= 0', line)
    ]
    assert events.count("answer") == 8
    synced = True
    for event in events:
        if event == "answer":
            assert synced, "answered before it was on disk"
        synced = event == "sync" or (synced and event != "request")
    (tmp_path / "go").touch()
