"""What machine this is, for figures that hold on no other."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["processor"]


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name, or at least its kind.

    Parameters
    ----------
    info : Path, default /proc/cpuinfo
        Where Linux says it.

    Examples
    --------
    >>> len(processor()) > 0
    True
    """
    if info.is_file():
        for line in info.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine() or "unknown"
