"""The study of heads on a real model, at a tiny size: its own file with another target and fewer prompts."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import TESTS


@pytest.mark.slow
def test_heads_are_compared_by_the_temperature_of_their_loss(world, tmp_path, monkeypatch, run):
    """Two of the study's heads, from one cache of the target's states, at every temperature that it decodes at."""
    monkeypatch.chdir(tmp_path)
    config = yaml.safe_load((TESTS.parent / "configs/studies/real-eagle3.yaml").read_text())
    prompts = {"path": f"{world}/text.jsonl", "limit": 2, "prompt_tokens": 4}
    experiment = config["experiment"]
    experiment["model"]["target"] = f"{world}/target"
    experiment["model"]["head"]["init_args"] = {"states": [0, 1, 2]}
    experiment["model"]["sweep"] |= {"max_new_tokens": 6, "stop_at_eos": False}
    experiment["data"] |= {"prompts": {"p": prompts}, "max_length": 16, "cache_dir": f"{world}/cache"}
    experiment["trainer"] |= {"max_steps": 2, "accelerator": "cpu", "enable_progress_bar": False}
    config |= {"study": "made", "seeds": [0], "training_prompts": {"a": prompts | {"limit": 8}}}
    config["drafts"] = {name: config["drafts"][name] for name in ("head-1.5", "head-grid")}
    Path("mine.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    code, _, error = run("study", "--config", "mine.yaml")
    assert code == 0, error
    assert json.loads(Path("made/study.json").read_text())["status"] == {"done": 14, "total": 14}
    assert len(list(Path("made/shared").glob("features-*/cache"))) == 1
    weights = {Path(f"made/runs/{name}-s0/fit/head/model.safetensors").read_bytes() for name in config["drafts"]}
    assert len(weights) == 2
    lines = Path("made/runs/head-grid-s0/predict/summary.csv").read_text().splitlines()
    names, rows = lines[0].split(","), [line.split(",") for line in lines[1:]]
    served = {row[names.index("target_temperature")] for row in rows}
    assert {float(value) for value in served if value} == {0.0, 0.5, 1.0, 1.5}
