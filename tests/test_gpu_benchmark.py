"""benchmarks/gpu.py measures what it says: at toy sizes, as there is no GPU."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert len(kept["goals"]) == 15
    assert all(goal["name"] in told for goal in kept["goals"])
    assert "toy sizes" in kept["on"]


@pytest.mark.slow
def test_what_is_missing_is_said_in_a_line():
    hide = "import sys; sys.modules['transformers'] = None; sys.argv = ['gpu.py']"
    code = f"{hide}; exec(compile(open({str(FOLDER / 'gpu.py')!r}).read(), 'gpu.py', 'exec'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1].startswith("gpu.py needs transformers: install it")
