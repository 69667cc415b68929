"""benchmarks/gpu.py measures what it says: at toy sizes, as there is no GPU."""

import importlib
import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from tempspec.core import hosts
from tempspec.models import compiling
from tests.decoding.tape import Tapes

FOLDER = Path(__file__).parents[1] / "benchmarks"

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec", "ignore:.*does not have many workers")


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(FOLDER)
    return importlib.import_module("gpu")


def test_a_loss_is_compared_with_what_it_cannot_do_without(gpu):
    found = {goal.name: goal.measured for goal in gpu.losses(gpu.TOY)}
    assert len(found) == 5
    assert all(value > 0 for value in found.values())


def test_recorded_rounds_are_measured_as_others_are(gpu, monkeypatch):
    tapes = Tapes()
    monkeypatch.setattr(hosts, "reads_free", lambda value: False)
    monkeypatch.setattr(compiling, "recorder", lambda device: tapes)
    monkeypatch.setattr(gpu, "ROUND", "round")
    monkeypatch.setattr(gpu, "requests", partial(gpu.requests, new=8))
    pair = gpu.Pair("d", gpu.random_llama(1, 64, 128), gpu.random_llama(1, 64, 128), [(1, 2, 3)] * 4)
    found = {goal.name: goal.measured for goal in gpu.recorded_rounds(pair, gpu.TOY)}
    assert list(found) == [
        "(d) batch 1, ms a recorded round",
        "host waits a recorded round",
        "(d) 4 slots, recorded rounds, tokens/s",
    ]
    assert found.pop("host waits a recorded round") == 0
    assert all(value > 0 for value in found.values())
    assert tapes.made == 2 < tapes.replays


def test_a_step_of_fit_is_timed_between_its_second_and_last(gpu):
    found = [goal.measured for goal in gpu.fits(gpu.TOY)]
    assert found[0] > 0
    assert found[1] == 0
    assert found[2] > 0
    times = gpu.Times(6)
    times.at = [0, 10, 11, 12, 13, 99]
    assert times.seconds == 1


@pytest.mark.slow
def test_the_whole_script_writes_a_line_and_an_entry_a_goal(tmp_path):
    run = [sys.executable, FOLDER / "gpu.py", "--quick", "--out", tmp_path]
    told = subprocess.run(run, check=True, capture_output=True, text=True).stdout
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert len(kept["goals"]) == 18
    assert all(goal["name"] in told for goal in kept["goals"])
    assert "toy sizes" in kept["on"]


@pytest.mark.slow
def test_what_is_missing_is_said_in_a_line():
    hide = "import sys; sys.modules['transformers'] = None; sys.argv = ['gpu.py']"
    code = f"{hide}; exec(compile(open({str(FOLDER / 'gpu.py')!r}).read(), 'gpu.py', 'exec'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("gpu.py needs transformers: install it")
