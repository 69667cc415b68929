"""The most memory that commands of tempspec take above what the process held before, one line of bytes each.

    python benchmarks/fit_memory.py '[["fit", "--config", "first.yaml"], ["fit", "--config", "second.yaml"]]'

The first command is run before anything is counted: it imports every library. Linux alone.
"""

import ctypes
import gc
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

from tempspec.__main__ import main


def measured(commands: list[list[str]]) -> list[int]:
    """Bytes that each command but the first takes, all in one new process.

    Blocks have a place of their own there and are given back when they are freed: what the C library keeps for later is
    nobody's tensor.
    """
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    line = [sys.executable, __file__, json.dumps(commands)]
    done = subprocess.run(line, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [int(line.split()[1]) for line in done.stdout.splitlines() if line.startswith("bytes ")]


def held() -> int:
    """Bytes that are resident once what is free has been given back."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak() -> int:
    """The most resident bytes since it was reset; getrusage would count what the process that started this one held."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


if __name__ == "__main__":
    first, *others = json.loads(sys.argv[1])
    assert main(first) == 0
    for command in others:
        before = held()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        assert main(command) == 0
        print("bytes", peak() - before)
