"""Every definition against a plain reference on random rows: alone, in batches, merged, pickled, in half precision."""

import copy
import pickle
from itertools import accumulate

import lightning
import pytest
import torch

from tempspec.metrics.bootstrap import replicate_weights
from tempspec.metrics.by_position import AcceptedLengthHistogram, ConditionalAcceptance, JointAcceptance
from tempspec.metrics.decoding import (
    MBSU,
    AcceptanceRate,
    AcceptedLength,
    AnalyticAcceptance,
    BlockEfficiency,
    DraftAcceptance,
    ExpectedLength,
    KLFromTarget,
    OptimalAcceptance,
    OverheadShare,
    TokensPerSecond,
    TotalVariationFromTarget,
)
from tests.metrics.definitions import K, fed, mean, mean_tokens_per_round, overhead_share, rounds, tokens_per_second


def outcomes(drafted, accepted):
    """The draft tokens of a round that were looked at, in order: True accepted, False rejected."""
    return [True] * accepted + [False] * (accepted < drafted)


def reference_conditional(rows):
    seen = [outcomes(*pair) for pair in rounds(rows)]
    return [mean(round_[i] for round_ in seen if len(round_) > i) for i in range(K)]


def reference_mbsu(rows):
    length = mean(drafted for drafted, _ in rounds(rows))
    return mean_tokens_per_round(rows) / (0.1 * length + 1)


def per_tested(rows, name):
    return sum(sum(row[name]) for row in rows) / sum(len(outcomes(*pair)) for pair in rounds(rows))


MATRIX = {
    "acceptance_rate": (
        lambda **kw: AcceptanceRate(**kw),
        lambda rows: mean(coin for pair in rounds(rows) for coin in outcomes(*pair)),
    ),
    "analytic": (
        lambda **kw: AnalyticAcceptance(**kw),
        lambda rows: per_tested(rows, "expected_acceptance"),
    ),
    "draft_acceptance": (
        lambda **kw: DraftAcceptance(**kw),
        lambda rows: mean(i < accepted for drafted, accepted in rounds(rows) for i in range(drafted)),
    ),
    "accepted_length": (
        lambda **kw: AcceptedLength(**kw),
        lambda rows: mean(accepted for _, accepted in rounds(rows)),
    ),
    "expected_length": (
        lambda **kw: ExpectedLength(**kw),
        lambda rows: mean(value for row in rows for value in row["expected_length"]),
    ),
    "optimum": (lambda **kw: OptimalAcceptance(**kw), lambda rows: per_tested(rows, "optimum")),
    "total_variation": (
        lambda **kw: TotalVariationFromTarget(**kw),
        lambda rows: per_tested(rows, "total_variation"),
    ),
    "kl": (lambda **kw: KLFromTarget(**kw), lambda rows: per_tested(rows, "kl")),
    "block_efficiency": (lambda **kw: BlockEfficiency(**kw), mean_tokens_per_round),
    "mbsu": (lambda **kw: MBSU(0.1, **kw), reference_mbsu),
    "conditional": (lambda **kw: ConditionalAcceptance(K, **kw), reference_conditional),
    "joint": (
        lambda **kw: JointAcceptance(K, **kw),
        lambda rows: list(accumulate(reference_conditional(rows), lambda a, b: a and a * b)),
    ),
    "histogram": (
        lambda **kw: AcceptedLengthHistogram(K, **kw),
        lambda rows: [mean(accepted == length for _, accepted in rounds(rows)) for length in range(K + 1)],
    ),
    "tokens_per_second": (lambda **kw: TokensPerSecond(**kw), tokens_per_second),
    "overhead_share": (lambda **kw: OverheadShare(**kw), overhead_share),
}

matrix = pytest.mark.parametrize(("make", "reference"), MATRIX.values(), ids=MATRIX)


@matrix
def test_value_is_the_definition(make, reference, rows):
    found = [estimate.value for estimate in fed(make(replicates=50), rows).estimates()]
    expected = reference(rows)
    assert found == pytest.approx(expected if isinstance(expected, list) else [expected], abs=1e-12, nan_ok=True)


@matrix
def test_interval_is_the_definition_on_resampled_prompts(make, reference, rows):
    """Repeating each prompt's rows by its weight, and measuring, gives the replicate."""
    replicates = 5
    sums = fed(make(replicates=replicates), rows).sums()
    for replicate in range(replicates):
        weights = replicate_weights(torch.tensor([row["prompt_key"] for row in rows]), replicates)[:, replicate]
        resampled = [row for row, weight in zip(rows, weights.int().tolist(), strict=True) for _ in range(weight)]
        expected = torch.tensor(reference(resampled), dtype=torch.float64).reshape(-1)
        found = (sums.numerator_SW / sums.denominator_SW)[:, 1 + replicate]
        torch.testing.assert_close(found, expected, equal_nan=True)


@matrix
def test_two_ranks_merge_to_one(make, reference, rows):
    whole = fed(make(replicates=50), rows)
    one, other = fed(make(replicates=50), rows[::2]), fed(make(replicates=50), rows[1::2])
    one.merge_state(other)
    torch.testing.assert_close(one.compute(), whole.compute(), equal_nan=True)


@matrix
def test_forward_pickle_copy_and_reset(make, reference, rows):
    whole = fed(make(replicates=50), rows).compute()
    metric = make(replicates=50)
    for row in rows[:20]:
        metric(row)
    metric = copy.deepcopy(pickle.loads(pickle.dumps(metric)))
    torch.testing.assert_close(fed(metric, rows[20:]).compute(), whole, equal_nan=True)
    metric.reset()
    torch.testing.assert_close(fed(metric, rows).compute(), whole, equal_nan=True)


@matrix
def test_sums_stay_float64_when_the_module_is_halved(make, reference, rows):
    metric = make(replicates=10).to(torch.bfloat16)
    assert fed(metric, rows).sums().numerator_SW.dtype == torch.float64
    assert metric.sums().seen_M2.dtype == torch.int64


@matrix
def test_no_row_counts_nothing(make, reference, rows):
    metric = make(replicates=10)
    metric.update()
    assert metric.compute().reshape(-1, 4)[:, 3].tolist() == [0] * len(metric.estimates())
    whole = fed(make(replicates=10), rows).compute()
    torch.testing.assert_close(fed(metric, rows).compute(), whole, equal_nan=True)


def test_a_lightning_module_may_keep_a_metric(rows):
    """Its state is reset by its own `reset`, and is exact although the module is bfloat16."""

    class Anybody(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.rate = AcceptanceRate(replicates=10)

        def validation_step(self, batch, index):
            self.rate.update(*batch)

        def on_validation_epoch_end(self):
            value, low, high, prompts = self.rate.compute()
            self.log_dict({"rate": value, "low": low, "high": high, "prompts": prompts})
            self.rate.reset()

    trainer = lightning.Trainer(
        accelerator="cpu", precision="bf16-true", logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    loader = torch.utils.data.DataLoader(rows, batch_size=7, collate_fn=list)
    module = Anybody()
    expected = fed(AcceptanceRate(replicates=10), rows).estimate()
    for _ in range(2):
        (logged,) = trainer.validate(module, loader, verbose=False)
        assert logged == pytest.approx(
            {"rate": expected.value, "low": expected.low, "high": expected.high, "prompts": 12}
        )
