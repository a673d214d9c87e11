"""Time and peak memory of whole programs, each in a process of its own."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

TOUCHED = 8 << 30  # bytes; more than any of the programs takes with its files


@dataclass(frozen=True)
class Measured:
    """Wall-clock seconds (median, and the spread of the runs), the largest peak resident memory in bytes, and seconds
    of processor time (median), which depend less on what else runs.
    """

    seconds: float
    spread: tuple[float, float]
    peak: int
    processor: float

    def __str__(self) -> str:
        low, high = self.spread
        return f"{self.seconds:7.1f} s ({low:.1f}-{high:.1f})  {self.peak / 1e9:5.2f} GB"


def measure(command: Sequence[str | Path], runs: int, before: Callable[[], None], *, touch: bool = False) -> Measured:
    """Run a command several times.

    `before` prepares each run, untimed. Before that all dirty pages are written out, so that no run waits for what
    another left to the disk. `touch` also touches free memory: a virtual machine may have given it back to its host,
    and then every new page costs a fault there.
    """
    seconds, peaks, processor = [], [], []
    for _ in range(runs):
        os.sync()
        if touch:
            _touch(TOUCHED)
        before()
        start = time.perf_counter()
        process = subprocess.Popen([str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        assert process.stderr is not None
        message = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        seconds.append(time.perf_counter() - start)
        peaks.append(usage.ru_maxrss * 1024)
        processor.append(usage.ru_utime + usage.ru_stime)
        if status:
            sys.exit(f"{command} failed:\n{message.decode(errors='replace')}")
    median = statistics.median(seconds)
    return Measured(median, (min(seconds), max(seconds)), max(peaks), statistics.median(processor))


def _touch(nbytes: int) -> None:
    """In a process of its own: a child's peak is never reported as less than its parent's was."""
    code = f"import mmap; m = mmap.mmap(-1, {nbytes})\nfor i in range(0, {nbytes}, mmap.PAGESIZE): m[i] = 1"
    subprocess.run([sys.executable, "-c", code], check=True)
