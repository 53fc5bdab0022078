"""Ranks of one job, forked from this process; used by `soak.py`."""

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

RANKS = 2


class Ranks:
    """Start RANKS processes of a job and wait for their ends.

    Args:
        command: what a rank runs; it reads its arguments from sys.argv and ends with SystemExit.
        arguments: of the command.
        log: prefix of the ranks' log files, `LOG.0` and so on.
    """

    def __init__(self, command: Callable[[], object], arguments: list[str], log: Path) -> None:
        self.log = log
        # Bound but not listening: no other process is given the port, and rank 0, which names it,
        # can still listen there.
        self._holder = socket.socket()
        self._holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._holder.bind(("127.0.0.1", 0))
        port = self._holder.getsockname()[1]
        self.started = time.monotonic()
        self.group = 0
        self.pids: dict[int, int] = {}
        self.codes: dict[int, int] = {}
        for rank in range(RANKS):
            pid = os.fork()
            if pid == 0:
                self._become_rank(rank, port, command, arguments)
            # One process group for all of them and their children, to find what is left of the job.
            os.setpgid(pid, self.group or pid)
            self.group = self.group or pid
            self.pids[rank] = pid

    def _become_rank(
        self, rank: int, port: int, command: Callable[[], object], arguments: list[str]
    ) -> None:
        os.environ |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(RANKS),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(RANKS),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        output = os.open(f"{self.log}.{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = ["diga-hpc", *arguments]
        code = 1
        try:
            command()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            # Without the exit handlers of the parent process.
            os._exit(code)

    def poll(self) -> bool:
        """Whether all ranks have ended; their exit codes are then in `codes`."""
        for rank, pid in self.pids.items():
            if rank not in self.codes:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.codes[rank] = os.waitstatus_to_exitcode(status)
        return len(self.codes) == RANKS

    def wait(self, seconds: float) -> bool:
        """Wait up to so many seconds; whether all ranks have ended."""
        deadline = time.monotonic() + seconds
        while not self.poll():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def leftovers(self, seconds: float) -> list[int]:
        """Processes of the job that still run after so many seconds; they are killed."""
        deadline = time.monotonic() + seconds
        while members := _members(self.group):
            if time.monotonic() > deadline:
                os.killpg(self.group, signal.SIGKILL)
                return members
            time.sleep(0.1)
        return []

    def last_line(self, rank: int) -> str:
        """The last line of a rank's log; empty if there is none."""
        lines = Path(f"{self.log}.{rank}").read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""


def _members(group: int) -> list[int]:
    """Running processes of a process group; those that have ended are reaped."""
    while True:
        try:
            if os.waitpid(-group, os.WNOHANG) == (0, 0):
                break
        except ChildProcessError:
            break
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may contain spaces; the group is the third field after it.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group:
            found.append(int(folder.name))
    return found
