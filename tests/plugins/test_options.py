"""The built-ins' options and their defaults are public: a changed one is a line in the changelog, not an accident."""

import inspect

import pytest

from tempspec import registry
from tests.built_ins import built_in

OPTIONS = {
    "AdaptiveKL": {"share": 0.5, "scale": "none"},
    "AlphaBeta": {"alpha": 0.2, "beta": 0.7, "scale": "none"},
    "ForwardKL": {"scale": "none"},
    "JensenShannon": {"beta": 0.5, "scale": "none"},
    "LKHybrid": {"eta": 3.0, "scale": "none"},
    "LabelCrossEntropy": {"scale": "none"},
    "LogitDifference": {"scale": "none"},
    "NegativeLogAcceptance": {"scale": "none"},
    "NormalisedTotalVariation": {"floor": 0.01, "scale": "none"},
    "ReverseKL": {"scale": "none"},
    "SkewKL": {"alpha": 0.1, "scale": "none"},
    "SkewReverseKL": {"alpha": 0.1, "scale": "none"},
    "TAID": {"start": 0.4, "end": 1.0, "steps": None, "rate": 0.0005, "memory": 0.99, "scale": "none"},
    "TopKCrossEntropy": {"k": 10, "scale": "none"},
    "TotalVariation": {"scale": "none"},
    "WeightedSum": {"terms": ..., "weights": None, "scale": "none"},
    "Constant": {"temperature": 1.0, "draft_scale": 1.0},
    "Cosine": {"start": ..., "end": ..., "steps": None, "draft_scale": 1.0},
    "Curriculum": {"start": 2.0, "low": 1.0, "span": 20.0, "steps": None, "draft_scale": 1.0},
    "Exponential": {"start": ..., "end": ..., "steps": None, "draft_scale": 1.0},
    "Grid": {"temperatures": ..., "weights": None, "draft_scale": 1.0},
    "Join": {"schedules": ..., "boundaries": ...},
    "Linear": {"start": ..., "end": ..., "steps": None, "draft_scale": 1.0},
    "LogitPeaks": {"base": 1.0},
    "Matched": {"unknown": None, "low": 0.1, "draft_scale": 1.0},
    "Piecewise": {"boundaries": ..., "temperatures": ..., "draft_scale": 1.0},
    "TeacherEntropy": {"low": 0.5, "high": 2.0, "half": 1.0, "draft_scale": 1.0},
    "TokenDifficulty": {"base": 1.0, "strength": 0.5, "draft_scale": 1.0},
    "Uniform": {"low": ..., "high": ..., "per": "batch", "draft_scale": 1.0},
    "BlockVerification": {},
    "Ensemble": {"weight": 0.5},
    "GreedyMatch": {},
    "GumbelCoupling": {},
    "KLBudget": {"budget": 0.05},
    "KSequential": {},
    "Lenience": {"lenience": 0.5},
    "MARS": {"theta": 0.9},
    "RecursiveRejection": {},
    "SampledMatch": {},
    "SpeculativeCascade": {"tradeoff": 0.5},
    "TokenwiseRejection": {},
    "Traversal": {},
    "Typical": {"epsilon": 0.09, "delta": 0.3},
    "CausalLM": {},
    "Speculator": {},
    "DynamicTree": {"width": 4, "depth": 4, "nodes": 16},
    "EarlyExit": {"layers": 1},
    "PromptLookup": {"longest_ngram": 3, "shortest_ngram": 1, "match": "latest"},
    "SuffixLookup": {"depth": 24, "factor": 1.0, "least": 0.1},
    "StaticTree": {"levels": None, "parents": None, "siblings": "distinct"},
    "AdaEDL": {"coefficient": 0.2, "threshold": 0.3, "longest": 8, "goal": 0.7, "gain": 0.5},
    "ConfidenceThreshold": {"threshold": 0.4, "longest": 8},
    "FixedLength": {"tokens": 4},
    "Goodput": {
        "draft_cost": None,
        "verify_costs": None,
        "acceptance": 0.7,
        "confidence": 4.0,
        "longest": 8,
    },
    "Heuristic": {"first": 5, "longest": 16},
    "SVIP": {"threshold": 1.0, "longest": 8},
    "Eagle3": {"states": None, "draft_vocabulary": None, "norm_output": False},
}
"""What each class takes; `...` stands for an option that must be given."""

BUILT_IN = {name: cls for family in registry.FAMILIES for name, cls in built_in(family).items()}


def test_the_built_ins_are_those_that_are_promised():
    assert set(BUILT_IN) == set(OPTIONS)


@pytest.mark.parametrize("name", OPTIONS)
def test_the_options_and_their_defaults_are_as_promised(name):
    options = inspect.signature(BUILT_IN[name]).parameters
    assert {key: ... if one.default is one.empty else one.default for key, one in options.items()} == OPTIONS[name]
