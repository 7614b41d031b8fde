# SPDX-License-Identifier: GPL-3.0-or-later
"""Where relative paths start, though the working directory may have been removed, or may not be ours to enter.

A command that is given no relative path needs none of it: so where there is no working directory, paths start at a
place where nothing is, and where nobody can put anything. Whoever uses such a path is told that it is not there.
"""

from pathlib import Path

_GONE = Path("/proc/(the working directory was removed)")


def working_folder() -> Path:
    """Return the working directory; never raises."""
    try:
        return Path.cwd()
    except OSError:
        return _GONE


def absolute(path: Path) -> Path:
    """Return `path` as it is meant from the working directory, with its links and `..`; never raises."""
    return path if path.is_absolute() else working_folder() / path
