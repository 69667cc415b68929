"""What `model.loading` asks for, through fit, validate and predict: dtypes, attention, quantisation, devices."""

import json

import pytest
import torch
from safetensors.torch import load_file

from tempspec.cli.export import main as export
from tempspec.decoding.sweep import Sweep
from tempspec.errors import UserError
from tempspec.models import pair as pairs
from tempspec.models.conditioning import COLDEST, at_temperature, trained_range
from tempspec.models.loading import ModelOptions, load_draft, load_model, load_tokenizer, save_model
from tempspec.models.pair import Pair
from tempspec.modules.callbacks import PretrainedExport
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.online_text import OnlineText
from tempspec.modules.language_model import LanguageModelModule

pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided")
TIMES = ("seconds_prefill", "seconds_draft", "seconds_verify", "seconds_overhead", "timed_in")


@pytest.fixture(scope="module")
def halves(pair, tmp_path_factory):
    """The pair in bfloat16."""
    folder = tmp_path_factory.mktemp("halves")
    for name in ("target", "draft"):
        model = load_model(str(pair / name), dtype="bfloat16")
        save_model(model, load_tokenizer(str(pair / name)), folder / name)
    return folder


def fitted(folder, data, trainer, run, *, draft_layers=None, **options):
    """A module after three steps, whose draft and checkpoint lie in `run`."""
    named = {"draft_layers": draft_layers} if draft_layers else {"draft": str(folder / "draft")}
    module = DistillationModule(str(folder / "target"), **named, **options)
    own = trainer(max_steps=3, limit_val_batches=0, callbacks=[PretrainedExport(run)])
    own.fit(module, data)
    own.save_checkpoint(run / "last.ckpt")
    return module


def predicted(folder, data, trainer, run, checkpoint=None, **options):
    """The rows of a small sweep, times left out."""
    sweep = Sweep([0.0, 1.0], max_new_tokens=8, timing_prompts=0)
    module = DistillationModule(str(folder / "target"), sweep=sweep, **options)
    own = trainer(default_root_dir=str(run))
    own.predict(module, data, return_predictions=False, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
    rows = module.runner.store.rows(module.runner.order)
    return module, [{name: value for name, value in row.items() if name not in TIMES} for row in rows]


@pytest.mark.parametrize("draft", ["its folder", "layers"])
def test_a_draft_is_saved_in_the_dtype_that_it_came_in(halves, data, trainer, tmp_path, draft):
    module = fitted(halves, data, trainer, tmp_path, draft_layers=1 if draft == "layers" else None)
    trained = {name: value.detach() for name, value in module.draft.named_parameters()}
    assert {value.dtype for value in trained.values()} == {torch.float32}
    saved = load_file(tmp_path / "draft" / "model.safetensors")
    assert all(torch.equal(value, trained[name].bfloat16()) for name, value in saved.items())
    assert json.loads((tmp_path / "draft" / "config.json").read_text())["dtype"] == "bfloat16"
    assert module.draft.dtype == torch.float32


@pytest.mark.parametrize(
    ("loading", "saved"),
    [
        ({"export_dtype": "float32"}, torch.float32),
        ({"export_dtype": "float16"}, torch.float16),
        ({"dtype": "float32"}, torch.float32),
    ],
)
def test_the_dtype_of_a_saved_draft_is_an_option(halves, data, trainer, tmp_path, loading, saved):
    fitted(halves, data, trainer, tmp_path, loading=ModelOptions(**loading))
    assert load_model(str(tmp_path / "draft")).dtype == saved


@pytest.mark.parametrize(
    "loading",
    [{}, {"export_dtype": "float32"}, {"dtype": "float32"}, {"dtype": "float32", "export_dtype": "bfloat16"}],
)
def test_a_checkpoint_decodes_as_the_saved_draft_does(halves, data, trainer, tmp_path, loading):
    options = {"loading": ModelOptions(**loading)}
    fitted(halves, data, trainer, tmp_path, **options)
    saved, rows = predicted(halves, data, trainer, tmp_path / "a", draft=str(tmp_path / "draft"), **options)
    last = str(tmp_path / "last.ckpt")
    module, same = predicted(halves, data, trainer, tmp_path / "b", last, draft=str(halves / "draft"), **options)
    assert rows == same
    assert module.draft.dtype == saved.draft.dtype
    assert all(torch.equal(value, saved.draft.state_dict()[name]) for name, value in module.draft.state_dict().items())


def test_a_conditioned_draft_decodes_from_either(halves, data, trainer, tmp_path):
    fitted(halves, data, trainer, tmp_path, conditioning_rank=1, temperature=0.7)
    saved, rows = predicted(halves, data, trainer, tmp_path / "a", draft=str(tmp_path / "draft"))
    last = str(tmp_path / "last.ckpt")
    module, same = predicted(
        halves, data, trainer, tmp_path / "b", last, draft=str(halves / "draft"), conditioning_rank=1
    )
    assert rows == same
    assert module.draft.dtype == saved.draft.dtype == torch.bfloat16
    for draft in (module.draft, saved.draft):
        assert trained_range(draft).range_2.tolist() == torch.tensor([0.7, 0.7], dtype=torch.float32).tolist()


def test_export_folds_in_float32_and_rounds_once(halves, data, trainer, tmp_path):
    fitted(halves, data, trainer, tmp_path, conditioning_rank=2)
    folder = str(tmp_path / "draft")
    export(["export", "--draft", folder, "--temperature", str(COLDEST), "--output", str(tmp_path / "cold")])
    exact = at_temperature(load_draft(folder, dtype="float32"), COLDEST).state_dict()
    merged = load_file(tmp_path / "cold" / "model.safetensors")
    assert all(torch.equal(value, exact[name].bfloat16()) for name, value in merged.items())


def test_a_language_model_is_saved_in_its_own_dtype(halves, data, trainer, tmp_path):
    for options, expected in (({}, torch.bfloat16), ({"export_dtype": "float32"}, torch.float32)):
        module = LanguageModelModule(pretrained=str(halves / "draft"), **options)
        trainer(max_steps=1, limit_val_batches=0, callbacks=[PretrainedExport(tmp_path)]).fit(module, data)
        assert {value.dtype for value in module.model.parameters()} == {torch.float32}
        assert load_model(str(tmp_path / "model")).dtype == expected


def test_tied_weights_are_saved_once_in_another_dtype(tmp_path, pair):
    tied = LanguageModelModule(tokenizer=str(pair / "target"))
    tied.configure_model()
    save_model(tied.model, None, tmp_path / "x", dtype=torch.bfloat16)
    assert "lm_head.weight" not in load_file(tmp_path / "x" / "model.safetensors")
    assert load_model(str(tmp_path / "x")).dtype == torch.bfloat16


def test_a_draft_that_was_measured_is_trained_in_float32(halves, data, trainer):
    module = DistillationModule(str(halves / "target"), draft=str(halves / "draft"))
    trainer(limit_val_batches=1).validate(module, data)
    assert module.draft.dtype == torch.bfloat16
    trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    assert {value.dtype for value in module.draft.parameters()} == {torch.float32}


class Attentive(DistillationModule):
    """Notes by which attention each stage calls the models."""

    def note(self, where):
        models = (self.pair.target_model, self.draft)
        self.__dict__.setdefault("seen", {})[where] = {model.config._attn_implementation for model in models}

    def training_step(self, batch, batch_index):
        self.note("fit")
        return super().training_step(batch, batch_index)

    def predict_step(self, batch, batch_index):
        self.note("predict")
        return super().predict_step(batch, batch_index)


def test_training_and_decoding_have_each_their_attention(pair, data, trainer, tmp_path):
    loading = ModelOptions(attn_implementation="eager", decoding_attn_implementation="sdpa")
    options = {"draft": str(pair / "draft"), "loading": loading, "sweep": Sweep([0.0], max_new_tokens=4)}
    first = Attentive(str(pair / "target"), **options)
    trainer(default_root_dir=str(tmp_path)).predict(first, data, return_predictions=False)
    second = Attentive(str(pair / "target"), **options)
    second.adopt(first)
    trainer(max_steps=1, limit_val_batches=0).fit(second, data)
    assert second.pair.target_model is first.pair.target_model
    assert (first.seen, second.seen) == ({"predict": {"sdpa"}}, {"fit": {"eager"}})


def test_text_written_while_training_has_the_decoding_attention(pair, data, trainer):
    loading = ModelOptions(attn_implementation="eager", decoding_attn_implementation="sdpa")
    online = OnlineText(writer="both", max_new_tokens=3)
    module = Attentive(str(pair / "target"), draft=str(pair / "draft"), loading=loading, online=online)
    seen = []

    def note(target, _):
        grad = torch.is_grad_enabled()
        seen.append((target.config._attn_implementation, grad))

    module.configure_model()
    module.draft.model.register_forward_pre_hook(note)
    trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    assert ("sdpa", False) in seen
    assert {attention for attention, grad in seen if grad} == {"eager"}


def test_flash_attention_without_one_for_decoding_is_refused(pair, data, trainer):
    loading = ModelOptions(attn_implementation="flash_attention_2")
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), loading=loading)
    with pytest.raises(UserError, match="decoding_attn_implementation: sdpa"):
        trainer().predict(module, data)


def test_a_target_is_loaded_straight_to_its_device(pair, monkeypatch):
    asked = []
    own = pairs.load_model
    monkeypatch.setattr(
        pairs, "load_model", lambda path, *, device, **rest: asked.append(device) or own(path, device=device, **rest)
    )
    held = Pair(str(pair / "target"), None, 1, ModelOptions())
    held.use(torch.device("meta"), decoding=False)
    assert {value.device.type for value in held.target_model.parameters()} == {"meta"}
    assert asked == [torch.device("meta")]


def test_a_package_for_quantising_that_is_missing_is_one_line(pair):
    with pytest.raises(UserError, match=r"cannot load a model from .*bitsandbytes") as caught:
        load_model(str(pair / "target"), quantization={"quant_method": "bitsandbytes", "load_in_4bit": True})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("asked", [{}, {"quant_method": "nonsense"}, {"bits": 4}])
def test_no_configuration_for_quantising_is_one_line(pair, asked):
    with pytest.raises(UserError, match="cannot load a model from") as caught:
        load_model(str(pair / "target"), quantization=asked)
    assert "\n" not in str(caught.value)


INT8 = {
    "quant_method": "torchao",
    "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}},
}


@pytest.mark.slow
@pytest.mark.parametrize("draft_layers", [None, 1])
def test_a_quantised_target_trains_and_decodes(pair, data, trainer, tmp_path, draft_layers):
    loading = ModelOptions(quantization=INT8)
    module = fitted(pair, data, trainer, tmp_path, draft_layers=draft_layers, loading=loading)
    assert module.pair.target_model.hf_quantizer is not None
    assert module.pair.quantised == "quantised by torchao when it was loaded"
    assert load_model(str(tmp_path / "draft")).dtype == torch.float32
    _, rows = predicted(pair, data, trainer, tmp_path / "a", draft=str(tmp_path / "draft"), loading=loading)
    assert rows
    with pytest.raises(UserError, match="cuts ordinary weights, got a target that is quantised"):
        pairs.first_layers(module.pair.target_model, 1)


def test_a_folder_that_says_how_it_is_quantised(pair, tmp_path):
    assert pairs.quantised(str(pair / "target")) is None
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "gptq", "bits": 4}}))
    assert pairs.quantised(str(tmp_path)) == "quantised by gptq in its folder"
    asked = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    assert pairs.quantised(str(pair / "target"), asked) == "quantised by bitsandbytes, 4 bits when it was loaded"
