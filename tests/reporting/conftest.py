import math

import pytest

from tempspec.interfaces import BASELINE
from tempspec.metrics.bootstrap import Estimate
from tempspec.metrics.rows import Cell


@pytest.fixture
def estimates():
    """Estimates as a sweep returns them: plain decoding, then each verifier, two sets, four temperatures."""
    found = {}
    for verifier in (BASELINE, "TokenwiseRejection"):
        for prompt_set in ("in-domain", "out-of-domain"):
            for t in (0.0, 0.5, 1.0, 1.5):
                speed = {"tokens_per_second": Estimate(300.0, 290.4, 310.2, 4)}
                plain = {"acceptance_rate": Estimate.nothing(), "block_efficiency": Estimate(1.0, 1.0, 1.0, 24)}
                a = 0.65 - t / 10
                drafted = {
                    "acceptance_rate": Estimate(a, a - 0.03, a + 0.03, 24),
                    "analytic_acceptance": Estimate(a, a - 0.02, a + 0.02, 24),
                    "accepted_length": Estimate(2.34, 2.1, 2.6, 24),
                    "block_efficiency": Estimate(3.34, 3.1, 3.6, 24),
                    "speedup": Estimate(1.3, math.nan, math.nan, 1),
                    "overhead_share": Estimate(0.1 + t / 50, 0.05, 0.2, 4),
                }
                found[Cell(verifier, prompt_set, t, t)] = speed | (plain if verifier == BASELINE else drafted)
    return found
