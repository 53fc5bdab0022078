"""Errors of image files, as one line that names the file."""

from pathlib import Path

from PIL import UnidentifiedImageError

from diga_hpc.errors import UserError, as_user_error

# What Pillow raises for files that are missing, truncated, or no pictures. (torchvision's decoders
# are deprecated since 0.29.)
UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError)


def unreadable(path: Path, kind: str, error: Exception) -> UserError:
    """The error for a file that cannot be read; a MachineError if the disk failed, not the file."""
    return as_user_error(error, path) or UserError(
        f"{path}: not a readable {kind} ({error}); replace the file"
    )
