import pytest
from transformers import GenerationConfig

from tempspec.decoding.sweep import Sweep
from tempspec.modules.callbacks.serving_defaults import serving_note
from tempspec.modules.distillation import DistillationModule

QWEN = {"do_sample": True, "repetition_penalty": 1.05, "temperature": 0.7, "top_k": 20, "top_p": 0.8}


def note(config, generating=False, **sweep):
    return serving_note(GenerationConfig(**config), Sweep(**sweep), generating=generating)


def test_a_note_names_what_engines_apply_and_how_to_do_the_same():
    assert note(QWEN) == (
        "the target's generation_config.json names temperature 0.7, top_k 20, top_p 0.8, repetition_penalty 1.05, "
        "which serving engines apply by default and this run does not; model.sweep.target_temperatures, "
        "model.sweep.top_k, model.sweep.top_p set the same here; there is no option for a repetition_penalty"
    )
    assert "model.sweep.generation_temperatures" in note(QWEN, generating=True)


@pytest.mark.parametrize(
    ("config", "sweep", "said"),
    [
        ({}, {}, ""),
        ({"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}, {}, ""),
        ({"temperature": 0.7, "top_k": 20}, {"target_temperatures": [0.0, 0.7], "top_k": 20}, ""),
        ({"top_k": 20}, {"top_k": 5}, "names top_k 20, which"),
        ({"repetition_penalty": 1.1}, {}, "this run does not; there is no option for a repetition_penalty"),
    ],
    ids=str,
)
def test_what_changes_nothing_or_is_done_is_not_named(config, sweep, said):
    assert said in note(config, **sweep)
    assert bool(said) == bool(note(config, **sweep))


def test_predict_says_it_once_at_its_start(pair, data, trainer, caplog):
    sweep = Sweep(target_temperatures=[0.5], max_new_tokens=1, timing_prompts=0)
    module = DistillationModule(str(pair / "target"), draft=str(pair / "draft"), sweep=sweep)
    module.pair.target_model.generation_config = GenerationConfig(eos_token_id=0, repetition_penalty=1.1)
    with caplog.at_level("INFO"):
        trainer().predict(module, data)
    assert len([line for line in caplog.messages if "names repetition_penalty 1.1, which serving engines" in line]) == 1
