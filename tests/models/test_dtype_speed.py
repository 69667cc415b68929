import torch

from tempspec.models.dtype_speed import times_float32
from tests.tiny import llama


class Clock:
    """A pass in bfloat16 takes three seconds, one in float32 a second: told by the dtype of what was last called."""

    def __init__(self):
        self.now, self.dtype = 0.0, None

    def watch(self, module, arguments, output):
        self.now += 3.0 if output.logits.dtype == torch.bfloat16 else 1.0

    def __call__(self):
        return self.now


def test_the_ratio_is_of_passes_in_both_dtypes(monkeypatch):
    clock = Clock()
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda module, *rest: clock.watch(module, *rest) if type(module).__name__ == "LlamaForCausalLM" else None
    )
    model = llama(layers=2).to(torch.bfloat16)
    try:
        assert times_float32(model, 5.0, clock) == 3.0
        assert times_float32(model.float(), 5.0, clock) == 1.0
    finally:
        hook.remove()


def test_a_large_copy_is_not_made(monkeypatch):
    monkeypatch.setattr("tempspec.models.dtype_speed.MOST_BYTES", 100)
    assert times_float32(llama().to(torch.bfloat16)) is None
