import json
import shutil

import pytest
import torch
from safetensors import safe_open

from tempspec.errors import UserError
from tempspec.models.eagle3 import Eagle3
from tempspec.models.tapping import tapped
from tempspec.modules.callbacks import PretrainedExport
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.features import CachedFeatures
from tempspec.plugins.schedules import Grid

STATES = [0, 1, 2]


@pytest.fixture
def make(pair, tmp_path):
    def build(features=None, states=STATES, **options):
        torch.manual_seed(0)
        kept = None if features is None else CachedFeatures(str(tmp_path / "features"), **features)
        options = {"target": str(pair / "target"), "head": Eagle3(states=states)} | options
        return DistillationModule(features=kept, **options)

    return build


def write(module, data):
    module.cache_target("features", data, torch.device("cpu"))


def fit(module, data, trainer, **options):
    options = {"max_steps": 3, "limit_val_batches": 0} | options
    losses, step = [], module.training_step

    def noting(batch, batch_idx):
        result = step(batch, batch_idx)
        losses.append(float(result["loss"].detach()))
        return result

    module.training_step = noting
    trainer(**options).fit(module, data)
    return torch.tensor(losses), module.draft.state_dict()


@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 0}, {"temperature": Grid([0.5, 1.5]), "chunk_tokens": 5}])
def test_float32_features_train_as_the_target_does(make, data, trainer, options):
    exact = {"dtype": "float32", "shard_rows": 7}
    write(make(exact), data)
    (losses, cached), (expected, plain) = (fit(make(each, **options), data, trainer) for each in (exact, None))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    for name, value in cached.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5)


def test_bf16_features_give_the_losses_to_their_precision(make, data, trainer):
    write(make({}), data)
    (losses, _), (expected, _) = (fit(make(each), data, trainer) for each in ({}, None))
    torch.testing.assert_close(losses, expected, rtol=2**-7, atol=0)
    assert not torch.equal(losses, expected)


def test_features_of_another_row_give_other_losses(make, data, trainer):
    exact = {"dtype": "float32"}
    write(make(exact), data)
    expected, _ = fit(make(exact), data, trainer)
    module = make(exact)
    setup = module.setup

    def setup_wrongly(stage):
        setup(stage)
        own = module.draft_training.feature_cache
        read = own._row
        own._row = lambda number: read((number + 1) % 60)

    module.setup = setup_wrongly
    losses, _ = fit(module, data, trainer)
    assert not torch.allclose(losses, expected, rtol=1e-3)


def test_the_target_makes_no_pass(make, data, trainer):
    write(make({}), data)
    module, passes = make({}), []
    module.pair.target_model.model.register_forward_hook(lambda *unused: passes.append(1))
    step = module.training_step

    def counting(batch, batch_idx):
        passes.clear()  # models are tried before the first step
        result = step(batch, batch_idx)
        assert passes == []
        return result

    module.training_step = counting
    fit(module, data, trainer)
    passes.clear()
    trainer().validate(module, data, verbose=False)
    assert passes


def test_what_is_kept_is_the_targets_states(make, data, tmp_path):
    write(make({"dtype": "float32", "shard_rows": 60}), data)
    module, begin = make(), 0
    with safe_open(tmp_path / "features" / "shard-000000.safetensors", "pt") as held:
        states, last = held.get_tensor("states"), held.get_tensor("last")
        ends = held.get_tensor("states_ends").tolist()
    for number in range(3):
        row = data.train_rows[number]
        ids, kept = torch.tensor(row["input_ids"]), torch.tensor(row["loss_mask"])
        with torch.no_grad():
            out = tapped(module.pair.target_model, STATES, input_ids=ids[None], use_cache=False)
        found = states[ends[number] : ends[number + 1]]
        torch.testing.assert_close(found, torch.stack(out.states, 2)[0], rtol=1e-5, atol=1e-6)
        count = int(kept[1:].sum())
        found = last[begin : begin + count]
        torch.testing.assert_close(found, out.hidden_BTH[0, :-1][kept[1:]], rtol=1e-5, atol=1e-6)
        begin += count


def test_an_interrupted_cache_goes_on_to_the_same_bytes(make, data, tmp_path, caplog):
    options = {"shard_rows": 16}
    with caplog.at_level("INFO"):
        write(make(options), data)
    assert "feature cache: 60 rows, " in caplog.text
    folder = tmp_path / "features"
    first = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
    assert len(first) == 4
    for name in sorted(first)[1:]:
        (folder / name).unlink()
    write(make(options), data)
    assert {file.name: file.read_bytes() for file in folder.glob("*.safetensors")} == first


def test_the_size_that_is_said_is_that_of_the_files(make, data, tmp_path, caplog):
    with caplog.at_level("INFO"):
        write(make({"dtype": "float32", "shard_rows": 60}), data)
    size = sum(file.stat().st_size for file in (tmp_path / "features").glob("*.safetensors"))
    said = float(caplog.text.split("about ")[1].split(" kB")[0]) * 1e3
    assert 0.9 < said / size < 1.1


def test_a_head_goes_on_from_features_with_its_own_states(make, data, trainer, tmp_path):
    trainer(max_steps=1, limit_val_batches=0, callbacks=[PretrainedExport(tmp_path)]).fit(make(states=[0, 2]), data)
    head = {"draft": str(tmp_path / "head")}
    write(make({}, **head), data)
    assert json.loads((tmp_path / "features" / "features.json").read_text())["states"] == [0, 2]
    losses, _ = fit(make({}, **head), data, trainer)
    assert losses.isfinite().all()
    with pytest.raises(UserError, match=r"its states is \[0, 2\], expected \[0, 1, 2\]"):
        fit(make({}), data, trainer)


def test_an_unfinished_or_other_cache_is_refused(make, data, trainer, pair, tmp_path):
    with pytest.raises(UserError, match=r"there is no feature cache in .*: make it with .*--cache-features"):
        fit(make({}), data, trainer)
    write(make({"shard_rows": 16}), data)
    with pytest.raises(UserError, match="its shard_rows is 16, expected 8"):
        fit(make({"shard_rows": 8}), data, trainer)
    other = tmp_path / "other"
    shutil.copytree(pair / "target", other)
    (other / "model.safetensors").write_bytes((pair / "draft" / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="does not fit: it was made of the target"):
        fit(make({"shard_rows": 16}, target=str(other)), data, trainer)
    (tmp_path / "features" / "shard-000003.safetensors").unlink()
    with pytest.raises(UserError, match=r"feature cache in .* is unfinished \(48 of 60 rows\)"):
        fit(make({"shard_rows": 16}), data, trainer)


def test_features_are_for_heads(pair, make, data):
    with pytest.raises(UserError, match=r"model\.features is for a head"):
        make({}, head=None, draft=str(pair / "draft"))
    with pytest.raises(UserError, match=r"--cache-features needs model\.features"):
        write(make(), data)
    with pytest.raises(UserError, match="shard_rows must be 1 or more"):
        CachedFeatures("x", shard_rows=0)
