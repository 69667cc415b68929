"""What texts, fits and decoded rows depend on: exactly the options that change them."""

import copy

import pytest

from tempspec.cli.study.dependence import for_cache, for_decoding, for_fit, for_texts, in_words

CONFIG = {
    "run": "r",
    "trainer": {"max_steps": 3, "precision": "32-true"},
    "model": {
        "target": "t",
        "draft": "d",
        "divergence": "ForwardKL",
        "seed": 0,
        "loading": {"dtype": "float32"},
        "verifiers": {"token": "TokenwiseRejection"},
        "sweep": {"target_temperatures": [0.0], "max_new_tokens": 8, "slots": 4},
    },
    "data": {"train": "x", "batch_size": 4, "max_length": 64, "prompts": {"p": {"path": "y", "limit": 3}, "q": "z"}},
}


def changed(option, value):
    config = copy.deepcopy(CONFIG)
    *sections, name = option.split(".")
    place = config
    for section in sections:
        place = place[section]
    place[name] = value
    return config


@pytest.mark.parametrize(
    ("option", "value", "texts", "decoding", "fit", "cache"),
    [
        ("model.target", "other", True, True, True, True),
        ("model.loading", {"dtype": "bfloat16"}, True, True, True, True),
        ("model.draft", "other", False, True, True, False),
        ("model.draft_width", 4, False, True, True, False),
        ("model.divergence", "ReverseKL", False, True, True, False),
        ("model.label_weight", 0.5, False, True, True, False),
        ("model.average", "sequence", False, True, True, False),
        ("model.chunk_tokens", 16, False, True, True, False),
        ("model.serve_temperatures", [0.5], False, True, True, False),
        ("model.verifiers", {"token": "BlockVerification"}, False, True, False, False),
        ("model.sweep.max_new_tokens", 9, True, True, False, False),
        ("model.sweep.target_temperatures", [0.0, 1.0], False, False, False, False),
        ("model.sweep.slots", 8, False, False, False, False),
        ("trainer.max_steps", 4, False, True, True, False),
        ("trainer.precision", "bf16-mixed", True, True, True, False),
        ("data.train", "other", False, True, True, True),
        ("data.max_length", 32, True, True, True, True),
        ("data.prompts.p.limit", 4, False, False, False, False),
        ("data.prompts.p.path", "other", True, True, False, False),
    ],
)
def test_an_option_changes_what_depends_on_it_alone(option, value, texts, decoding, fit, cache):
    config = changed(option, value)
    found = [
        in_words(of(config)) != in_words(of(CONFIG))
        for of in (for_texts, for_decoding, for_fit, lambda one: for_cache(one, "teacher"))
    ]
    assert found == [texts, decoding, fit, cache]


def test_features_depend_on_the_head_that_reads_them():
    other = changed("model.head", {"class_path": "Eagle3"})
    assert in_words(for_cache(other, "teacher")) == in_words(for_cache(CONFIG, "teacher"))
    assert in_words(for_cache(other, "features")) != in_words(for_cache(CONFIG, "features"))
