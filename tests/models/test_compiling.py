"""What is recorded of forward passes, and what runs eagerly; with recorders of a CPU, as CUDA graphs need a GPU."""

import warnings

import pytest
import torch

from tempspec.models.compiling import Recorded


def forward(token_RN, start_R, view, keep, visible_RNN=None):
    seen_RN = 0 if visible_RNN is None else visible_RNN.sum(-1)
    return (token_RN * view + start_R[:, None] + seen_RN)[:, -keep:]


class Recorder:
    """Makes recordings that own their inputs, as a CUDA graph does, and counts them."""

    def __init__(self, error=None):
        self.made, self.error = 0, error

    def __call__(self, forward, token_RN, start_R, view, keep, visible_RNN):
        self.made += 1
        if self.error:
            raise self.error
        own = [None if value is None else value.clone() for value in (token_RN, start_R, visible_RNN)]

        def replay(*given):
            for mine, value in zip(own, given, strict=True):
                if mine is not None:
                    mine.copy_(value)
            return forward(*own[:2], view, keep, own[2])

        return replay


def inputs(width, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(9, (2, width), generator=generator), torch.randint(9, (2,), generator=generator)


def equal_to_eager(passes, widths):
    return all(
        torch.equal(passes(*given, view, 1), forward(*given, view, 1))
        for view in (8, 16)
        for seed, width in enumerate(widths)
        for given in [inputs(width, seed)]
    )


def test_each_shape_is_recorded_once():
    recorder = Recorder()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert equal_to_eager(Recorded(forward, recorder), [1, 3, 1, 1, 3])
    assert recorder.made == 4


def test_trees_are_recorded_for_each_size_of_what_is_seen():
    recorder = Recorder()
    passes = Recorded(forward, recorder)
    for seed, (new, tree) in enumerate([(2, 2), (2, 4), (2, 2), (2, 4)]):
        given, seen = inputs(new, seed), torch.rand(2, new, tree) < 0.5
        assert torch.equal(passes(*given, 8, 1, seen), forward(*given, 8, 1, seen))
    assert torch.equal(passes(*inputs(2, 9), 8, 1), forward(*inputs(2, 9), 8, 1))
    assert recorder.made == 3


def test_shapes_beyond_the_most_run_eagerly_and_say_so_once():
    recorder = Recorder()
    passes = Recorded(forward, recorder, most=2)
    with pytest.warns(UserWarning, match="run eagerly, as 2 shapes are recorded") as told:
        assert equal_to_eager(passes, [1, 2, 3, 1, 4])
    assert recorder.made == 2
    assert len(told) == 1


def test_what_cannot_be_recorded_runs_eagerly_and_says_why():
    recorder = Recorder(RuntimeError("operation not permitted\nwhen stream is capturing"))
    with pytest.warns(UserWarning, match=r"run eagerly, as operation not permitted$") as told:
        assert equal_to_eager(Recorded(forward, recorder), [1, 2, 1])
    assert recorder.made == 1
    assert len(told) == 1


def test_a_users_own_error_is_not_hidden():
    with pytest.raises(ValueError, match="mine"):
        Recorded(forward, Recorder(ValueError("mine")))(*inputs(1, 0), 8, 1)
