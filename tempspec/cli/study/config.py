"""What a study's YAML says, and the ordinary configurations that it means (floor 6)."""

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tempspec.cli.study.dependence import Config, for_cache, in_words
from tempspec.cli.study.drafts import Candidate, Run
from tempspec.data.prompts import PromptSource
from tempspec.errors import UserError
from tempspec.reporting.study_index import DraftIndex, Kind, Prefixes

__all__ = ["Purpose", "Study"]

_OWN = {
    "run": "study",
    "task": "",
    "seed_everything": "seeds",
    "model.seed": "seeds",
    "model.sweep.seed": "seeds",
    "data.seed": "seeds",
    "model.validation_temperatures": "reference_temperature and the sweep's temperatures",
    "model.sweep.fitted_on": "fitting_prompts",
    "data.validation": "fixed and experiment.data.prompts",
    "model.teacher": "the study's own teacher",
    "model.features": "the study's own features",
}
"""Options that a study sets for every run, and what it makes them from."""

_TEXT_SEED = 0
"""Of all shared texts and caches: other seeds of a study are other trainings, measured on the same texts."""

Purpose = Literal["sampled", "training", "fitting"]
"""What the target's own texts are for: to measure acceptance on, to train drafts on, to fit draft temperatures on."""


@dataclass
class Study:
    """A grid of drafts x seeds, each with the experiment's verifiers, temperatures and prompt sets.

    Args:
        study: the study's folder.
        experiment: what all runs share: `trainer`, `model` and `data` as in any configuration.
        drafts: the drafts, by names of your own.
        kind: the question that it asks, which decides what the report begins with.
        seeds: each draft is distilled and decoded once for each; the texts have a seed of their own.
        reference_temperature: where falls of acceptance are counted from.
        fixed: the text that is the same at every temperature: the `continuation` of each prompt in its own file, or,
            for files of prompts alone, what the target `sampled` at the reference temperature.
        out_of_domain: the prompt sets that are unlike what the drafts were trained on.
        training_prompts: where the target's own training texts begin: a prompt source as under `data.prompts`, or
            several by name.
        fitting_prompts: where the target's own texts begin that `fitted` draft temperatures are found on: none of the
            prompts that are measured.
        decoded_prompts: decode at most so many prompts of each set, or of each category where rows have one; all that
            acceptance is measured on by default.
        teacher: keep the target's logits on the drafts' training texts, once for all drafts: the options of
            `model.teacher` but its folder.
        features: keep the target's states instead, for heads: the options of `model.features` but its folder.
        quickstart: make the quickstart's corpus, target and draft in this folder if the experiment names them.
    """

    study: str
    experiment: dict[str, Any]
    drafts: dict[str, Candidate]
    kind: Kind = "custom"
    seeds: list[int] = field(default_factory=lambda: [0])
    reference_temperature: float = 1.0
    fixed: Literal["continuation", "sampled"] = "continuation"
    out_of_domain: list[str] = field(default_factory=list)
    training_prompts: dict[str, Any] | None = None
    fitting_prompts: dict[str, Any] | None = None
    decoded_prompts: int | None = None
    teacher: dict[str, Any] | None = None
    features: dict[str, Any] | None = None
    quickstart: str | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "Study":
        """The study of parsed options; plugins in them stay names for the runs' own configurations to resolve.

        Raises:
            ValueError: it is none that could be run.
        """
        drafts = {name: Candidate(**draft) for name, draft in options["drafts"].items()}
        return cls(**(dict(options) | {"drafts": drafts}))

    def __post_init__(self) -> None:
        """Refuse what no study could be.

        Raises:
            ValueError: saying what is missing.
        """
        if not self.drafts or not self.seeds:
            raise ValueError("a study needs at least one draft and one seed")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds must differ, got {self.seeds}: one seed is one run of each draft")
        for section in ("model", "data"):
            if not isinstance(self.experiment.get(section), dict):
                raise ValueError(f"experiment.{section} is missing; write it as in any configuration")
        if self.decoded_prompts is not None and self.decoded_prompts < 1:
            raise ValueError(f"decoded_prompts must be 1 or more, got {self.decoded_prompts}")
        if self.teacher is not None and self.features is not None:
            raise ValueError("teacher and features are two caches of one target: name one of them")
        for option, source in _OWN.items():
            if _given(self.experiment, option) or any(option in draft.options for draft in self.drafts.values()):
                made = f": it makes it from {source}" if source else ""
                raise ValueError(f"{option} is what a study sets itself{made}; leave it out")
        if not self.prompts:
            raise ValueError("experiment.data.prompts is empty; name at least one prompt set")
        if unknown := [name for name in self.out_of_domain if name not in self.prompts]:
            raise ValueError(f"out_of_domain names {unknown[0]!r}, which is none of {', '.join(self.prompts)}")
        if self.training_temperatures and self.training_prompts is None:
            raise ValueError(
                "generation_temperatures need training_prompts: the prompts that training texts begin with"
            )
        known = self.sources("training")
        for name, draft in self.drafts.items():
            if unknown := [source for source in draft.training_prompts if source not in known]:
                option = f"drafts.{name}.training_prompts"
                raise ValueError(f"{option} names {unknown[0]!r}, which is none of {', '.join(known) or 'none'}")
        if unmeasured := [run.draft for run in self.runs if not run.candidate.measured and self._fitted(run)]:
            raise ValueError(
                f"drafts.{unmeasured[0]}: fitted draft temperatures are found by what measured: false omits"
            )
        if self.fitting_prompts is None and any(map(self._fitted, self.runs)):
            raise ValueError(
                "fitted draft temperatures need fitting_prompts: prompts other than those that are measured, whose "
                "answers they are fitted on"
            )

    @property
    def folder(self) -> Path:
        """The study's folder."""
        return Path(self.study)

    @property
    def texts(self) -> Path:
        """Where the texts are that all runs share."""
        return self.folder / "shared"

    @property
    def prompts(self) -> dict[str, Any]:
        """The prompt sets."""
        return dict(self.experiment["data"].get("prompts") or {})

    @property
    def target_temperatures(self) -> list[float]:
        """That are decoded at."""
        sweep = self.experiment["model"].get("sweep") or {}
        return [float(t) for t in sweep.get("target_temperatures", [0.0, 0.5, 1.0, 1.5])]

    @property
    def draft_temperatures(self) -> list[Any]:
        """That are proposed at: `same` or numbers."""
        given = (self.experiment["model"].get("sweep") or {}).get("draft_temperatures", "same")
        return list(given) if isinstance(given, list) else [given]

    @property
    def sampled_temperatures(self) -> list[float]:
        """That the target writes at for the analytic acceptance."""
        return sorted({*self.target_temperatures, self.reference_temperature})

    @property
    def training_temperatures(self) -> list[float]:
        """That the target writes at for training."""
        return sorted({t for draft in self.drafts.values() for t in draft.generation_temperatures})

    @property
    def purposes(self) -> list[Purpose]:
        """What the target writes texts for."""
        found: list[Purpose] = ["sampled"]
        found += ["training"] if self.training_temperatures else []
        return [*found, "fitting"] if any(map(self._fitted, self.runs)) else found

    def purposes_of(self, run: Run) -> list[Purpose]:
        """What the target writes texts for that a run reads."""
        found: list[Purpose] = ["sampled"]
        found += ["training"] if run.candidate.generation_temperatures else []
        return [*found, "fitting"] if self._fitted(run) else found

    def temperatures_of(self, purpose: Purpose) -> list[float]:
        """What the target writes the texts of a purpose at."""
        if purpose == "sampled":
            return self.sampled_temperatures
        return self.training_temperatures if purpose == "training" else self.target_temperatures

    @property
    def runs(self) -> list[Run]:
        """All runs, in order."""
        return [Run(name, seed, draft) for name, draft in self.drafts.items() for seed in self.seeds]

    # -- what the report is told ---------------------------------------------------------------------------------------

    @property
    def prefixes(self) -> Prefixes:
        """The validation sets by prompt set."""
        sampled = {
            name: {f"{t:g}": f"{name} sampled@{t:g}" for t in self.sampled_temperatures} for name in self.prompts
        }
        fixed = {
            name: name if self.fixed == "continuation" else sampled[name][f"{self.reference_temperature:g}"]
            for name in self.prompts
        }
        return Prefixes(fixed, sampled)

    def draft_index(self) -> dict[str, DraftIndex]:
        """Labels and run folders."""
        return {
            name: DraftIndex(
                {"fitted": draft.fit} | draft.labels, {str(seed): f"runs/{name}-s{seed}" for seed in self.seeds}
            )
            for name, draft in self.drafts.items()
        }

    def domains(self) -> dict[str, dict[str, str]]:
        """Each prompt set's domain."""
        return {name: {"domain": "out" if name in self.out_of_domain else "in"} for name in self.prompts}

    # -- ordinary configurations ---------------------------------------------------------------------------------------

    def run_config(self, run: Run) -> Config:
        """The configuration of a run, for fit, validate and predict."""
        config = self._of_draft(run)
        config["data"]["prompts"] = {name: self._decoded(source) for name, source in self.prompts.items()}
        if (cache := self.cache_config(run)) is not None:
            config["model"][self.cache] = cache["model"][self.cache]
        if self._fitted(run):
            fitting = {f"fitting sampled@{t:g}": self._text_file("fitting", t) for t in self.target_temperatures}
            config["data"]["validation"] |= fitting
            config["model"]["sweep"]["fitted_on"] = list(fitting)
        return config

    @property
    def cache(self) -> str:
        """What is kept of the target for all trainings: `teacher`, `features`, or nothing."""
        return "features" if self.features is not None else "teacher" if self.teacher is not None else ""

    def cache_config(self, run: Run) -> Config | None:
        """The configuration that makes the cache which a run learns from; runs with the same text share one."""
        if not (self.cache and run.candidate.fit and run.candidate.cached):
            return None
        options = self.features or self.teacher or {}
        config = self._of_draft(run)
        digest = hashlib.sha256(in_words(for_cache(config, self.cache) | {"options": options}).encode()).hexdigest()
        folder = self.texts / f"{self.cache}-{digest[:8]}"
        config |= {"run": folder.as_posix(), "seed_everything": _TEXT_SEED}
        for option in ("model.seed", "model.sweep.seed", "data.seed"):
            _set(config, option, _TEXT_SEED)
        config["model"][self.cache] = copy.deepcopy(options) | {"folder": (folder / "cache").as_posix()}
        return config

    def texts_config(self, name: Purpose) -> Config:
        """The configuration that generates the texts of one purpose, at all their temperatures in one batch."""
        config = self._base(self.texts / name, _TEXT_SEED)
        _set(config, "model.sweep.generation_temperatures", self.temperatures_of(name))
        _set(config, "model.sweep.samples", 1)
        if name != "sampled":
            config["data"]["prompts"] = copy.deepcopy(self.sources(name))
        return config

    def sources(self, purpose: Purpose) -> dict[str, Any]:
        """The prompts that the texts of a purpose begin with, by name; a source alone has the purpose's."""
        if purpose == "sampled":
            return self.prompts
        given = self.training_prompts if purpose == "training" else self.fitting_prompts
        named = purpose == "training" and given and all(isinstance(source, Mapping) for source in given.values())
        return {} if given is None else dict(given) if named else {purpose: given}

    def training_texts(self, candidate: Candidate) -> list[dict[str, str]]:
        """The files of a draft's training texts."""
        names = candidate.training_prompts or list(self.sources("training"))
        parts = [() if name == "training" else (name,) for name in names]
        return [self._text_file("training", *part, t) for part in parts for t in candidate.generation_temperatures]

    def _fitted(self, run: Run) -> bool:
        """Whether a draft temperature of the run is to be fitted."""
        sweep = self.experiment["model"].get("sweep") or {}
        given = run.candidate.options.get("model.sweep.draft_temperatures", sweep.get("draft_temperatures"))
        return "fitted" in (given if isinstance(given, list) else [given])

    def _of_draft(self, run: Run) -> Config:
        """The configuration of a run, all prompts included."""
        config = self._base(self.folder / "runs" / run.name, run.seed)
        grid = [*self.sampled_temperatures, *(float(t) for t in self.draft_temperatures if not isinstance(t, str))]
        config["model"]["validation_temperatures"] = sorted(set(grid))
        if run.candidate.generation_temperatures:
            config["data"]["train"] = self.training_texts(run.candidate)
        for option, value in run.candidate.options.items():
            _set(config, option, value)
        config["data"]["validation"] = dict(self._validation())
        return config

    def _decoded(self, source: Any) -> Any:
        """A prompt set, as far as it is decoded."""
        if self.decoded_prompts is None:
            return source
        given = {"path": source} if isinstance(source, str) else dict(source)
        held = given.get("limit", PromptSource.limit)
        return given | {"limit": self.decoded_prompts if held is None else min(held, self.decoded_prompts)}

    def _text_file(self, *parts: str | float) -> dict[str, str]:
        """The source of a file of shared texts."""
        stem = "-".join(part if isinstance(part, str) else f"{part:g}" for part in parts)
        return {"path": (self.texts / f"{stem}.parquet").as_posix()}

    def _base(self, folder: Path, seed: int) -> Config:
        config = copy.deepcopy(self.experiment)
        config |= {"task": "distillation", "run": folder.as_posix(), "seed_everything": seed}
        for option in ("model.seed", "model.sweep.seed", "data.seed"):
            _set(config, option, seed)
        return config

    def _validation(self) -> Iterator[tuple[str, Mapping[str, str]]]:
        for name in self.prompts:
            if self.fixed == "continuation":
                yield name, self._text_file("fixed", name)
            for temperature, label in self.prefixes.sampled[name].items():
                yield label, self._text_file("sampled", name, temperature)


def _given(config: Config, option: str) -> bool:
    """Whether there is an option of this dotted name."""
    held: Any = config
    for part in option.split("."):
        if not isinstance(held, dict) or part not in held:
            return False
        held = held[part]
    return True


def _set(config: Config, option: str, value: Any) -> None:
    """Set an option by the name of its flag.

    Raises:
        UserError: there is something else in its way.
    """
    *sections, name = option.split(".")
    for section in sections:
        config = config.setdefault(section, {})
        if not isinstance(config, dict):
            raise UserError(f"drafts: cannot set {option}: {section} is {json.dumps(config)}, not a section")
    config[name] = copy.deepcopy(value)
