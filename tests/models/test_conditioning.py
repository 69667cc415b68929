import pytest
import torch
from huggingface_hub import constants
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from transformers import AutoModelForCausalLM

from tempspec.errors import UserError
from tempspec.models.conditioning import (
    FILE,
    RANGE,
    at_temperature,
    condition,
    is_conditioned,
    load_conditioning,
    ordinary,
    plain_state,
    save_conditioning,
    set_temperature,
    trained_range,
)
from tempspec.models.eagle3 import Eagle3
from tempspec.models.loading import load_draft, load_model, save_model
from tempspec.models.tapping import head_target
from tests.tiny import llama

IDS = torch.arange(12).view(2, 6)


def tiny(seed=0):
    return llama(seed, layers=2, attention_bias=True)


def conditioned(rank=3, seed=0):
    """A conditioned model whose changes are as large as its weights."""
    model = condition(tiny(seed), rank)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".up"):
                parameter.normal_(std=0.3)
    return model


def logits(model, temperature=None, ids=IDS):
    set_temperature(model, temperature)
    with torch.no_grad():
        return model(input_ids=ids).logits


@pytest.mark.parametrize("temperature", [0.0, 0.1, 0.5, 0.8, 1.0, 1.5, 4.0])
def test_folding_is_conditioning(temperature):
    model = conditioned()
    merged = at_temperature(model, temperature)
    assert not is_conditioned(merged)
    assert is_conditioned(model)
    expected = logits(model, temperature)
    torch.testing.assert_close(logits(merged), expected, rtol=1e-5, atol=1e-5)
    if temperature != 1:
        assert not torch.allclose(expected, logits(model, 1.0), atol=1e-2)


def trained(low, high):
    """A conditioned model that says it was trained between two temperatures."""
    model = conditioned().train()
    for temperature in (torch.tensor([high, low]), (low + high) / 2):
        set_temperature(model, temperature)
    return model.eval()


@pytest.mark.parametrize(("asked", "nearest"), [(0.0, 0.5), (0.4, 0.5), (0.5, 0.5), (1.2, 1.2), (2.0, 2.0), (9.0, 2.0)])
def test_outside_the_trained_range_the_nearest_end_is_taken(tmp_path, asked, nearest):
    free, model = conditioned(), trained(0.5, 2.0)
    expected = logits(free, nearest)
    torch.testing.assert_close(logits(model, asked), expected)
    torch.testing.assert_close(logits(model, torch.tensor([asked, asked])), expected)
    torch.testing.assert_close(logits(at_temperature(model, asked)), expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path, state_dict=plain_state(model))
    save_conditioning(model, tmp_path)
    loaded = load_conditioning(AutoModelForCausalLM.from_pretrained(tmp_path), tmp_path)
    torch.testing.assert_close(logits(loaded, asked), expected)
    if asked != nearest:
        assert not torch.allclose(expected, logits(free, asked), atol=1e-2)


def test_measuring_does_not_widen_the_trained_range():
    model = trained(0.5, 2.0)
    logits(model, 9.0)
    assert trained_range(model).range_2.tolist() == [0.5, 2.0]


def test_ddp_would_broadcast_no_range_of_temperatures():
    """DDP overwrites every rank's buffers with rank 0's before each forward pass."""
    model = trained(0.5, 2.0)
    assert not [name for name, _ in model.named_buffers() if RANGE in name]
    again = condition(tiny(), 3)
    again.load_state_dict(model.state_dict())
    assert trained_range(again).range_2.tolist() == [0.5, 2.0]


def test_the_range_is_that_of_all_processes(monkeypatch):
    asked = []

    def others(lowest_2, how):
        asked.append(how)
        lowest_2.copy_(torch.minimum(lowest_2, torch.tensor([0.7, -2.5])))

    for name, value in (("is_initialized", lambda: True), ("all_reduce", others)):
        monkeypatch.setattr(torch.distributed, name, value)
    assert trained_range(trained(0.5, 2.0)).range_2.tolist() == [0.5, 2.5]
    assert asked == [torch.distributed.ReduceOp.MIN] * 2


def test_the_range_is_as_exact_in_a_model_of_half_precision():
    low, high = torch.tensor([0.3, 1.7])
    model = trained(float(low), float(high)).to(torch.bfloat16)
    assert torch.equal(trained_range(model).range_2, torch.stack([low, high]))


def test_rows_of_one_batch_have_their_own_temperatures():
    model = conditioned()
    both = logits(model, torch.tensor([0.5, 2.0]))
    for row, temperature in enumerate((0.5, 2.0)):
        alone = logits(model, temperature, IDS[row : row + 1])
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def head_laws(head, temperature=None, rows=slice(None)):
    """The logits of two unrolled steps over two texts, with states that do not depend on the head."""
    torch.manual_seed(1)
    states = [torch.randn(2, 6, 16) for _ in head.states]
    embedding = torch.nn.Embedding(24, 16).requires_grad_(False)
    set_temperature(head, temperature)
    with torch.no_grad():
        steps = head.unrolled([state[rows] for state in states], IDS[rows], embedding, 2)
        return torch.stack([head.logits(hidden) for hidden in steps], 1)


def conditioned_head(rank=3):
    head = condition(Eagle3(states=[0, 1, 2]).build(head_target(tiny())), rank)
    for name, parameter in head.named_parameters():
        if name.endswith((".up", "lm_head.weight")):
            torch.nn.init.normal_(parameter, std=0.3)
    return head


def test_a_head_is_conditioned_below_its_output_matrix():
    head = conditioned_head()
    plain = Eagle3(states=[0, 1, 2]).build(head_target(tiny()))
    assert plain_state(head).keys() == plain.state_dict().keys()
    changed = {name.removesuffix(".up") for name, _ in head.named_parameters() if name.endswith(".up")}
    linear = {name for name, module in plain.named_modules() if type(module) is torch.nn.Linear}
    assert changed == linear - {"lm_head"}


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.5])
def test_folding_a_head_is_conditioning_it(temperature):
    head = conditioned_head()
    folded, expected = at_temperature(head, temperature), head_laws(head, temperature)
    assert not is_conditioned(folded)
    torch.testing.assert_close(head_laws(folded), expected, rtol=1e-5, atol=1e-5)
    for other in (0.0, 0.5, 1.0, 1.5):
        if other != temperature:
            assert not torch.allclose(expected, head_laws(head, other), atol=1e-2)


def test_rows_of_a_heads_batch_have_their_own_temperatures():
    head = conditioned_head()
    both = head_laws(head, torch.tensor([0.5, 2.0]))
    for row, temperature in enumerate((0.5, 2.0)):
        alone = head_laws(head, temperature, slice(row, row + 1))
        torch.testing.assert_close(both[row : row + 1], alone, rtol=1e-5, atol=1e-5)


def test_an_ordinary_copy_has_the_weights_of_one():
    head = conditioned_head()
    assert torch.equal(head_laws(ordinary(head)), head_laws(head, None))
    assert not is_conditioned(ordinary(head))
    assert is_conditioned(head)
    assert ordinary(plain := tiny()) is plain


def test_at_one_and_before_training_it_is_the_ordinary_model():
    expected = logits(tiny())
    torch.testing.assert_close(logits(conditioned(), 1.0), expected)
    torch.testing.assert_close(logits(conditioned(), None), expected)
    torch.testing.assert_close(logits(condition(tiny(), 2), 0.3), expected)


def test_on_disk_it_is_an_ordinary_checkpoint_and_one_more_file(tmp_path):
    model = conditioned()
    save_model(model, None, tmp_path / "draft")
    assert (tmp_path / "draft" / FILE).is_file()
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "draft")), logits(tiny()))
    again = load_draft(str(tmp_path / "draft"))
    torch.testing.assert_close(logits(again, 0.4), logits(model, 0.4))
    save_model(at_temperature(model, 0.4), None, tmp_path / "merged")
    assert not (tmp_path / "merged" / FILE).exists()
    torch.testing.assert_close(logits(load_model(str(tmp_path / "merged"))), logits(model, 0.4), rtol=1e-5, atol=1e-5)


def test_a_draft_is_conditioned_wherever_its_path_leads(tmp_path, monkeypatch):
    model = conditioned()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")  # nothing listens on the discard port: the cache alone
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    snapshots = tmp_path / "models--someone--draft" / "snapshots"
    snapshots.mkdir(parents=True)
    for folder in (tmp_path / "draft", snapshots / ("0" * 40)):
        save_model(model, None, folder)
    for path in ("~/draft", str(tmp_path / "draft"), "someone/draft"):
        revision = "0" * 40 if path == "someone/draft" else None
        torch.testing.assert_close(logits(load_draft(path, revision=revision), 0.4), logits(model, 0.4))
    (snapshots / ("0" * 40) / FILE).unlink()
    assert not is_conditioned(load_draft("someone/draft", revision="0" * 40))


def test_a_torn_file_is_one_line(tmp_path):
    save_model(conditioned(), None, tmp_path / "draft")
    (tmp_path / "draft" / FILE).write_text("torn")
    with pytest.raises(UserError, match="cannot load a model from") as caught:
        load_draft(str(tmp_path / "draft"))
    assert "\n" not in str(caught.value)


def test_only_the_changes_are_added_and_all_get_a_gradient():
    ordinary, model = tiny(), conditioned()
    assert plain_state(model).keys() == ordinary.state_dict().keys()
    set_temperature(model, torch.tensor([0.5, 2.0]))
    model(input_ids=IDS).logits.square().sum().backward()
    changes = [p for name, p in model.named_parameters() if name.endswith((".up", ".down"))]
    assert len(changes) == 2 * 2 * 7
    assert all(parameter.grad.abs().max() > 0 for parameter in changes)


def test_what_cannot_be_done_is_refused(tmp_path):
    with pytest.raises(UserError, match="conditioning_rank must be 1 or more, got 0"):
        condition(tiny(), 0)
    with pytest.raises(UserError, match="got an ordinary one, which is the same at every temperature"):
        at_temperature(tiny(), 0.5)
    save_model(conditioned(), None, tmp_path / "draft")
    other = tiny()
    other.model.layers = other.model.layers[:1]
    with pytest.raises(UserError, match=r"belongs to another model: it has a model\.layers\.1"):
        load_conditioning(other, tmp_path / "draft")
    assert load_conditioning(tiny(), tmp_path) is not None


def test_a_training_step_runs_on_tensors_without_contents():
    """As `fit --estimate` does, which puts fake tensors in the place of parameters and buffers."""
    model = condition(tiny(), 2)
    with FakeTensorMode():
        for module in model.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                setattr(module, name, torch.nn.Parameter(torch.empty(value.shape), value.requires_grad))
            for name, value in list(module.named_buffers(recurse=False)):
                setattr(module, name, torch.empty(value.shape))
        set_temperature(model.train(), 1.0)
        assert isinstance(model(input_ids=torch.zeros(1, 4, dtype=torch.int64)).logits, FakeTensor)
