"""Loggers by the YAML: metrics.csv always, others beside it."""

import csv

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def test_tensorboard_gets_what_the_csv_gets(run, world, tmp_path):
    logger = "{class_path: TensorBoardLogger, init_args: {save_dir: tb, name: '', version: ''}}"
    code, _, error = run("fit", "--config", world / "pair.yaml", "--trainer.logger", logger)
    assert code == 0, error
    with (tmp_path / "runs" / "pair" / "fit" / "metrics.csv").open(newline="") as file:
        logged = [(int(row["step"]), float(row["train/loss"])) for row in csv.DictReader(file) if row["train/loss"]]
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [
        (step, pytest.approx(loss, rel=1e-6)) for step, loss in logged
    ]


@pytest.mark.parametrize("logger", ["TensorBoardLogger", "[TensorBoardLogger, CSVLogger]"])
def test_a_logger_without_a_folder_writes_into_the_stage(logger, run, world, tmp_path):
    code, _, error = run("fit", "--config", world / "pair.yaml", "--trainer.logger", logger, "--trainer.max_steps", 1)
    assert code == 0, error
    config = yaml.safe_load((tmp_path / "runs/pair/fit/config.yaml").read_text())
    found = config["trainer"]["logger"]
    for each in found if isinstance(found, list) else [found]:
        assert each["init_args"]["save_dir"] == "runs/pair/fit"
    assert list((tmp_path / "runs/pair/fit/lightning_logs").glob("version_0/events.*"))


@pytest.mark.parametrize("name", ["TensorBoardLogger", "WandbLogger", "MLFlowLogger", "CSVLogger"])
def test_every_logger_of_lightning_can_be_named(name, run, world):
    code, printed, error = run("fit", "--config", world / "pair.yaml", "--trainer.logger", name, "--print_config")
    assert code == 0, error
    assert yaml.safe_load(printed)["trainer"]["logger"]["class_path"].endswith(f".{name}")


def test_no_logger_writes_no_file(run, world, tmp_path):
    assert run("fit", "--config", world / "pair.yaml", "--trainer.logger", "false")[0] == 0
    assert not (tmp_path / "runs" / "pair" / "fit" / "metrics.csv").exists()
