import math

import pytest
import torch
from tempspec_example.schedules import LogUniform

from tempspec.interfaces import ScheduleContext
from tempspec.testing import check_schedule


@pytest.mark.parametrize("per", ["batch", "sequence"])
def test_it_keeps_the_laws_of_its_family(per):
    check_schedule(LogUniform(per=per))


def test_as_often_below_1_as_above():
    context = ScheduleContext(0, None, 10_000, torch.Generator().manual_seed(0))
    temperature_B1 = LogUniform(0.25, 4.0, per="sequence")(context).target
    assert temperature_B1.shape == (10_000, 1)
    assert 0.25 <= temperature_B1.min() < temperature_B1.max() <= 4.0
    deviation = math.log(16) / math.sqrt(12 * 10_000)
    assert abs(float(temperature_B1.log().mean())) < 5 * deviation


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (2.0, 1.0), (1.0, math.inf), (math.nan, 1.0)])
def test_another_range_is_refused(low, high):
    with pytest.raises(ValueError, match="expected 0 < low <= high"):
        LogUniform(low, high)
