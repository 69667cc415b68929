import json
import os
import signal
import subprocess
import sys
import time

import pytest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
COMMANDS = """
import json, os, sys
from tempspec.__main__ import main
import tempspec.cli.lightning, tempspec.modules.language_model

started = {}
for line in json.loads(sys.argv[1]):  # each in a process of its own, which begins after the imports
    if not (process := os.fork()):
        sys.exit(main(line))
    started[process] = None
print(*started, flush=True)
for _ in started:
    process, status = os.wait()
    started[process] = os.waitstatus_to_exitcode(status)
print(*started.values())
"""


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.slow
def test_a_stopped_fit_leaves_a_checkpoint_and_the_signals_code(world, tmp_path):
    fit = ["fit", "--config", str(world / "lm.yaml"), "--trainer.max_steps", "1000000", "--run"]
    lines = json.dumps([[*fit, str(tmp_path / str(number))] for number in CODES])
    command = [sys.executable, "-c", COMMANDS, lines]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started = map(int, process.stdout.readline().split())
    for number, fitting in zip(CODES, started, strict=True):
        wait_for(tmp_path / str(number) / "fit" / "metrics.csv", process)
        os.kill(fitting, number)
    codes, error = process.communicate(timeout=60)
    assert list(map(int, codes.split()[-len(CODES) :])) == list(CODES.values())
    assert "Traceback" not in error
    for number in CODES:
        assert (tmp_path / str(number) / "fit" / "checkpoints" / "last.ckpt").exists()
