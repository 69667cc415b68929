import pytest
import torch

from tempspec.modules.callbacks.precision import half_note

AUTOCAST = "this acceptance is computed under autocast"
HALF = "computes in bfloat16: logits may depend on the batch's shape"


def notes(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "tempspec.modules.callbacks.precision"]


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("validate", (), []),
        ("validate", ("--trainer.precision", "bf16-mixed"), [AUTOCAST]),
        ("test", ("--trainer.precision", "bf16-mixed"), [AUTOCAST]),
        ("fit", ("--trainer.precision", "bf16-mixed"), []),
        ("predict", ("--trainer.precision", "bf16-mixed"), []),  # decoding is never under autocast
        ("predict", ("--model.loading.dtype", "bfloat16"), [HALF]),
        ("generate", ("--model.loading.dtype", "bfloat16"), [HALF]),
    ],
)
def test_one_line_where_a_law_is_not_the_one_drawn_from(command, options, says, world, run, caplog):
    few = ("--model.sweep.max_new_tokens", 3, "--model.sweep.timing_prompts", 0, "--trainer.max_steps", 1)
    tested = ("--data.test", f"{{held: {{path: {world}/text.jsonl, limit: 4}}}}") if command == "test" else ()
    code, _, error = run(command, "--config", world / "pair.yaml", *options, *few, *tested)
    assert code == 0, error
    found = notes(caplog)
    assert len(found) == len(says)
    assert all(part in line and "\n" not in line for part, line in zip(says, found, strict=True))


def test_every_half_is_named():
    note = half_note({"the target": torch.float16, "the draft": torch.bfloat16})
    assert note.startswith("the target computes in float16 and the draft computes in bfloat16: ")


def test_the_line_on_half_precision_says_how_slow_it_is(world, run, caplog, monkeypatch):
    measured = []

    def times(model):
        measured.append(model.dtype)
        return 3.21

    monkeypatch.setattr("tempspec.modules.callbacks.precision.times_float32", times)
    few = ("--model.sweep.max_new_tokens", 3, "--model.sweep.timing_prompts", 0)
    assert run("generate", "--config", world / "pair.yaml", *few, "--model.loading.dtype", "bfloat16")[0] == 0
    assert notes(caplog)[-1].endswith("and faster: bfloat16 takes 3.2 times as long on this CPU")
    assert run("generate", "--config", world / "pair.yaml", "--run", "other", *few)[0] == 0
    assert measured == [torch.bfloat16]
