"""Detached processes on this machine: start, recognise, stop.

A process is recognised by its id *and* its start time, because ids are reused. Children are started in
a session of their own with their streams in files: a stream inherited from `pulumi up` would keep that
command waiting until the child ends.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import psutil

_POLL_SECONDS: Final = 0.02


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """What tells one process of this machine from every other, past and present.

    Attributes:
        pid: process id.
        start_time: seconds since the epoch at which the operating system started it.
    """

    pid: int
    start_time: float

    @classmethod
    def of(cls, pid: int) -> ProcessIdentity:
        """Identity of a living process.

        Raises:
            ProcessLookupError: no such process, or it has ended.
        """
        import psutil

        try:
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                raise ProcessLookupError(pid)
            return cls(pid, process.create_time())
        except psutil.NoSuchProcess as error:
            raise ProcessLookupError(pid) from error

    def is_alive(self) -> bool:
        """Whether this very process still runs (a zombie does not)."""
        try:
            # Two readings of one start time may differ by the clock's last digit.
            return abs(ProcessIdentity.of(self.pid).start_time - self.start_time) < 0.05
        except ProcessLookupError:
            return False

    def terminate(self, grace_seconds: float = 10.0) -> bool:
        """Ends the process and the descendants of its session: SIGTERM to it, SIGKILL to what is left.

        A descendant with a session of its own was detached on purpose, as a service is that a handler deployed.

        Returns:
            Whether it was running.
        """
        import psutil

        if not self.is_alive():
            return False
        try:
            process = psutil.Process(self.pid)
            session = _session(self.pid)
            family = [
                *(child for child in process.children(recursive=True) if _session(child.pid) == session),
                process,
            ]
            process.terminate()
            _wait([process], grace_seconds)
        except psutil.NoSuchProcess:
            return True
        for member in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.kill()
        _wait(family, 5)
        return True


def resident_bytes(pid: int) -> int:
    """How much memory a process uses; 0 if it has ended."""
    import psutil

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return 0


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Waits until processes have ended; a zombie has, though its parent may never ask for its end."""
    import psutil

    deadline = time.monotonic() + seconds
    left = list(processes)
    while True:
        left = [process for process in left if runs(process)]
        if not left or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    # Those that are children of this process leave no zombie.
    psutil.wait_procs([process for process in processes if process not in left], timeout=0)


def runs(process: psutil.Process) -> bool:
    """Whether it has not ended; a zombie has."""
    import psutil

    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _session(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except OSError:
        return None


def spawn_detached(
    command: Sequence[str],
    *,
    log_file: Path,
    environment: Mapping[str, str] | None = None,
    working_directory: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> ProcessIdentity:
    """Starts a process that outlives its starter and shares no stream with it.

    Args:
        command: program and arguments; never a secret, since every user can list them.
        log_file: receives standard output and standard error, appended; created with mode 0600.
        environment: the whole environment of the process; by default that of this one.
        working_directory: by default that of this process.
        pass_fds: file descriptors that the process keeps.

    Raises:
        OSError: the program cannot be started or the log cannot be written.
    """
    log_file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=descriptor,
            stderr=descriptor,
            env=None if environment is None else dict(environment),
            cwd=working_directory,
            start_new_session=True,
            pass_fds=tuple(pass_fds),
            close_fds=True,
        )
    finally:
        os.close(descriptor)
    # Nobody waits for it here: its own session's leader is adopted when this process ends.
    process.returncode = 0
    return ProcessIdentity.of(process.pid)


def tail(log_file: Path, lines: int = 20) -> str:
    """The last lines of a log, for an error message; empty if there is none."""
    try:
        text = log_file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])
