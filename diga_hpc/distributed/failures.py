"""End a process whose other threads may be stuck, after what must be finished or released.

Higher layers register with `on_end` what they need (a checkpoint to finish, a lock to release).
Loads no torch.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable

# Seconds that a process that must end gives to a checkpoint that is being written.
FINISHING = 10.0
# Seconds for releasing locks: the file system may be what hangs.
RELEASING = 2.0

_finish: list[Callable[[float], object]] = []
_release: list[Callable[[], object]] = []


def on_end(
    *,
    finish: Callable[[float], object] | None = None,
    release: Callable[[], object] | None = None,
) -> None:
    """Register what `end` calls; registering an equal callback again has no effect.

    finish: completes work that must not be lost. Called first, with the seconds it may block.
    release: gives up what other processes wait for, such as a lock. Called last, and abandoned
    after RELEASING seconds.
    """
    if finish is not None and finish not in _finish:
        _finish.append(finish)
    if release is not None and release not in _release:
        _release.append(release)


def end(line: str, code: int, finishing: float = FINISHING) -> None:
    """Print a last line and exit with `code`, whatever the other threads of this process do.

    Child processes are killed. finishing: seconds for the `finish` callbacks (0: abandon the work).
    """
    with contextlib.suppress(OSError):
        os.write(2, f"diga-hpc: {line}\n".encode(errors="backslashreplace"))
    for finish in _finish:
        with contextlib.suppress(Exception):
            finish(finishing)
    # Only now: the main thread raises when a loader worker dies, and would exit during the above.
    for child in multiprocessing.active_children():
        child.kill()
    # Last: once the lock is free, another process may write to the run directory.
    releasing = threading.Thread(target=_release_all, daemon=True)
    releasing.start()
    releasing.join(RELEASING)
    os._exit(code)


def leave(code: int) -> None:
    """Exit after an error that has been printed: flush, kill child processes, skip destructors.

    A regular exit waits for communication libraries, which may wait for a rank that is gone.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    children = multiprocessing.active_children()
    if children:
        # torch's handler raises in this thread when a loader worker dies.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for child in children:
        child.kill()
    os._exit(code)


def _release_all() -> None:
    for release in _release:
        with contextlib.suppress(Exception):
            release()
