import json
import shutil

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from tempspec.data.module import TextDataModule
from tempspec.data.sources import Source
from tempspec.errors import UserError
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.online_text import OnlineText
from tempspec.modules.fit.teacher_cache import CachedTeacher
from tempspec.plugins import divergences, schedules

VOCABULARY = 24


@pytest.fixture
def make(pair, tmp_path):
    def build(teacher=None, **options):
        cached = None if teacher is None else CachedTeacher(str(tmp_path / "cache-of-teacher"), **teacher)
        options = {"target": str(pair / "target"), "draft": str(pair / "draft")} | options
        return DistillationModule(teacher=cached, **options)

    return build


def write(module, data):
    module.cache_target("teacher", data, torch.device("cpu"))


def fit(module, data, trainer, steps=3, resume=None, callbacks=()):
    own = trainer(max_steps=steps)
    own.callbacks += list(callbacks)
    own.fit(module, data, ckpt_path=resume)
    return module.draft.state_dict()


@pytest.mark.parametrize("chunk", [None, 0, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.6, 2.0])
def test_a_whole_cache_trains_as_the_target_does(make, data, trainer, chunk, temperature):
    whole = {"tokens": VOCABULARY, "shard_rows": 7}
    write(make(whole), data)
    cached, plain = (
        fit(make(each, temperature=temperature, chunk_tokens=chunk), data, trainer) for each in (whole, None)
    )
    for name, value in cached.items():
        torch.testing.assert_close(value, plain[name], atol=1e-6, rtol=0)


def test_a_draft_of_the_targets_layers_learns_from_a_cache(make, data, trainer):
    whole, cut = {"tokens": VOCABULARY}, {"draft": None, "draft_layers": 1}
    write(make(whole, **cut), data)
    cached, plain = (fit(make(each, **cut), data, trainer) for each in (whole, None))
    for name, value in cached.items():
        torch.testing.assert_close(value, plain[name], atol=1e-6, rtol=0)


@pytest.fixture
def packed(data):
    """The data, each row of which holds documents that begin at 0, 4 and 9."""
    data.setup("fit")
    rows = data.train_rows
    rows = rows.remove_columns("starts") if "starts" in rows.column_names else rows
    data._train = rows.add_column("starts", [[0, 4, 9]] * len(rows))
    return data


def test_a_cache_of_packed_rows_trains_as_the_target_does(make, packed, trainer, tmp_path):
    whole = {"tokens": VOCABULARY}
    write(make(whole), packed)
    cached, plain = (fit(make(each), packed, trainer) for each in (whole, None))
    packed.encoding.separate = False
    with pytest.raises(UserError, match=r"needs data\.pack_attention: separate"):
        fit(make(whole), packed, trainer)
    across = fit(make(None), packed, trainer)
    for name, value in cached.items():
        torch.testing.assert_close(value, plain[name], atol=1e-6, rtol=0)
    assert any(not torch.allclose(value, plain[name], atol=1e-6, rtol=0) for name, value in across.items())


def test_a_cache_that_read_across_documents_is_learned_from_so(make, packed, trainer, tmp_path, caplog):
    whole = {"tokens": VOCABULARY}
    packed.encoding.separate = False
    write(make(whole), packed)
    across = fit(make(None), packed, trainer)
    record = tmp_path / "cache-of-teacher" / "teacher.json"  # as an earlier version left it
    record.write_text(
        json.dumps({name: value for name, value in json.loads(record.read_text()).items() if name != "apart"})
    )
    packed.encoding.separate = True
    cached = fit(make(whole), packed, trainer)
    assert "see each other: the cache of the target cannot separate them" in caplog.text
    for name, value in cached.items():
        torch.testing.assert_close(value, across[name], atol=1e-6, rtol=0)


def test_no_target_is_loaded_and_nothing_is_validated(make, data, trainer):
    options = {"tokens": 4}
    write(make(options), data)
    module = make(options, divergence=divergences.NegativeLogAcceptance())
    fit(module, data, trainer)
    assert "target_model" not in vars(module.pair)
    assert module.measurement.grids == {}


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided:UserWarning")
@pytest.mark.parametrize("options", [{"tokens": 4}, {"keep": "sampled", "tokens": 6}], ids=["top", "sampled"])
def test_a_resumed_run_ends_with_the_same_bits(make, data, trainer, tmp_path, options):
    write(make(options), data)
    keep = ModelCheckpoint(tmp_path / "kept", filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = fit(make(options), data, trainer, callbacks=[keep])
    resumed = fit(make(options), data, trainer, resume=str(tmp_path / "kept" / "step=2.ckpt"))
    for name, value in resumed.items():
        assert torch.equal(value, whole[name])


@pytest.mark.parametrize("options", [{"tokens": 4}, {"keep": "sampled", "tokens": 6}], ids=["top", "sampled"])
def test_an_interrupted_cache_goes_on_to_the_same_bytes(make, data, tmp_path, options):
    options = options | {"shard_rows": 16}
    write(make(options), data)
    folder = tmp_path / "cache-of-teacher"
    first = {file.name: file.read_bytes() for file in folder.glob("*.arrow")}
    assert len(first) == 4
    for name in sorted(first)[1:]:
        (folder / name).unlink()
    (folder / ".shard-000001.arrow.tmp").write_bytes(b"half")
    write(make(options), data)
    assert {file.name: file.read_bytes() for file in folder.glob("*.arrow")} == first


def test_an_unfinished_cache_is_refused(make, data, trainer, tmp_path):
    options = {"tokens": 4, "shard_rows": 16}
    write(make(options), data)
    (tmp_path / "cache-of-teacher" / "shard-000003.arrow").unlink()
    with pytest.raises(UserError, match=r"is unfinished \(48 of 60 rows\)"):
        fit(make(options), data, trainer)


def test_a_cache_of_another_text_or_tokenizer_is_refused(make, data, trainer, pair, tmp_path):
    write(make({"tokens": 4}), data)
    shorter = TextDataModule(
        tokenizer=str(pair / "target"),
        train=Source(str(pair / "corpus.jsonl"), limit=50),
        max_length=24,
        cache_dir=str(tmp_path / "cache"),
    )
    with pytest.raises(UserError, match="it was made for another text"):
        fit(make({"tokens": 4}), shorter, trainer)
    record = tmp_path / "cache-of-teacher" / "teacher.json"
    held = json.loads(record.read_text())
    record.write_text(json.dumps(held | {"tokenizer": "another"}))
    with pytest.raises(UserError, match="it was made with another tokenizer"):
        fit(make({"tokens": 4}), data, trainer)


def test_a_cache_of_another_target_is_refused_by_weights_or_name(make, data, trainer, pair, tmp_path):
    options = {"tokens": 4}
    write(make(options), data)
    moved, other, bare = (tmp_path / name for name in ("moved", "other", "bare"))
    shutil.copytree(pair / "target", moved)
    shutil.copytree(pair / "target", other)
    (other / "model.safetensors").write_bytes((pair / "draft" / "model.safetensors").read_bytes())
    shutil.copytree(pair / "target", bare, ignore=shutil.ignore_patterns("*.safetensors"))
    fit(make(options, target=str(moved)), data, trainer, steps=1)
    for target in (other, bare):
        with pytest.raises(UserError, match=f"made of the target {pair / 'target'} .*, got {target} .*; name that"):
            fit(make(options, target=str(target)), data, trainer)
    record = tmp_path / "cache-of-teacher" / "teacher.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"target": str(bare)}))
    fit(make(options, target=str(bare)), data, trainer, steps=1)


def test_other_options_and_a_small_disk_are_refused(make, data, monkeypatch, tmp_path):
    write(make({"tokens": 4}), data)
    with pytest.raises(UserError, match=r"of another configuration \(changed: tokens_kept\)"):
        write(make({"tokens": 5}), data)
    shutil.rmtree(tmp_path / "cache-of-teacher")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 0, 10))
    with pytest.raises(UserError, match=r"needs .* kB more in .*, but the disk has 10 B"):
        write(make({"tokens": 4}), data)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"divergence": divergences.AlphaBeta()}, "another divergence: AlphaBeta cannot be had from top tokens"),
        ({"temperature": schedules.TeacherEntropy()}, "another schedule: TeacherEntropy looks at whole distributions"),
        ({"online": OnlineText(writer="target")}, "no model.online"),
        ({"temperature": 3.0}, "must be between those of the cached teacher"),
    ],
    ids=["divergence", "schedule", "online", "temperature"],
)
def test_what_a_cache_cannot_give_is_refused_in_one_line(make, data, trainer, options, what):
    write(make({"tokens": 4}), data)
    with pytest.raises(UserError, match=what):
        fit(make({"tokens": 4}, **options), data, trainer)


def test_a_biased_mean_of_samples_is_refused(make, data, trainer):
    write(make({"keep": "sampled", "tokens": 4}), data)
    with pytest.raises(UserError, match="NegativeLogAcceptance cannot be had from sampled tokens"):
        fit(make({"keep": "sampled", "tokens": 4}, divergence=divergences.NegativeLogAcceptance()), data, trainer)


def test_a_cache_shows_how_far_it_is(make, data):
    """Row by row, those of an earlier run included."""
    module, seen = make({"shard_rows": 20}), []
    write(module, data)
    shards = module.draft_training.teacher.place.shards()
    shards[-1].unlink()
    module.cache_target("teacher", data, torch.device("cpu"), lambda pace: seen.append((pace.rows, pace.all_rows)))
    rows = len(data.train_rows)
    begun = (len(shards) - 1) * 20
    assert 0 < begun < rows
    assert seen == [(number, rows) for number in range(begun + 1, rows + 1)]


def test_no_batch_of_logits_is_made(make, data, monkeypatch):
    """Those of a real vocabulary would be gigabytes: the head reads one row's counted tokens at a time."""
    module = make({"tokens": 4})
    read, sizes, kept = [], [], CachedTeacher.kept
    module.pair.target_model.lm_head.register_forward_hook(lambda *given: read.append(len(given[2])))
    monkeypatch.setattr(CachedTeacher, "kept", lambda self, *of: sizes.append(len(of[0])) or kept(self, *of))
    write(module, data)
    assert max(read) <= 3 < data.eval_batch_size  # those that try how rows may be read
    assert sizes == [sum(mask) for mask in data.train_rows["loss_mask"]]
