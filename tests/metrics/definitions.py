"""What the tests of metrics share: plain definitions, by loops over rounds."""

import math

K = 4
"""The longest round of the `rows` fixtures."""


def rounds(rows):
    """(drafted, accepted) of every round of every row."""
    return [pair for row in rows for pair in zip(row["drafted"], row["accepted"], strict=True)]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else math.nan


def tokens_per_second(rows):
    return sum(len(row["tokens"]) for row in rows) / sum(map(seconds, rows))


def overhead_share(rows):
    return sum(row["seconds_overhead"] for row in rows) / sum(map(seconds, rows))


def mean_tokens_per_round(rows):
    return sum(len(row["tokens"]) for row in rows) / len(rounds(rows))


def seconds(row):
    return sum(row[f"seconds_{part}"] for part in ("prefill", "draft", "verify", "overhead"))


def fed(metric, rows):
    for row in rows:
        metric.update(row)
    return metric
