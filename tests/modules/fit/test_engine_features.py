"""An engine's files train a head as the target does, and whatever is not the target's own states is refused."""

import gzip
import io
import json

import pytest
import torch
from safetensors.torch import save_file

from tempspec.data.module import TextDataModule
from tempspec.data.sources import Source
from tempspec.errors import UserError
from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import load_model
from tempspec.models.tapping import Taps
from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.features import CachedFeatures

from .test_features import fit

HELD = [2, 0, 1]
"""The states that the engine was asked for, in its order; 2 is the output of the last layer, without the norm."""


def contiguous(tensors):
    return {key: value.contiguous() for key, value in tensors.items()}


def as_vllm(folder, number, tensors):
    save_file(contiguous(tensors), folder / f"cmpl-{number}-0.safetensors")


def as_speculators(folder, number, tensors):
    save_file(contiguous(tensors), folder / f"hs_{number}.safetensors")


def as_old_speculators(folder, number, tensors):
    states = [state.contiguous() for state in tensors["hidden_states"].unbind(1)]
    held = {"input_ids": tensors["token_ids"], "hidden_states": states, "loss_mask": torch.ones(len(states[0]))}
    torch.save(held, folder / f"data_{number}.pt")


def as_specforge(folder, number, tensors):
    """In a folder of its own, with the last state after the final norm, and a batch axis of 1."""
    rows = folder / f"rows_{number // 10 * 10}-{number // 10 * 10 + 10}"
    rows.mkdir(exist_ok=True)
    held = {"input_ids": tensors["token_ids"], "loss_mask": torch.ones_like(tensors["token_ids"])}
    held |= {
        "hidden_state": tensors["normed"][None],
        "aux_hidden_state": tensors["hidden_states"][:, :-1].flatten(1)[None],
    }
    if number % 2:
        torch.save(held, rows / f"data_{number}.ckpt")
    else:
        buffer = io.BytesIO()
        torch.save(held, buffer)
        (rows / f"data_{number}.ckpt.gz").write_bytes(gzip.compress(buffer.getvalue()))


@pytest.fixture
def engine(pair, data, tmp_path):
    """Writes what an engine of the target would, each row a file; `change` edits a file's tensors first."""

    def write(save=as_vllm, held=HELD, model=None, change=lambda tensors: tensors):
        target = load_model(str(pair / "target")).eval() if model is None else model
        data.setup("fit")
        (tmp_path / "engine").mkdir(exist_ok=True)
        for number, row in enumerate(data.train_rows):
            token_L = torch.tensor(row["input_ids"])
            with torch.no_grad(), Taps(target, sorted(held)) as taps:
                normed = target.model(token_L[None]).last_hidden_state[0]
                found = dict(zip(sorted(held), taps.states, strict=True))
            states = torch.stack([found[state][0] for state in held], 1)
            tensors = change({"hidden_states": states, "token_ids": token_L})
            save(tmp_path / "engine", number, tensors if save is not as_specforge else tensors | {"normed": normed})
        return tmp_path / "engine"

    return write


@pytest.fixture
def make(pair, tmp_path):
    def build(held=HELD, **options):
        torch.manual_seed(0)
        features = None if held is None else CachedFeatures(str(tmp_path / "engine"), engine_states=held)
        return DistillationModule(str(pair / "target"), head=Eagle3(states=[0, 1]), features=features, **options)

    return build


LAST = [0, 1, 2]
"""The head's states and the last one, as trainers order them."""


@pytest.mark.parametrize(
    ("save", "held", "options"),
    [
        (as_vllm, HELD, {"chunk_tokens": 5}),
        (as_speculators, HELD, {"chunk_tokens": 0}),
        (as_old_speculators, LAST, {}),
        (as_specforge, LAST, {}),
    ],
)
def test_an_engines_files_train_as_the_target_does(make, engine, data, trainer, save, held, options):
    engine(save, held)
    (losses, read), (expected, plain) = (fit(make(each, **options), data, trainer) for each in (held, None))
    torch.testing.assert_close(losses, expected, rtol=1e-5, atol=1e-6)
    for name, value in read.items():
        torch.testing.assert_close(value, plain[name], rtol=1e-4, atol=1e-5)


def test_the_target_reads_one_row_alone(make, engine, data, trainer):
    engine()
    module, passes = make(), []
    fit(module, data, trainer, max_steps=1)
    module.pair.target_model.model.register_forward_hook(lambda *unused: passes.append(unused[2][0].shape[0]))
    module.draft_training.feature_cache._normed = None
    for batch in list(data.train_dataloader())[:3]:
        module.draft_training.feature_cache(batch, torch.float32)
    assert passes == [1]


def test_states_of_other_layers_are_refused(make, engine, data, trainer):
    engine()
    with pytest.raises(UserError, match=r"does not hold the target's state 1 .* by 0% from state 2; name the ids"):
        fit(make([1, 0, 2]), data, trainer)
    torch.manual_seed(3)
    other = load_model(str(make().pair.target)).eval()
    torch.nn.init.normal_(other.model.layers[0].self_attn.o_proj.weight)
    engine(model=other)
    with pytest.raises(UserError, match="does not hold the target's state"):
        fit(make(), data, trainer)


def test_a_state_that_is_off_by_one_is_named(make, engine, data, trainer):
    """SGLang counts a state as the layer that it comes out of, one less than what reads it."""
    engine(as_specforge, LAST)
    with pytest.raises(UserError, match=r"does not hold the target's state 1 .* by 0% from state 0; name the ids"):
        fit(make([1, 0, 2]), data, trainer)


def test_a_last_state_after_the_norm_is_no_input_of_a_head(pair, engine, data, trainer, tmp_path):
    engine(as_specforge, LAST)
    features = CachedFeatures(str(tmp_path / "engine"), engine_states=LAST)
    module = DistillationModule(str(pair / "target"), head=Eagle3(states=[0, 2]), features=features)
    with pytest.raises(UserError, match="holds state 2 after the final norm, and the head reads it before"):
        fit(module, data, trainer)


def test_states_that_are_missing_are_named(make, engine, data, trainer):
    engine()
    with pytest.raises(UserError, match=r"must have \[0, 1, 2\], .* got \[0, 1\]: let the engine write state 2, too"):
        fit(make([0, 1]), data, trainer)


def other_tokens(tensors):
    return tensors | {"token_ids": tensors["token_ids"] + 1}


def a_token_less(tensors):
    return tensors | {"hidden_states": tensors["hidden_states"][1:]}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_tokens, r"lacks the states of 60 of 60 training rows, row 0 the first: ask the engine"),
        (a_token_less, r"the target's width\] = \[\d+, 3, 16\], got \[\d+, 3, 16\]"),
    ],
)
def test_a_file_of_another_layout_is_refused(make, engine, data, trainer, change, says):
    engine(change=change)
    with pytest.raises(UserError, match=says):
        fit(make(), data, trainer)


def test_a_torn_file_and_an_empty_folder_are_one_line(make, engine, data, trainer):
    folder = engine()
    next(folder.iterdir()).write_bytes(b"torn")
    with pytest.raises(UserError, match=r"cannot read .*; let the engine write it again"):
        fit(make(), data, trainer)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(UserError, match="lacks the states of 60 of 60 training rows"):
        fit(make(), data, trainer)


def test_packed_rows_are_refused(make, pair, tmp_path):
    texts = [json.loads(line)["response"] for line in (pair / "corpus.jsonl").read_text().splitlines()[:9]]
    (tmp_path / "texts.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))
    source = Source(str(tmp_path / "texts.jsonl"))
    data = TextDataModule(str(pair / "target"), train=source, max_length=40, cache_dir=str(tmp_path / "cache"))
    data.setup("fit")
    with pytest.raises(UserError, match=r"got rows that are packed: set data\.pack: false"):
        make().draft_training.take_up_caches(data)


def test_our_own_cache_is_not_written_as_an_engines(make, data):
    with pytest.raises(UserError, match=r"leave features\.engine_states out"):
        make().cache_target("features", data, torch.device("cpu"))
