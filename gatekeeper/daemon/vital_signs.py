# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a worker that has not been heard of for a while hangs, or only waits for its turn on a busy machine.

The event loop of a worker gives a sign of life every few seconds. Where it is missing, proc(5) tells why, by looks a
moment apart. It hangs if its main thread has been stopped all the time (`T`); if it has slept all the time without
being woken once, although a timer was due; or if the process has used seconds of CPU, with which it could have given a
sign. It does not hang, as far as one can tell, if it wants to run and gets no CPU (`R`), or waits for the disk or for
swapped memory (`D`): that is for the longer limit of the supervisor.
"""

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_ENOUGH_CPU = 1.5
"""Seconds of CPU that are more than anything takes between two turns of an event loop."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a process does: the state of its main thread and how often it was switched; `cpu` of all threads, in s."""

    state: str
    switches: str
    cpu: float


def look_at(pid: int) -> Look | None:
    """Return what the process does now; None if we may not see it."""
    try:
        process = Path(f"/proc/{pid}")
        fields = (process / "stat").read_text(errors="replace").rpartition(")")[2].split()
        main = process / "task" / str(pid)
        state = (main / "stat").read_text(errors="replace").rpartition(")")[2].split()[0]
        lines = (main / "status").read_text(errors="replace").splitlines()
    except (OSError, IndexError):
        return None
    switches = " ".join(line.partition(":")[2].strip() for line in lines if "ctxt_switches" in line)
    return Look(state, switches, (int(fields[11]) + int(fields[12])) / _TICKS)


def why_hanging(first: Look, last: Look) -> str:
    """Say in what way a process hangs between two looks; empty if it may only be slow."""
    states = {first.state, last.state}
    if states <= {"T", "t"}:
        return "is stopped"
    if last.cpu - first.cpu >= _ENOUGH_CPU:
        return "is busy with one thing"
    if states == {"S"} and first.switches == last.switches:
        return "waits for something"
    return ""
