import logging

import pytest

from tempspec.modules.distillation import DistillationModule
from tempspec.modules.fit.online_text import OnlineText
from tempspec.modules.fit.temperature_check import Span, inconsistency
from tempspec.plugins import schedules

ONE, HOT = Span(1.0, 1.0), Span(0.5, 2.0)


@pytest.mark.parametrize(
    ("spans", "line"),
    [
        ((ONE, ONE, ONE), None),
        ((HOT, HOT, HOT), None),
        ((ONE, ONE, None), None),
        ((ONE, None, ONE), None),
        ((Span(0.7, 0.7), ONE, HOT), "text sampled at 0.7, loss at 1, validation at 0.5 to 2"),
        ((None, ONE, ONE), "text of unknown temperature, loss at 1, validation at 1"),
        ((HOT, None, ONE), "text sampled at 0.5 to 2, loss as the schedule decides, validation at 1"),
    ],
)
def test_one_line_where_the_temperatures_differ(spans, line):
    assert inconsistency(*spans) == (line and f"temperatures differ: {line}")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({}, "temperatures differ: text of unknown temperature, loss at 1, validation at 1"),
        ({"temperature": 2.0, "online": OnlineText(max_new_tokens=3)}, "text sampled at 1, loss at 2, validation at 1"),
        ({"online": OnlineText(max_new_tokens=3)}, None),
        (
            {"temperature": schedules.Uniform(0.5, 2.0)},
            "temperatures differ: text of unknown temperature, loss at 0.5 to 2, validation at 1",
        ),
        (
            {"temperature": schedules.Matched(unknown=1.0)},
            "temperatures differ: text of unknown temperature, loss as the schedule decides, validation at 1",
        ),
    ],
)
def test_fit_says_it_once(pair, data, trainer, caplog, options, line):
    module = DistillationModule(
        str(pair / "target"), draft=str(pair / "draft"), validation_temperatures=[0.0, 1.0], **options
    )
    with caplog.at_level(logging.INFO, logger="lightning.pytorch"):
        trainer(max_steps=1, limit_val_batches=0).fit(module, data)
    said = [message for message in caplog.messages if "temperatures differ" in message]
    assert len(said) == (line is not None)
    assert line is None or said[0].endswith(line)
