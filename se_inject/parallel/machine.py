"""What this machine, or the container that we are in, has to give: cores and memory."""

from __future__ import annotations

import os
from pathlib import Path

CGROUP, MEMINFO = Path("/sys/fs/cgroup"), Path("/proc/meminfo")
MARGIN = 0.8  # the part of what is free that we take: the rest is for the page cache and for others that grow


def cores() -> int:
    """Cores that this process may run on: by its affinity, and by the quota of its cgroup."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(CGROUP / "cpu.max").partition(" ")
    if quota.isdigit() and period.strip().isdigit():
        allowed = min(allowed, int(quota) // int(period))
    return max(1, allowed)


def memory() -> int:
    """Bytes that processes of ours may take together: ``MARGIN`` of what is available, here and in the cgroup."""
    free = [_field(_read(MEMINFO), "MemAvailable:") * 1024 or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    limit, used = _read(CGROUP / "memory.max"), _read(CGROUP / "memory.current")
    if limit.isdigit() and used.isdigit():
        cached = _field(_read(CGROUP / "memory.stat"), "inactive_file")  # given back when it is needed
        free.append(int(limit) - int(used) + cached)
    return int(MARGIN * max(0, min(free)))


def resident(what: str = "VmRSS") -> int:
    """Bytes of this process in memory now, or with ``VmHWM`` at most so far."""
    return _field(_read(Path("/proc/self/status")), f"{what}:") * 1024


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _field(text: str, name: str) -> int:
    return next((int(line.split()[1]) for line in text.splitlines() if line.startswith(name)), 0)
