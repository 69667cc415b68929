"""What one process of several does when it fails alone, or when a signal cannot reach it."""

import ctypes
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

from tempspec.modules.callbacks import GracefulStop, LastCheckpoint, NotFinite, Stopped
from tempspec.modules.callbacks.patience import Patience


class Two:
    """As much of a trainer of two processes as the callbacks look at."""

    world_size = 2
    global_step = 3
    fast_dev_run = False
    validating = sanity_checking = False
    is_global_zero = False
    received_sigterm = False

    def __init__(self):
        self.saved, self.killed = [], []
        self.strategy = self.launcher = self
        self.root_device = torch.device("cpu")
        self.batch_progress = self.total = self.fit_loop = self.epoch_loop = self
        self.processed = 3

    def save_checkpoint(self, path):
        self.saved.append(path)

    def barrier(self, name):
        pass

    def kill(self, number):
        self.killed.append(number)


@pytest.mark.parametrize(
    ("exception", "saves"),
    [(ValueError(), 0), (KeyboardInterrupt(), 0), (Stopped(143), 1), (NotFinite("nan"), 1)],
    ids=lambda value: type(value).__name__,
)
def test_only_what_all_processes_raise_is_saved(tmp_path, exception, saves):
    trainer, last = Two(), LastCheckpoint(tmp_path)
    last.on_train_start(trainer, None)
    trainer.global_step, trainer.processed = 4, 4
    last.on_exception(trainer, None, exception)
    assert len(trainer.saved) == saves
    GracefulStop().on_exception(trainer, None, exception)
    assert trainer.killed == [signal.SIGTERM] * (1 - saves)


def test_the_clock_is_asked_once_in_many_steps(tmp_path, monkeypatch):
    looks, seconds, trainer = [], [0.0], Two()
    monkeypatch.setattr(torch.distributed, "broadcast", lambda told, src: looks.append(told.tolist()))
    last = LastCheckpoint(tmp_path, every=300, clock=lambda: seconds[0])
    last.on_train_start(trainer, None)
    saved = []
    for step in range(4, 20004):  # a thousand seconds
        trainer.global_step, seconds[0] = step, seconds[0] + 0.05
        last.on_train_batch_end(trainer)
        if len(trainer.saved) > len(saved):
            saved.append(seconds[0])
    assert len(looks) < 80
    assert saved == pytest.approx([300, 600, 900], abs=50)


def test_no_time_means_no_checkpoint_by_time(tmp_path):
    trainer, last = Two(), LastCheckpoint(tmp_path, every=0, clock=iter(range(0, 10**9, 10**6)).__next__)
    last.on_train_start(trainer, None)
    trainer.global_step = 9
    last.on_train_batch_end(trainer)
    assert not trainer.saved
    last.on_train_end(trainer, None)
    assert len(trainer.saved) == 1


@pytest.fixture
def watched(monkeypatch):
    """SIGTERM with a handler of Python, as GracefulStop has one, watched; and the exit codes that end the process."""
    before = signal.signal(signal.SIGTERM, lambda *unused: None)
    codes = []
    patience = Patience(seconds=0.2, end=codes.append)
    patience.begin()
    yield codes
    patience.stop()
    signal.signal(signal.SIGTERM, before)


def deaf():
    """As a collective: one call of C, which lets other threads run and which no signal interrupts."""
    ctypes.CDLL(None).system(b"sleep 0.7")


def awake():
    """Python of as many seconds, in short calls."""
    until = time.monotonic() + 0.7
    while time.monotonic() < until:
        time.sleep(0.01)


def test_a_process_that_no_signal_reaches_ends(watched, capsys):
    threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGTERM)).start()
    deaf()
    assert watched == [143]
    assert "no answer to SIGTERM" in capsys.readouterr().err


def test_a_process_that_still_works_is_left_to_its_step(watched):
    os.kill(os.getpid(), signal.SIGTERM)
    awake()
    assert watched == []


def test_without_a_signal_a_long_operation_is_fine(watched):
    deaf()
    assert watched == []


def test_nothing_of_a_watch_is_left_when_it_stops():
    patience = Patience()
    patience.begin()
    child = os.fork()  # keeps the pipe open, as a worker that reads data does
    if child == 0:
        signal.pause()
    assert "patience" in [thread.name for thread in threading.enumerate()]
    patience.stop()
    assert "patience" not in [thread.name for thread in threading.enumerate()]
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


ENDING = """
import atexit, json, os, sys, torch
from pathlib import Path
from torch.nn.parallel import DistributedDataParallel
from tempspec.modules.callbacks import Stopped
from tempspec.modules.processes import orderly_end

def report():
    names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    print(torch.distributed.is_initialized(), any("gloo" in name for name in names))

for number, runs in enumerate(json.loads(sys.argv[2])):  # each in a process of its own, which begins after the imports
    if not os.fork():
        break
    if os.wait()[1]:
        sys.exit(1)
else:
    sys.exit(0)
atexit.register(report)  # runs after what is registered later
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}{number}", rank=0, world_size=1)
wrapped = DistributedDataParallel(torch.nn.Linear(1, 1))
wrapped.trainer = [wrapped]  # a circle, as Lightning's trainer and module are
del wrapped
for raised in map(eval, runs):
    try:
        with orderly_end():
            if raised is not None:
                raise raised
    except BaseException:
        pass
"""


ENDS = [
    (["ValueError()", "None"], "False False"),
    (["Stopped(143)"], "False False"),
    (["None", "ValueError()"], "True True"),  # the others may be in a collective
]


@pytest.mark.slow
def test_a_group_ends_with_the_process_if_its_last_run_was_well(tmp_path):
    line = [sys.executable, "-c", ENDING, tmp_path / "store", json.dumps([runs for runs, _ in ENDS])]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout.splitlines()) == (0, [left for _, left in ENDS]), done.stderr
