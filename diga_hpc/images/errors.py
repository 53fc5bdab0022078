"""Errors of image files, as one line that names the file."""

from pathlib import Path

from diga_hpc.errors import UserError, as_user_error


def unreadable(path: Path, kind: str, error: Exception) -> UserError:
    """The error for a file that cannot be read; a MachineError if the disk failed, not the file.

    error: anything that a decoder raises on damaged bytes. kind: "image" or "label file".
    """
    if isinstance(error, MemoryError):
        return UserError(
            f"{path}: the {kind} does not fit in memory; make it smaller or give the job more "
            "memory"
        )
    reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    # These are explained by their text alone.
    if isinstance(error, OSError | SyntaxError | ValueError) and str(error):
        reason = str(error)
    return as_user_error(error, path) or UserError(
        f"{path}: not a readable {kind} ({' '.join(reason.split())}); replace the file"
    )
