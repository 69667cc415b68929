"""tempspec: train the draft for the temperature you serve at, and know what you gain at every temperature.

Importing this package is cheap: every name of its face is imported when it is first used, and torch, Lightning and
transformers with it. `dir(tempspec)` lists them: the modules, what they are made of, every registered plugin's class.
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # what type checkers and editors see of the face; nothing here is ever run
    from tempspec.data.module import TextDataModule as TextDataModule
    from tempspec.data.prompts import PromptSource as PromptSource
    from tempspec.data.sources import Source as Source
    from tempspec.decoding.engine import Engine as Engine
    from tempspec.decoding.sweep import Sweep as Sweep
    from tempspec.errors import UserError as UserError
    from tempspec.interfaces import Completion as Completion
    from tempspec.interfaces import Request as Request
    from tempspec.metrics.collection import DecodingMetrics as DecodingMetrics
    from tempspec.metrics.collection import SweepMetrics as SweepMetrics
    from tempspec.models.eagle3 import Eagle3 as Eagle3
    from tempspec.models.loading import ModelOptions as ModelOptions
    from tempspec.models.loading import load_draft as load_draft
    from tempspec.modules.callbacks.acceptance import AcceptanceCallback as AcceptanceCallback
    from tempspec.modules.callbacks.trainer_acceptance import AcceptanceTrainerCallback as AcceptanceTrainerCallback
    from tempspec.modules.distillation import DistillationModule as DistillationModule
    from tempspec.modules.fit.features import CachedFeatures as CachedFeatures
    from tempspec.modules.fit.loss import TokenSelection as TokenSelection
    from tempspec.modules.fit.online_text import OnlineText as OnlineText
    from tempspec.modules.fit.teacher_cache import CachedTeacher as CachedTeacher
    from tempspec.modules.fit.training import HeadTraining as HeadTraining
    from tempspec.modules.language_model import LanguageModelModule as LanguageModelModule
    from tempspec.modules.language_model import ModelShape as ModelShape
    from tempspec.one_call import decode as decode
    from tempspec.plugins.divergences import TAID as TAID
    from tempspec.plugins.divergences import AdaptiveKL as AdaptiveKL
    from tempspec.plugins.divergences import AlphaBeta as AlphaBeta
    from tempspec.plugins.divergences import ForwardKL as ForwardKL
    from tempspec.plugins.divergences import JensenShannon as JensenShannon
    from tempspec.plugins.divergences import LabelCrossEntropy as LabelCrossEntropy
    from tempspec.plugins.divergences import LKHybrid as LKHybrid
    from tempspec.plugins.divergences import LogitDifference as LogitDifference
    from tempspec.plugins.divergences import NegativeLogAcceptance as NegativeLogAcceptance
    from tempspec.plugins.divergences import NormalisedTotalVariation as NormalisedTotalVariation
    from tempspec.plugins.divergences import ReverseKL as ReverseKL
    from tempspec.plugins.divergences import SkewKL as SkewKL
    from tempspec.plugins.divergences import SkewReverseKL as SkewReverseKL
    from tempspec.plugins.divergences import TopKCrossEntropy as TopKCrossEntropy
    from tempspec.plugins.divergences import TotalVariation as TotalVariation
    from tempspec.plugins.divergences import WeightedSum as WeightedSum
    from tempspec.plugins.drafters import CausalLM as CausalLM
    from tempspec.plugins.drafters import EarlyExit as EarlyExit
    from tempspec.plugins.drafters import PromptLookup as PromptLookup
    from tempspec.plugins.drafters import Speculator as Speculator
    from tempspec.plugins.drafters import SuffixLookup as SuffixLookup
    from tempspec.plugins.lengths import SVIP as SVIP
    from tempspec.plugins.lengths import AdaEDL as AdaEDL
    from tempspec.plugins.lengths import ConfidenceThreshold as ConfidenceThreshold
    from tempspec.plugins.lengths import FixedLength as FixedLength
    from tempspec.plugins.lengths import Goodput as Goodput
    from tempspec.plugins.lengths import Heuristic as Heuristic
    from tempspec.plugins.lossy_verifiers import MARS as MARS
    from tempspec.plugins.lossy_verifiers import Ensemble as Ensemble
    from tempspec.plugins.lossy_verifiers import KLBudget as KLBudget
    from tempspec.plugins.lossy_verifiers import Lenience as Lenience
    from tempspec.plugins.lossy_verifiers import SpeculativeCascade as SpeculativeCascade
    from tempspec.plugins.lossy_verifiers import Typical as Typical
    from tempspec.plugins.schedules import Constant as Constant
    from tempspec.plugins.schedules import Cosine as Cosine
    from tempspec.plugins.schedules import Curriculum as Curriculum
    from tempspec.plugins.schedules import Exponential as Exponential
    from tempspec.plugins.schedules import Grid as Grid
    from tempspec.plugins.schedules import Join as Join
    from tempspec.plugins.schedules import Linear as Linear
    from tempspec.plugins.schedules import LogitPeaks as LogitPeaks
    from tempspec.plugins.schedules import Matched as Matched
    from tempspec.plugins.schedules import Piecewise as Piecewise
    from tempspec.plugins.schedules import TeacherEntropy as TeacherEntropy
    from tempspec.plugins.schedules import TokenDifficulty as TokenDifficulty
    from tempspec.plugins.schedules import Uniform as Uniform
    from tempspec.plugins.tree_drafters import DynamicTree as DynamicTree
    from tempspec.plugins.tree_drafters import StaticTree as StaticTree
    from tempspec.plugins.tree_verifiers import KSequential as KSequential
    from tempspec.plugins.tree_verifiers import RecursiveRejection as RecursiveRejection
    from tempspec.plugins.tree_verifiers import Traversal as Traversal
    from tempspec.plugins.verifiers import BlockVerification as BlockVerification
    from tempspec.plugins.verifiers import GreedyMatch as GreedyMatch
    from tempspec.plugins.verifiers import GumbelCoupling as GumbelCoupling
    from tempspec.plugins.verifiers import SampledMatch as SampledMatch
    from tempspec.plugins.verifiers import TokenwiseRejection as TokenwiseRejection

_PLACES = {
    "AcceptanceCallback": "modules.callbacks.acceptance",
    "AcceptanceTrainerCallback": "modules.callbacks.trainer_acceptance",
    "CachedFeatures": "modules.fit.features",
    "CachedTeacher": "modules.fit.teacher_cache",
    "Completion": "interfaces",
    "DecodingMetrics": "metrics.collection",
    "DistillationModule": "modules.distillation",
    "Engine": "decoding.engine",
    "HeadTraining": "modules.fit.training",
    "LanguageModelModule": "modules.language_model",
    "ModelOptions": "models.loading",
    "ModelShape": "modules.language_model",
    "OnlineText": "modules.fit.online_text",
    "PromptSource": "data.prompts",
    "Request": "interfaces",
    "Source": "data.sources",
    "Sweep": "decoding.sweep",
    "SweepMetrics": "metrics.collection",
    "TextDataModule": "data.module",
    "TokenSelection": "modules.fit.loss",
    "UserError": "errors",
    "decode": "one_call",
    "load_draft": "models.loading",
}
"""Where the names are that are no plugins, below this package."""

if not TYPE_CHECKING:  # a type checker would take any name for one that is there

    def __getattr__(name: str) -> Any:
        """A name of the face, imported when it is first used.

        Raises:
            AttributeError: there is no such name, or the plugin cannot be used.
        """
        if name == "__all__":
            return _face()
        if name.startswith("_"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        import importlib

        place = _PLACES.get(name)
        if place is not None:
            found = getattr(importlib.import_module(f"{__name__}.{place}"), name)
        else:
            found = _plugin(name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted({*_face(), "__version__", "__doc__"})


def _face() -> list[str]:
    """The names of the face: those of this package, and of every plugin that is registered."""
    return sorted({*_PLACES, *_families(), "__version__"})


def _families() -> dict[str, list[str]]:
    """The families of every registered plugin's name; nothing is imported for it.

    Looked up once for each search path: jsonargparse asks this module for a name whenever it writes a class's path.
    """
    import sys

    path = tuple(sys.path)
    if path not in _KNOWN:
        _KNOWN[path] = _scanned()
    return _KNOWN[path]


_KNOWN: dict[tuple[str, ...], dict[str, list[str]]] = {}


def _scanned() -> dict[str, list[str]]:
    from tempspec.errors import UserError
    from tempspec.registry import scan

    found: dict[str, list[str]] = {}
    try:
        plugins = scan()
    except UserError:  # two packages register one name: whoever asks for a plugin is told
        return found
    for plugin in plugins:
        found.setdefault(plugin.name, []).append(plugin.family)
    return found


def _plugin(name: str) -> type:
    """A registered plugin's class.

    Raises:
        AttributeError: there is none, or it cannot be used.
    """
    from tempspec.errors import UserError
    from tempspec.registry import get

    families = _families().get(name, [])
    if not families:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{_hint(name)}", name=name)
    if len(families) > 1:
        raise AttributeError(
            f"{name!r} is the name of several plugins, in {' and '.join(families)}: take one by "
            f"tempspec.registry.get({families[0]!r}, {name!r})",
            name=name,
        )
    try:
        return get(families[0], name)
    except UserError as error:
        raise AttributeError(str(error), name=name) from error


def _hint(name: str) -> str:
    """What was meant by a name that is not there; looked for once, as jsonargparse asks for the same ones again."""
    if name not in _HINTS:
        import difflib

        close = difflib.get_close_matches(name, _face(), n=1, cutoff=0.6)
        _HINTS[name] = f": did you mean {close[0]!r}?" if close else "; dir(tempspec) lists what there is"
    return _HINTS[name]


_HINTS: dict[str, str] = {}
