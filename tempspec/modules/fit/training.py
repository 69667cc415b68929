"""What fit does with a draft: batches to losses, and all that is decided on the way (floor 5).

Axes: B batch, T positions.
"""

import time
from dataclasses import dataclass
from functools import partial, reduce
from operator import add
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor
from transformers import PreTrainedModel

from tempspec.core.noise import fold
from tempspec.errors import UserError
from tempspec.interfaces import Divergence, HeadModel, LossContext, TemperatureSchedule
from tempspec.models.conditioning import condition, conditioned_rank, is_conditioned, set_temperature
from tempspec.models.head_draft import DraftModel
from tempspec.models.pair import Pair
from tempspec.models.ragged import context_length, largest_id
from tempspec.models.recomputing import recompute_activations
from tempspec.modules.callbacks import StepClock
from tempspec.modules.fit.cache_folder import Watch
from tempspec.modules.fit.engine_features import EngineFeatures
from tempspec.modules.fit.features import CachedFeatures, FeatureCache, write_features
from tempspec.modules.fit.head_options import check_head_options, check_reference_head
from tempspec.modules.fit.loss import FitLoss, LossSums, Moment, TokenSelection
from tempspec.modules.fit.online_text import OnlineText, OnlineWriter
from tempspec.modules.fit.served_teacher import ServedTeacher
from tempspec.modules.fit.teacher import open_cache, write_cache
from tempspec.modules.fit.teacher_cache import CachedTeacher, TeacherCache
from tempspec.modules.fit.temperature_check import Span, inconsistency
from tempspec.modules.head_steps import DraftStep, head_steps, read_target
from tempspec.modules.kept import Kept
from tempspec.modules.named import DivergenceLike, ScheduleLike, plugin
from tempspec.modules.openai_client import Server
from tempspec.modules.outputs import Batch, LogitPairs, LogitSource, response
from tempspec.modules.processes import all_reduced, of_all
from tempspec.plugins.divergences import ForwardKL
from tempspec.plugins.schedules import Constant

__all__ = ["Cached", "DraftTraining", "HeadTraining", "Learned"]

Cached = Literal["teacher", "features"]
"""What a cache of the target holds: its logits, or its states."""


class Learned(NamedTuple):
    """What a batch gave.

    Attributes:
        loss: what this process minimises.
        logged: means over the step's batches so far, by name: the last batch's are the step's.
        batch: the rows that were read, where some were written anew.
    """

    loss: Tensor
    logged: dict[str, Tensor | float]
    batch: Batch


@dataclass
class HeadTraining:
    """The unrolled steps that a head learns: at each it reads its own output of the step before.

    Args:
        steps: how many, at least 1.
        decay: a step counts so much less than the one before it, in (0, 1].

    Raises:
        UserError: an option is out of its range.
    """

    steps: int = 3
    decay: float = 0.9

    def __post_init__(self) -> None:
        """Refuse no steps, and weights that grow."""
        if self.steps < 1:
            raise UserError(f"head_training.steps must be 1 or more, got {self.steps}")
        if not 0 < self.decay <= 1:
            raise UserError(f"head_training.decay must be in (0, 1], got {self.decay}")


class DraftTraining:
    """Turns batches into losses of a draft. It owns no parameter: the module that it serves registers what is learned.

    Args:
        pair: the models.
        seed: random loss temperatures derive from it.
        divergence: what fit minimises; ForwardKL by default.
        temperature: the loss temperature, a number or a schedule; 1 by default.
        label_weight: share of the text's own next token in the loss (cross-entropy at temperature 1), in [0, 1].
        average: the loss is the mean over all tokens of a batch, or over its sequences of their own means; batches that
            are accumulated count alike.
        selection: learn only the tokens that the draft can still gain on, by a reference draft; all by default.
        conditioning_rank: make the draft's weights depend on its temperature by changes of this rank: one draft for all
            temperatures, which `tempspec export` merges into an ordinary one; 0 for an ordinary draft.
        online: rows whose response is written while training, by the draft or the target; none by default.
        teacher: a cache of the target's logits: `generate --cache-teacher` writes it, and fit then loads no target.
        features: the target's states on disk: `generate --cache-features` or a serving engine writes them, and fit of a
            head then needs no forward pass of the target.
        chunk_tokens: tokens whose logits exist at a time; null chooses, 0 computes whole logits.
        gradient_checkpointing: keep only the input of each of the draft's layers in fit, or of each of a head's steps,
            and compute the rest again in the backward pass: a third more time for a fraction of the activations.
        head_training: the unrolled steps of a head; 3 by default. A language model has none.
        serve_temperatures: fit leaves the weights of the validation that expects most tokens per round at these
            temperatures; the last ones where none is named.

    Raises:
        UserError: an option is out of its range, or not for a head.
    """

    def __init__(
        self,
        pair: Pair,
        seed: int,
        *,
        divergence: DivergenceLike | None = None,
        temperature: ScheduleLike | float | None = None,
        label_weight: float = 0.0,
        average: Literal["token", "sequence"] = "token",
        selection: TokenSelection | None = None,
        conditioning_rank: int = 0,
        online: OnlineText | None = None,
        teacher: CachedTeacher | None = None,
        features: CachedFeatures | None = None,
        chunk_tokens: int | None = None,
        gradient_checkpointing: bool = False,
        head_training: HeadTraining | None = None,
        serve_temperatures: list[float] | None = None,
    ) -> None:
        if not 0 <= label_weight <= 1:
            raise UserError(f"label_weight must be in [0, 1], got {label_weight}")
        if chunk_tokens is not None and chunk_tokens < 0:
            raise UserError(f"chunk_tokens must be 0 (whole logits) or more, got {chunk_tokens}")
        self.serve_temperatures = [] if serve_temperatures is None else serve_temperatures
        if min(self.serve_temperatures, default=0) < 0:
            raise UserError(f"serve_temperatures must be 0 or more, got {self.serve_temperatures}")
        self.pair = pair
        self.seed = seed
        self.divergence = ForwardKL() if divergence is None else plugin("divergences", divergence)
        self.temperature = _schedule(temperature)
        fraction = selection.fraction if selection else 1.0
        self.loss = FitLoss(self.divergence, self.temperature, label_weight, average, fraction)
        self.reference = None if selection is None else partial(pair.reference_model, selection.reference)
        self.conditioning_rank = conditioning_rank
        self.online = online
        self.teacher = teacher
        self.features = features
        self.chunk_tokens = chunk_tokens
        self.gradient_checkpointing = gradient_checkpointing
        self.head_training = HeadTraining() if head_training is None else head_training
        if pair.head is not None:
            check_head_options(pair.head, online, teacher, features)
        elif features is not None:
            raise UserError("model.features is for a head, got it with a language model: take model.teacher")
        self.cache: TeacherCache | None = None
        self.feature_cache: FeatureCache | EngineFeatures | None = None
        self.total_steps: int | None = None
        self._writer: OnlineWriter | None = None
        self._began = 0.0
        self._steps = StepClock()
        self._sums: list[LossSums] = []

    # -- before training ----------------------------------------------------------------------------------------------

    def take_up_caches(self, data: Any) -> None:
        """Learn from what is cached of the target, where anything is.

        Args:
            data: the data module, set up for fit.

        Raises:
            UserError: see `FeatureCache`, `EngineFeatures` and `tempspec.modules.fit.teacher.open_cache`.
        """
        if self.features is not None:
            kind = FeatureCache if self.features.engine_states is None else EngineFeatures
            self.feature_cache = kind(self.features, self.pair, data)
        if self.teacher is None:
            return
        self.cache = open_cache(
            self.teacher,
            self.pair,
            data,
            self.divergence,
            self.temperature,
            writes=self.online is not None,
            selects=self.reference is not None,
        )
        rank_zero_info(
            "fit learns from a cached teacher, without a target: validate afterwards, with `tempspec validate`"
        )

    def write_cache(self, kind: Cached, data: Any, device: torch.device, watch: Watch | None = None) -> None:
        """Write the cache that `teacher` or `features` describes, from where it stopped.

        Args:
            kind: which of them.
            data: the data module whose training rows the target reads.
            device: where to compute.
            watch: shows how far it is.

        Raises:
            UserError: it is not described, another cache is in its folder, or the disk is too small.
        """
        if (self.teacher if kind == "teacher" else self.features) is None:
            raise UserError(f"--cache-{kind} needs model.{kind}: name at least its folder")
        if kind == "teacher" and self.teacher is not None:
            write_cache(self.teacher, self.pair, data, self.seed, device, watch)
        elif self.features is not None:
            write_features(self.features, self.pair, data, device, watch)

    def write_served_cache(self, data: Any, server: Server, watch: Watch | None = None) -> None:
        """Write the cache that `teacher` describes from a server's log-probabilities, from where it stopped.

        Args:
            data: the data module whose training rows the target reads.
            server: where the target is served.
            watch: called about once a second.

        Raises:
            UserError: it is not described, or the server cannot give it; see `ServedTeacher.write`.
        """
        if self.teacher is None:
            raise UserError("--cache-teacher needs model.teacher: name at least its folder")
        ServedTeacher(self.teacher, self.pair, data, server, watch).write()

    def prepare(self, draft: DraftModel) -> None:
        """Make a draft one that can be trained as asked, in train mode: transformers loads in eval mode.

        Raises:
            UserError: the draft is conditioned by changes of another rank, cannot write, or is a head with a reference
                of other states or tokens.
        """
        self.condition(draft)
        other = None if self.reference is None else self.reference()
        if isinstance(draft, HeadModel) and isinstance(other, HeadModel):
            check_reference_head(draft, other)
        if self.gradient_checkpointing:
            recompute_activations(draft)
        draft.train()
        if self.online is not None:
            self._writer = self._online_writer(self.online, draft)

    def condition(self, draft: DraftModel) -> None:
        """Let the draft's weights depend on its temperature, where that is asked for and they do not.

        Raises:
            UserError: they do, by changes of another rank.
        """
        rank = conditioned_rank(draft)
        if self.conditioning_rank and not rank:
            condition(draft, self.conditioning_rank)
        elif self.conditioning_rank not in (0, rank):
            raise UserError(
                f"model.conditioning_rank must be {rank}, that of the draft in {self.pair.draft}, got "
                f"{self.conditioning_rank}: leave it out, or begin with an ordinary draft"
            )

    def check_draft_ids(self, draft: PreTrainedModel) -> None:
        """A cached teacher's ids must all be the draft's.

        Raises:
            UserError: it lacks some.
        """
        if self.cache is not None and (ids := largest_id(draft) + 1) < self.cache.vocabulary:
            raise UserError(
                f"a cached teacher needs a draft with all of its {self.cache.vocabulary} ids, got one with {ids}: "
                "train without model.teacher, or take another draft"
            )

    def begin(self, generation: list[float], validation: list[float]) -> None:
        """Start the clock that generation takes its share of; say where the temperatures are not consistent.

        Args:
            generation: the temperatures that the training text was sampled at.
            validation: those that acceptance is measured at.
        """
        self._began = time.perf_counter()
        self._steps = StepClock()
        self._sums = []
        online = self.online
        if online is not None and online.share == 1 and online.high is not None:
            generation = [online.low, online.high]
        loss = self.temperature.bounds(self.total_steps) or ()
        note = inconsistency(Span.of(generation), Span.of(loss), Span.of(validation))
        if note is not None:
            rank_zero_info(note)

    # -- batches ------------------------------------------------------------------------------------------------------

    def learn(
        self,
        draft: DraftModel,
        batch: Batch,
        source: LogitSource,
        step: int,
        rank: int,
    ) -> Learned:
        """The divergence at the scheduled temperature over the batch's response tokens.

        Args:
            draft: what learns.
            batch: the batch of the data module.
            source: runs the models.
            step: optimiser steps taken.
            rank: this process's number. With seed and step it decides what is random: a resumed run draws what an
                unbroken one draws.
        """
        number = self._steps.number(step)
        moment = Moment(step, self.total_steps, int(fold(self.seed, step, number, rank)))
        logged: dict[str, Tensor | float] = {}
        if self._writer is not None:
            batch = self._written(draft, batch, moment, number, self._writer)
            elapsed = time.perf_counter() - self._began
            logged["generation_share"] = min(self._writer.seconds / max(elapsed, 1e-9), 1.0)
        if is_conditioned(draft):
            set_temperature(draft, self.loss.draft_temperature(batch, moment))
        steps, reference = self._read(draft, batch, source)
        found = self.loss(steps, moment, reference, all_reduced)
        self._sums = [one + two for one, two in zip(self._sums, found.sums, strict=True)] if self._sums else found.sums
        return Learned(found.loss, {**logged, **self._means()}, batch)

    def _read(self, draft: DraftModel, batch: Batch, source: LogitSource) -> tuple[list[DraftStep], list[LogitPairs]]:
        """The draft's steps on a batch, and for selection the reference draft's logits at each step's tokens."""
        if isinstance(draft, HeadModel):
            return self._read_head(draft, batch, source)
        kept = Kept.of(response(batch))
        with torch.no_grad():
            if self.cache is not None:
                target: Any = self.cache(batch["row"], batch["weight"])
            else:
                target = source.of(self.pair.target_model, batch, kept)
            best = None if self.reference is None else source.of(self.reference(), batch, kept)
        pairs = source.pairs(target, source.of(draft, batch, kept))
        return [DraftStep(batch, pairs, kept)], [] if best is None else [source.pairs(target, best)]

    def _read_head(
        self, head: HeadModel, batch: Batch, source: LogitSource
    ) -> tuple[list[DraftStep], list[LogitPairs]]:
        target, options = self.pair.target_model, self.head_training
        read = read_target(head, target, batch, source, self.feature_cache)
        place = target, batch, source, options.steps, options.decay
        found, other = list(head_steps(head, *place, read=read)), None if self.reference is None else self.reference()
        if not isinstance(other, HeadModel):
            return found, []
        with torch.no_grad():
            return found, [step.pairs for step in head_steps(other, *place, read=read)]

    def _means(self) -> dict[str, Tensor]:
        """What is logged of the step's batches so far; of a head its acceptance at each of its steps as well."""
        own = {f"acceptance_{number}": sums.means()["acceptance"] for number, sums in enumerate(self._sums, 1)}
        return {**reduce(add, self._sums).means(), **(own if len(own) > 1 else {})}

    @property
    def forgets(self) -> bool:
        """Whether the divergence takes no note of its loss: one that does must never see a broken one."""
        return type(self.divergence).observe is Divergence.observe

    def observe_step(self, step: int) -> None:
        """Tell the divergence how the step went, and begin another."""
        assert self._sums
        loss, self._sums = self._means()["loss"], []
        self.divergence.observe(loss, LossContext(step, self.total_steps))

    # -- text that is written while training --------------------------------------------------------------------------

    def _online_writer(self, options: OnlineText, draft: DraftModel) -> OnlineWriter:
        if is_conditioned(draft) and options.writer != "target":
            raise UserError("a conditioned draft cannot write its own text yet: set online.writer to target")
        self.pair.options.attention(decoding=True)  # refused now, not when the first text is due
        read = [model for model in (self.pair.target_model, draft) if isinstance(model, PreTrainedModel)]
        context = min(context_length(model.config) for model in read)
        return OnlineWriter(options, self.pair.vocabulary, self.pair.stop_ids, context)

    def _written(self, draft: DraftModel, batch: Batch, moment: Moment, number: int, writer: OnlineWriter) -> Batch:
        """The batch with rows that the draft or the target writes now."""
        by = writer.options.writer
        own = by == "draft" and isinstance(draft, PreTrainedModel)
        author = draft if own else self.pair.target_model
        other = draft if by == "both" else None
        with self.pair.decode_with(*(model for model in (author, other) if isinstance(model, PreTrainedModel))):
            return writer(batch, author, moment.step, moment.key, other, number)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps: text that may be used again before the next is written, of all ranks."""
        if self._writer is None or self._writer.options.every == 1:
            return {}
        return {"online_text": of_all(self._writer.written)}

    def take_up(self, checkpoint: dict[str, Any], rank: int, processes: int) -> None:
        """Continue with the text that a checkpoint has kept.

        Raises:
            UserError: another number of processes wrote it.
        """
        texts = checkpoint.get("online_text")
        if self._writer is None or texts is None:
            return
        if len(texts) != processes:
            raise UserError(
                f"expected the {len(texts)} processes that wrote the checkpoint's text, got {processes}: "
                "resume with as many"
            )
        self._writer.written = texts[rank]


def _schedule(temperature: ScheduleLike | float | None) -> TemperatureSchedule:
    if isinstance(temperature, str):
        return plugin("schedules", temperature)
    if isinstance(temperature, TemperatureSchedule):
        return temperature
    return Constant(1.0 if temperature is None else temperature)
