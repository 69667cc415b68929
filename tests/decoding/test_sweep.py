from dataclasses import dataclass

import pytest

from tempspec.decoding.sweep import Sweep
from tempspec.decoding.work import Queue, works
from tempspec.decoding.worklist import generation_list, next_turn, work_list
from tempspec.errors import UserError
from tempspec.interfaces import BASELINE
from tempspec.plugins.verifiers import BlockVerification, GreedyMatch, TokenwiseRejection


@dataclass(frozen=True)
class Prompt:
    index: int
    key: int
    ids: tuple[int, ...]
    category: str = ""
    turns: int = 1

    def after(self, answers):
        return self.ids + tuple(len(answer) for answer in answers)


PROMPTS = {"a": [Prompt(i, 10 + i, (1, i)) for i in range(3)], "b": [Prompt(0, 50, (2,))]}
VERIFIERS = {"token": TokenwiseRejection(), "block": BlockVerification(), "greedy": GreedyMatch()}


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("timing", [0, 2])
def test_keys_name_items_uniquely_and_for_ever(samples, timing):
    sweep = Sweep([0.0, 0.5], draft_temperatures=["same", 0.0], samples=samples, timing_prompts=timing)
    items = work_list(sweep, VERIFIERS, PROMPTS)
    assert len({item.key for item in items}) == len(items)
    assert items == work_list(sweep, VERIFIERS, PROMPTS)


def test_a_sweep_of_more_holds_every_item_of_one_of_less():
    few = work_list(Sweep([1.0], timing_prompts=1), {"token": VERIFIERS["token"]}, PROMPTS)
    many = work_list(Sweep([0.0, 1.0], samples=2, timing_prompts=2), VERIFIERS, PROMPTS)
    assert set(few) <= set(many)


def test_seeds_depend_on_prompt_and_sample_alone():
    items = work_list(Sweep([0.5, 1.0], samples=2, timing_prompts=1), VERIFIERS, PROMPTS)
    seeds = {}
    for item in items:
        seeds.setdefault((item.prompt.key, item.sample), set()).add(item.request.seed)
    assert all(len(found) == 1 for found in seeds.values())
    assert len({seed for found in seeds.values() for seed in found}) == 4 * 2


def test_a_temperature_given_twice_counts_once_or_is_refused():
    items = generation_list(Sweep(generation_temperatures=[1.0, 1.0, 1]), PROMPTS)
    assert len({item.key for item in items}) == len(items) == sum(len(prompts) for prompts in PROMPTS.values())
    for name in ("target_temperatures", "generation_temperatures"):
        with pytest.raises(ValueError, match=f"{name} must differ in their first six digits"):
            Sweep(**{name: [0.7, 0.70000001]})


def test_works_are_passes_of_one_verifier_and_the_timing_pass():
    items = work_list(Sweep(timing_prompts=2, timing_slots=[1, 2]), VERIFIERS, PROMPTS)
    found = works(items)
    assert [item for work in found for unit in work.units for item in unit] == items
    assert [(work.pass_, work.label, work.timing_slots) for work in found] == [
        *(("acceptance", label, 0) for label in VERIFIERS),
        *(("timing", "", size) for size in (1, 2)),
    ]
    assert len({work.name for work in found}) == len(found)
    assert all(len(unit) == 1 for work in found[:3] for unit in work.units)


def test_a_timed_unit_is_the_same_prompts_by_every_rule():
    items = work_list(Sweep([0.0, 1.0], timing_prompts=2, timing_slots=[2]), VERIFIERS, PROMPTS)
    (*_, timing) = works(items)
    assert len(timing.units) == 2  # at two temperatures; the second set has one prompt, too few to be two together
    for unit in timing.units:
        asked = {}
        for item in unit:
            asked.setdefault(item.verifier, []).append((item.prompt.key, item.request.target_temperature))
        assert next(iter(asked)) == BASELINE
        assert all(found == asked[BASELINE] for found in asked.values())
        assert all(len(found) == item.timing_slots == 2 for found in asked.values())


def test_what_is_timed_together_has_names_of_its_own():
    alone = work_list(Sweep([0.0], timing_prompts=2), VERIFIERS, PROMPTS)
    both = work_list(Sweep([0.0], timing_prompts=2, timing_slots=[1, 2]), VERIFIERS, PROMPTS)
    assert set(alone) < set(both)
    assert len({item.key for item in both}) == len(both)


def test_what_is_answered_is_left_out_of_a_work():
    (work, *_) = works(generation_list(Sweep(generation_temperatures=[0.0, 1.0]), PROMPTS))
    keys = [item.key for unit in work.units for item in unit]
    left = work.left(dict.fromkeys(keys[::2], ""), context=100)
    assert [item.key for unit in left.units for item in unit] == keys[1::2]
    assert left.rows == len(keys[1::2])


def test_a_queue_may_run_dry_and_go_on_with_a_turn():
    talk = {"a": [Prompt(0, 7, (1, 2), turns=2)]}
    (opening,) = generation_list(Sweep(generation_temperatures=[1.0]), talk)
    queue = Queue([opening])
    assert next(queue) == opening.request
    assert next(queue, None) is None
    item = queue.done(opening.key)
    queue.put_back(item.then("xyz"))
    assert next(queue).prompt == (1, 2, 3)
    assert next(queue, None) is None


def test_the_baseline_is_timed_on_the_prompts_of_the_verifiers():
    timing = [
        item for item in work_list(Sweep([0.0, 1.0], timing_prompts=2), VERIFIERS, PROMPTS) if item.pass_ == "timing"
    ]
    by_label = {}
    for item in timing:
        by_label.setdefault(item.verifier, []).append((item.prompt.key, item.request.target_temperature))
    assert by_label[BASELINE] == by_label["token"] == by_label["block"]
    assert by_label["greedy"] == [(key, t) for key, t in by_label[BASELINE] if t == 0]
    labels = [item.verifier for item in timing[:4]]
    assert labels == [BASELINE, "token", "block", "greedy"]


def test_a_conversation_goes_on_in_its_cell_with_its_own_noise():
    talk = {"a": [Prompt(0, 7, (1, 2), "writing", turns=3)]}
    openings = work_list(Sweep([0.0, 1.0], samples=2, timing_prompts=1), VERIFIERS, talk)
    keys, seeds = set(), {}
    for opening in openings:
        chain = [opening]
        while (following := chain[-1].then("x" * chain[-1].turn)) is not None:
            chain.append(following)
        assert [item.key for item in chain] == opening.keys()
        assert [item.request.prompt for item in chain] == [(1, 2), (1, 2, 1), (1, 2, 1, 2)]
        assert [item.turn for item in chain] == [1, 2, 3]
        keys |= {item.key for item in chain}
        for item in chain:
            seeds.setdefault((item.sample, item.turn), set()).add(item.request.seed)
    assert len(keys) == 3 * len(openings)
    assert all(len(found) == 1 for found in seeds.values())
    assert len({seed for found in seeds.values() for seed in found}) == 2 * 3


def test_a_turn_that_the_template_refuses_ends_its_conversation():
    class Strict(Prompt):
        def after(self, answers):
            if "" in answers:
                raise ValueError("the chat template refuses it")
            return super().after(answers)

    (opening,) = generation_list(Sweep(), {"a": [Strict(0, 7, (1, 2), turns=2)]})
    assert next_turn(opening, "x", 99) is not None
    assert next_turn(opening, "", 99) is None


def test_generation_crosses_prompts_temperatures_and_samples():
    items = generation_list(Sweep(generation_temperatures=[0.0, 1.0], samples=2), PROMPTS)
    assert len(items) == 4 * (1 + 2)
    assert {item.verifier for item in items} == {BASELINE}


def test_requests_carry_the_sweeps_truncation_and_stop_ids():
    sweep = Sweep([1.0], top_k=3, top_p=0.9, min_p=0.1, max_new_tokens=7)
    (first, *_) = work_list(sweep, VERIFIERS, PROMPTS, stop_ids={4})
    request = first.request
    assert (request.top_k, request.top_p, request.min_p, request.max_new_tokens) == (3, 0.9, 0.1, 7)
    assert request.stop_ids == {4}
    (unstopped, *_) = work_list(Sweep([1.0], stop_at_eos=False), VERIFIERS, PROMPTS, stop_ids={4})
    assert not unstopped.request.stop_ids


def test_the_baselines_label_is_reserved():
    with pytest.raises(UserError, match="give it another name"):
        work_list(Sweep(), {BASELINE: TokenwiseRejection()}, PROMPTS)
