import os
import signal
import subprocess
import sys
import time

import pytest

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}


def wait_for(path, process):
    while not path.exists():
        assert process.poll() is None
        time.sleep(0.05)


@pytest.mark.parametrize("number", CODES)
def test_a_stopped_fit_leaves_a_checkpoint_and_the_signals_code(number, world, tmp_path):
    command = [sys.executable, "-m", "tempspec", "fit", "--config", world / "lm.yaml", "--run", tmp_path / "run"]
    process = subprocess.Popen(
        [*map(str, command), "--trainer.max_steps", "1000000"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    wait_for(tmp_path / "run" / "fit" / "metrics.csv", process)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == CODES[number]
    assert b"Traceback" not in error
    assert (tmp_path / "run" / "fit" / "checkpoints" / "last.ckpt").exists()
