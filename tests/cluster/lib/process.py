"""Processes that outlive the command that started them, and how to find exactly them again.

A process id alone may by now belong to somebody else. A pid file therefore holds the id and the start
time that the kernel shows in /proc/PID/stat, and nothing is ever signalled whose start time differs.
Each process leads a session (and so a process group) of its own: a signal to the group reaches a
wrapper such as nsenter and the program inside it alike. This module must not know what it runs.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import subprocess
import time

from .trouble import Trouble

TERMINATION_PATIENCE_SECONDS = 15


@dataclasses.dataclass(frozen=True)
class Process:
    """A process by its pid file, running or not."""

    pid_file: pathlib.Path

    def pid(self) -> int | None:
        """Its id, if the very process that wrote the file still runs."""
        try:
            pid, started = self.pid_file.read_text().split()
        except (FileNotFoundError, ValueError):
            return None
        return int(pid) if start_time(int(pid)) == started else None

    def state(self) -> str:
        """running, paused or dead."""
        pid = self.pid()
        if pid is None:
            return "dead"
        return "paused" if _stat_fields(pid)[0] in "Tt" else "running"

    def signal(self, number: int) -> None:
        """Signals it and what it wraps; nothing happens if it is gone."""
        pid = self.pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, number)

    def pause(self) -> None:
        self.signal(signal.SIGSTOP)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def end(self, *, politely: bool) -> None:
        """Ends it and returns when it is gone."""
        if politely:
            # A stopped process hears SIGTERM only once it goes on.
            self.signal(signal.SIGTERM)
            self.signal(signal.SIGCONT)
            self._gone_within(TERMINATION_PATIENCE_SECONDS)
        self.signal(signal.SIGKILL)
        if not self._gone_within(TERMINATION_PATIENCE_SECONDS):
            raise Trouble(f"process {self.pid()} ({self.pid_file.stem}) does not end")
        self.pid_file.unlink(missing_ok=True)

    def await_end(self) -> None:
        """Waits for a wrapper whose program was ended by other means; it must live to reap that."""
        self.resume()
        self._gone_within(TERMINATION_PATIENCE_SECONDS)
        self.end(politely=False)

    def _gone_within(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while self.pid() is not None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def start(pid_file: pathlib.Path, argv: list[str], log: pathlib.Path, environment: dict | None = None) -> Process:
    """Starts a program in a session of its own, its output appended to `log`.

    The child writes its pid file itself, before it becomes the program: a starter killed at any moment
    leaves no process behind that no pid file tells of.
    """
    # Without its own environment a program would find the user's KUBECONFIG, proxies or cloud keys.
    base = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
    with log.open("ab") as output:
        subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env=base | (environment or {}),
            preexec_fn=lambda: _write_pid_file(pid_file),
        )
    return Process(pid_file)


def start_time(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks; None if it is gone or only waits to be reaped."""
    try:
        fields = _stat_fields(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None
    # Killed threads end one by one, and the first of them shows as a zombie while another still holds the
    # ports that the process listened on.
    threads = int(fields[17])
    return None if fields[0] in "ZX" and threads <= 1 else fields[19]


def _stat_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third (the state) on; the second may hold blanks itself."""
    return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _write_pid_file(pid_file: pathlib.Path) -> None:
    pid = os.getpid()
    half = pid_file.with_suffix(".half")
    half.write_text(f"{pid} {start_time(pid)}\n")
    half.rename(pid_file)
