"""Out-of-memory kills, as the kernel counts them for the control group of a process."""

from __future__ import annotations

import re
from pathlib import Path

_ROOT = Path("/sys/fs/cgroup")


class OomKills:
    """Counts the kernel's out-of-memory kills in the control group of a process, from now on.

    A process that the kernel kills for want of memory ends by SIGKILL, as one that a person kills does. Linux tells the
    two apart in ``memory.events`` (cgroup v2) or ``memory.oom_control`` (v1). Elsewhere nothing is ever counted.

    Args:
        pid: the process; its group is looked up now, since the entry goes with the process.
    """

    def __init__(self, pid: int) -> None:
        self._file = _file_of(pid)
        self._before = _count(self._file)

    def have_risen(self) -> bool:
        """True if there has been such a kill since."""
        return _count(self._file) > self._before


def _membership(pid: int) -> Path:
    """The file that says which control groups a process is in."""
    return Path(f"/proc/{pid}/cgroup")


def _file_of(pid: int) -> Path | None:
    """The file that counts; ``None`` where there is none."""
    try:
        lines = _membership(pid).read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        root, name = (_ROOT, "memory.events") if controllers == "" else (_ROOT / "memory", "memory.oom_control")
        if controllers not in ("", "memory"):
            continue
        # In a container, the path may be the host's while the container sees its own group as the root.
        for group in (root / path.lstrip("/"), root):
            if (group / name).is_file():
                return group / name
    return None


def _count(file: Path | None) -> int:
    try:
        found = re.search(r"^oom_kill (\d+)$", file.read_text() if file else "", re.MULTILINE)
    except OSError:  # the group has gone
        return 0
    return int(found[1]) if found else 0
