import copy
import pickle

import pytest
import torch
from torch.utils.hooks import RemovableHandle

from tempspec.models.eagle3 import Eagle3
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.kept import Kept
from tempspec.modules.outputs import LogitSource, response
from tempspec.modules.validate.readings import TargetReadings
from tests import tiny

SOURCE = LogitSource(24)


def batch(seed=0, rows=2, length=8):
    torch.manual_seed(seed)
    return {
        "input_ids": torch.randint(24, (rows, length)),
        "attention_mask": torch.ones(rows, length, dtype=torch.int64),
        "loss_mask": torch.ones(rows, length, dtype=torch.bool),
        "weight": torch.ones(rows, dtype=torch.float32),
        "key": torch.arange(rows),
    }


def counted(model) -> tuple[list[int], RemovableHandle]:
    """The rows of every pass from now on."""
    passes: list[int] = []
    return passes, model.model.layers[0].register_forward_hook(lambda *given: passes.append(len(given[1][0])))


def read(readings, model, given, source=SOURCE):
    with torch.no_grad():
        return readings.of(model, given, Kept.of(response(given)), source)


def test_a_batch_is_read_once_and_comes_back_bit_for_bit():
    target, readings = tiny.llama(), TargetReadings()
    passes, _ = counted(target)
    first, again = read(readings, target, batch()), read(readings, target, batch())
    assert passes == [2]
    assert all(torch.equal(*parts) for parts in zip(first[:2], again[:2], strict=True))


def other_text(target):
    return batch(1), SOURCE


def other_positions(target):
    given = batch()
    given["loss_mask"][0, 3] = False
    return given, SOURCE


def other_reading(target):
    return batch(), LogitSource(23)


def other_weights(target):
    with torch.no_grad():
        target.model.layers[0].mlp.up_proj.weight.mul_(2)
    return batch(), SOURCE


def other_precision(target):
    target.to(torch.bfloat16)
    return batch(), SOURCE


def tapped(readings, model, given, states=(0, 1)):
    with torch.no_grad():
        states, last = readings.tapped(model, given, states, SOURCE)
    return [*states, last]


def test_states_for_heads_come_back_bit_for_bit():
    target, readings = tiny.llama(), TargetReadings()
    passes, _ = counted(target)
    first, again = tapped(readings, target, batch()), tapped(readings, target, batch())
    assert passes == [2]
    assert len(first) == 3
    assert all(torch.equal(*parts) for parts in zip(first, again, strict=True))
    with torch.no_grad():
        own = SOURCE.tapped(target, batch(), (0, 1))
    assert all(torch.equal(*parts) for parts in zip(again, [*own[0], own[1]], strict=True))


def test_other_states_or_a_drafts_tokens_are_read_anew():
    target, readings = tiny.llama(), TargetReadings()
    passes, _ = counted(target)
    tapped(readings, target, batch(), (0, 1))
    assert len(tapped(readings, target, batch(), (1,))) == 2
    read(readings, target, batch())
    tapped(readings, target, batch(1), (0, 1))
    assert passes == [2] * 4


@pytest.mark.parametrize("change", [other_text, other_positions, other_reading, other_weights, other_precision])
def test_whatever_changes_what_is_read_is_read_anew(change):
    target, readings = tiny.llama(), TargetReadings()
    read(readings, target, batch())
    given, source = change(target)
    passes, _ = counted(target)
    found = read(readings, target, given, source)
    assert passes == [2]
    with torch.no_grad():
        assert torch.equal(found.hidden_NH, source.of(target, given, Kept.of(response(given))).hidden_NH)


def test_another_model_is_never_answered_with_what_one_said():
    readings, given = TargetReadings(), batch()
    first, other = read(readings, tiny.llama(0), given), read(readings, tiny.llama(1), given)
    assert not torch.equal(first.hidden_NH, other.hidden_NH)


def test_what_finds_no_room_is_read_every_time():
    target, readings = tiny.llama(), TargetReadings(limit=2 * 7 * 16 * 4 + 1)
    passes, _ = counted(target)
    for seed in (0, 1, 0, 1):
        read(readings, target, batch(seed))
    assert passes == [2, 2, 2]  # the first of them fits


def test_copies_begin_empty():
    target, readings = tiny.llama(), TargetReadings(limit=10**6)
    read(readings, target, batch())
    for copied in (copy.deepcopy(readings), pickle.loads(pickle.dumps(readings))):
        passes, handle = counted(target)
        read(copied, target, batch())
        assert passes == [2]
        assert copied.limit == 10**6
        handle.remove()


def test_a_second_draft_is_measured_without_the_target(pair, data, trainer, monkeypatch):
    """As a study does: another module takes over the target, and gives the figures of one that read it itself."""
    first, second, alone = (
        DistillationModule(str(pair / "target"), **draft)
        for draft in ({"draft": str(pair / "draft")}, {"draft_layers": 1}, {"draft_layers": 1})
    )
    models, read_by = [], LogitSource.of
    monkeypatch.setattr(LogitSource, "of", lambda self, model, *of: models.append(model) or read_by(self, model, *of))
    trainer().validate(first, data)
    target, before = first.pair.target_model, len(models)
    second.adopt(first)
    trainer().validate(second, data)
    assert any(model is target for model in models[:before])
    assert not any(model is target for model in models[before:])
    trainer().validate(alone, data)
    assert second.measurement.grids["held"].grid() == alone.measurement.grids["held"].grid()


def test_a_second_head_is_measured_without_the_target(pair, data, trainer, monkeypatch):
    modules = [DistillationModule(str(pair / "target"), head=Eagle3(states=[0, 1, 2])) for _ in range(3)]
    models, read_by, found = [], LogitSource.tapped, []
    monkeypatch.setattr(
        LogitSource, "tapped", lambda self, model, *of: models.append(model) or read_by(self, model, *of)
    )
    for module, seed in zip(modules, (0, 1, 1), strict=True):
        torch.manual_seed(seed)
        trainer().validate(module, data)
        found.append((module.measurement.grids["held"].grid(), len(models)))
        if module is modules[0]:
            modules[1].adopt(module)
    (first, once), (second, still), (alone, twice) = found
    assert 0 < once == still
    assert twice == 2 * once
    assert first != second
    assert second == alone
