"""Two real processes over gloo, as launchers start them: what one process gives, row for row."""

import csv
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.cli.conftest import WORDS

RANK = """
import json, sys
from tempspec.__main__ import main
for command in json.loads(sys.argv[1]):
    code = main(command)
    if code:
        sys.exit(code)
"""
TIMES = ("seconds_prefill", "seconds_draft", "seconds_verify", "seconds_overhead", "timed_in")
DECODING = ["--model.sweep.max_new_tokens", "5", "--model.sweep.timing_prompts", "1", "--model.sweep.slots", "2"]
FITTED = ["--model.sweep.draft_temperatures", "fitted", "--model.sweep.target_temperatures", "[0.7, 1.5]"]
FIT = ["--trainer.max_steps", "20", "--model.optimizer", "AdamW", "--model.optimizer.lr", "0.01"]
FIT += ["--model.lr_scheduler", "WarmupCosine"]  # 100 steps up, however long the run is: it may be continued for longer
MACHINES = ["--trainer.strategy", "ddp", "--trainer.num_nodes", "2", "--trainer.devices", "1"]
HEAD = ["--model.draft", "null", "--model.head", "Eagle3", "--model.head.states", "[0, 1, 2]"]
SHARDED = {
    "target": ["--model.loading.shard_target", "true"],
    "draft": ["--trainer.strategy", "fsdp2"],
    "both": ["--trainer.strategy", "fsdp2", "--model.loading.shard_target", "true"],
}


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def torchruns(rank):
    """What `torchrun --nnodes 2 --nproc-per-node 1` sets."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": "test", "LOCAL_RANK": "0"}
    return shared | {"RANK": str(rank), "GROUP_RANK": str(rank)}


def slurms(rank):
    """What `srun` sets for `--nodes 2 --ntasks-per-node 1`."""
    shared = {"SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "fit", "SLURM_NODELIST": "127.0.0.1", "SLURM_NNODES": "2"}
    shared |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1", "SLURM_LOCALID": "0"}
    return shared | {"SLURM_PROCID": str(rank), "SLURM_NODEID": str(rank)}


def start(commands, launcher, folder=None):
    """Begin commands in both of two processes; a folder's modules may be named by them."""
    shared = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    if folder is not None:
        shared |= {"PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}", "TEMPSPEC_ALLOW": "failing"}
    line = [sys.executable, "-c", RANK, json.dumps(commands)]
    return [
        subprocess.Popen(line, env=shared | launcher(rank), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for rank in range(2)
    ]


def ended(ranks, code=0):
    """Wait for both."""
    printed = [rank.communicate(timeout=300)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [code, code], "\n".join(printed)


@pytest.fixture(scope="module")
def experiment(world, tmp_path_factory):
    """A configuration with pairs of many lengths: 41 rows, which two processes cannot share evenly."""
    folder = tmp_path_factory.mktemp("two")
    generator = torch.Generator().manual_seed(1)

    def text(low, high):
        length = int(torch.randint(low, high, (), generator=generator))
        return " ".join(WORDS[i] for i in torch.randint(14, (length,), generator=generator))

    rows = [{"prompt": text(1, 5), "response": text(1, 9)} for _ in range(41)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {"path": f"{folder}/pairs.jsonl"}
    config = {
        "trainer": {"log_every_n_steps": 1, "accelerator": "cpu", "enable_progress_bar": False},
        "model": {"target": f"{world}/target", "draft": f"{world}/draft"},
        "data": {
            "train": pairs,
            "validation": {"held": pairs | {"limit": 9}},
            "max_length": 16,
            "batch_size": 8,
            "prompts": {"p": pairs | {"limit": 7}},
            "cache_dir": f"{folder}/cache",
        },
    }
    (folder / "pair.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    return folder


def commands(folder, run, *more):
    config = ["--config", f"{folder}/pair.yaml", "--run", str(run), *more]
    yield ["fit", *config, *FIT]
    yield ["validate", *config, *FITTED, "--before"]  # drafts that were fitted apart differ in their last digits
    yield ["predict", *config, *DECODING, *FITTED, "--before"]
    yield ["generate", *config, *DECODING]


LATE = """
import os, signal, torch
from lightning.pytorch import Callback

class Late(Callback):
    def on_predict_batch_end(self, trainer, module, outputs, batch, *unused):
        if batch.last and torch.distributed.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
"""


@pytest.fixture(scope="module")
def both(experiment, tmp_path_factory):
    """The folder of what two processes ran, one command after the other in the same two, and all that each printed."""
    folder = tmp_path_factory.mktemp("both")
    (folder / "failing.py").write_text(LATE)
    fit, *rest = commands(experiment, folder / "two", *MACHINES, "--data.batch_size", "4")
    ways = [[*fit, *more, "--run", str(folder / way)] for way, more in SHARDED.items()]

    def online(name, steps, *more):
        text = ["--model.online.every", "2", "--model.online.max_new_tokens", "4"]
        return [*fit, *text, "--run", str(folder / name), "--trainer.max_steps", str(steps), *more]

    # Step 3 uses the text of step 2 again, which only the checkpoint has.
    stopped = online("stopped", 3), online("stopped", 5, "--ckpt_path", "last")
    late = [*rest[1], "--run", str(folder / "late"), "--trainer.callbacks", "failing.Late"]
    late += ["--model.sweep.draft_temperatures", "same"]
    ranks = start([fit, *rest, *ways, online("whole", 5), *stopped, late], torchruns, folder)
    printed = [rank.communicate(timeout=600)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(printed)
    return folder, printed


def losses(run):
    with (run / "fit" / "metrics.csv").open(newline="") as file:
        return [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]]


def assert_same_draft(*runs):
    drafts = [AutoModelForCausalLM.from_pretrained(folder / "fit" / "draft").state_dict() for folder in runs]
    torch.testing.assert_close(*drafts, rtol=0, atol=1e-4)


def decoded(path):
    return [
        {name: value for name, value in row.items() if name not in TIMES} for row in pq.read_table(path).to_pylist()
    ]


def test_two_processes_are_one(experiment, both, run, tmp_path):
    one, (folder, _) = tmp_path / "one", both
    two = folder / "two"
    for command in commands(experiment, one):
        code, _, error = run(*command)
        assert code == 0, error
    for way in SHARDED:
        assert losses(folder / way) == pytest.approx(losses(one), abs=1e-5)
        assert_same_draft(folder / way, one)
    assert losses(two) == pytest.approx(losses(one), abs=1e-5)
    assert len(losses(one)) == 20
    fits = [json.loads((folder / "validate/draft_temperatures.json").read_text())["fits"] for folder in (one, two)]
    chosen = [[(fit["target_temperature"], fit["draft_temperature"]) for fit in each] for each in fits]
    assert chosen[0] == chosen[1]
    assert any(target != draft for target, draft in chosen[0])
    for file in ("predict/predictions.parquet", "generate/generated.parquet"):
        assert decoded(two / file) == decoded(one / file)
    validated = [json.loads((folder / "validate" / "metrics.json").read_text())["cells"] for folder in (one, two)]
    for left, right in zip(*validated, strict=True):
        assert {name: found["value"] for name, found in left["metrics"].items()} == pytest.approx(
            {name: found["value"] for name, found in right["metrics"].items()}, abs=1e-6
        )


@pytest.mark.slow
def test_a_head_learns_from_a_target_in_parts(experiment, run, tmp_path):
    """Its states come from layers that are put together one at a time; what is validated does, too."""
    one, two = ([*next(commands(experiment, tmp_path / name)), *HEAD] for name in ("one", "two"))
    steps = ["--trainer.max_steps", "4"]
    code, _, error = run(*one, *steps)
    assert code == 0, error
    ended(start([[*two, *steps, *MACHINES, "--data.batch_size", "4", *SHARDED["target"]]], torchruns))
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    heads = [load_file(tmp_path / name / "fit/head/model.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(*heads, rtol=0, atol=1e-4)


@pytest.mark.slow  # two processes
def test_a_signal_to_one_process_ends_decoding_in_both(experiment, tmp_path):
    *_, predict, _ = commands(experiment, tmp_path / "run", *MACHINES, "--model.sweep.write_every", "0")
    many = ["--model.sweep.target_temperatures", "[1.0]", "--model.sweep.draft_temperatures", "same"]
    ranks = start([[*predict, *many, "--model.sweep.samples", "400"]], torchruns)
    parts = tmp_path / "run/predict/predictions.parts"
    while not list(parts.glob("0001-*")):
        assert [rank.poll() for rank in ranks] == [None, None]
        time.sleep(0.05)
    ranks[1].send_signal(signal.SIGTERM)
    ended(ranks, 128 + signal.SIGTERM)


def test_a_signal_behind_the_last_pass_leaves_nobody_waiting(both):
    folder, printed = both
    assert "stopping after this step or batch" not in printed[0]
    assert len(decoded(folder / "late/predict/predictions.parquet"))


@pytest.mark.slow
def test_torchrun_starts_two_processes_on_one_machine(experiment, run, tmp_path):
    one, two = ([*next(commands(experiment, tmp_path / name)), "--trainer.max_steps", "3"] for name in ("one", "two"))
    assert run(*one)[0] == 0
    ddp = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--data.batch_size", "4"]
    # Behind `--` the options are ours: torchrun would take `--run` for the beginning of one of its own.
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "--"]
    done = subprocess.run([*torchrun, "tempspec", *two, *ddp], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)


@pytest.mark.slow  # four processes, one pair after the other
def test_a_preempted_slurm_job_goes_on_when_requeued(experiment, tmp_path):
    fit = [*next(commands(experiment, tmp_path / "run", *MACHINES, "--data.batch_size", "4")), "--ckpt_path", "auto"]
    endless = [*fit, "--trainer.max_steps", "1000000"]
    ranks = start([endless], slurms)
    while not (tmp_path / "run/fit/metrics.csv").exists():
        assert [rank.poll() for rank in ranks] == [None, None]
        time.sleep(0.05)
    for rank in ranks:
        rank.send_signal(signal.SIGTERM)
    ended(ranks, 128 + signal.SIGTERM)
    before = losses(tmp_path / "run")
    ended(start([[*fit, "--trainer.max_steps", str(len(before) + 2)]], slurms))
    assert losses(tmp_path / "run")[: len(before)] == before
    assert len(losses(tmp_path / "run")) == len(before) + 2


@pytest.mark.parametrize(
    ("variable", "value", "says"),
    [("SLURM_NNODES", "3", "Set `num_nodes=3`"), ("SLURM_NTASKS_PER_NODE", None, "Use `--ntasks-per-node=2` instead")],
)
def test_a_slurm_job_that_does_not_fit_the_trainer_is_one_line(variable, value, says, experiment, run, monkeypatch):
    for name, held in (slurms(0) | {variable: value}).items():
        if held is not None:
            monkeypatch.setenv(name, held)
    fit = next(commands(experiment, "run", "--trainer.num_nodes", "2", "--trainer.devices", "1"))
    code, _, error = run(*fit)
    assert code == 2
    assert says in error.splitlines()[-1]
    assert "Traceback" not in error


def test_text_that_two_processes_write_is_taken_up_again(both):
    folder, _ = both
    kept = torch.load(folder / "stopped/fit/checkpoints/last.ckpt", weights_only=False)["online_text"]
    assert len(kept) == 2
    assert kept[0] != kept[1]
    assert losses(folder / "stopped") == losses(folder / "whole")
    drafts = [AutoModelForCausalLM.from_pretrained(folder / name / "fit/draft") for name in ("whole", "stopped")]
    torch.testing.assert_close(*(draft.state_dict() for draft in drafts), rtol=0, atol=0)


FAILING = """
import pathlib, torch
from tempspec.errors import UserError
from tempspec.plugins.schedules import Constant

class Failing(Constant):
    def __init__(self, told: str):
        super().__init__(1.0)
        self.told = told

    def __call__(self, context):
        if context.step == 2 and torch.distributed.get_rank() == 1:
            pathlib.Path(self.told).touch()
            raise UserError("rank 1 expected better text")
        return super().__call__(context)
"""


def test_where_one_process_fails_both_end(experiment, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING)
    raised = tmp_path / "raised"
    schedule = ["--model.temperature", "failing.Failing", "--model.temperature.told", str(raised)]
    fit = [*next(commands(experiment, tmp_path / "run", *MACHINES, "--data.batch_size", "4")), *schedule]
    ranks = start([fit], torchruns, tmp_path)
    while not raised.exists():
        assert [rank.poll() for rank in ranks] == [None, None]
        time.sleep(0.05)
    since = time.monotonic()
    printed = [rank.communicate(timeout=60)[0] for rank in ranks]
    assert time.monotonic() - since < 30
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "error: rank 1 expected better text" in printed[1].splitlines()
    assert "error: another process of this run has ended: its own message says why" in printed[0].splitlines()
    assert "Traceback" not in "".join(printed)


@pytest.mark.parametrize(
    ("kind", "more", "remedy"),
    [
        ("teacher", SHARDED["target"], ""),
        ("features", HEAD, ", or spread the target by model.loading.shard_target: true"),
    ],
)
def test_a_cache_of_a_whole_target_is_written_by_one_process(kind, more, remedy, experiment, run, tmp_path):
    line = ["generate", "--config", f"{experiment}/pair.yaml", f"--cache-{kind}", "--run", str(tmp_path / "run")]
    code, _, error = run(*line, f"--model.{kind}.folder", str(tmp_path / "cache"), *MACHINES, *more)
    said = f"--cache-{kind} expected one process, got 2: set trainer.num_nodes and trainer.devices to 1{remedy}"
    assert (code, error) == (2, f"error: {said}\n")


@pytest.mark.slow
def test_states_of_a_target_in_parts_are_those_of_a_whole_one(experiment, run, tmp_path):
    """Two processes write them from the beginning, and from where one process stopped; both refuse other options."""
    line = ["generate", "--config", f"{experiment}/pair.yaml", "--cache-features", "--run", str(tmp_path / "run")]
    line += [*HEAD, "--model.features.shard_rows", "16", "--model.features.dtype", "float32"]
    whole, two, rest = ([*line, "--model.features.folder", str(tmp_path / name)] for name in ("whole", "two", "rest"))
    code, _, error = run(*whole)
    assert code == 0, error
    shards = sorted(path.name for path in (tmp_path / "whole").glob("*.safetensors"))
    assert len(shards) == 3
    (tmp_path / "rest").mkdir()
    for name in ("features.json", shards[0]):
        shutil.copy(tmp_path / "whole" / name, tmp_path / "rest" / name)
    ended(start([[*two, *MACHINES, *SHARDED["target"]], [*rest, *MACHINES, *SHARDED["both"]]], torchruns))
    for name in ("two", "rest"):
        assert (tmp_path / name / "features.json").read_text() == (tmp_path / "whole/features.json").read_text()
        for shard in shards:
            there, here = load_file(tmp_path / "whole" / shard), load_file(tmp_path / name / shard)
            torch.testing.assert_close(here, there, rtol=0, atol=0)
    kept = (tmp_path / "two/features.json").read_bytes()
    other = [*two, *MACHINES, *SHARDED["target"], "--model.features.dtype", "bfloat16"]
    ended(start([other], torchruns), code=2)
    assert (tmp_path / "two/features.json").read_bytes() == kept
