import csv
import json
import math

from tempspec.reporting.records import summary_rows, write_metrics_json, write_summary_csv


def test_csv_holds_every_estimate_and_empty_fields_for_nan(estimates, tmp_path):
    write_summary_csv(tmp_path / "new" / "summary.csv", summary_rows(estimates))
    with (tmp_path / "new" / "summary.csv").open(newline="") as file:
        read = list(csv.DictReader(file))
    assert len(read) == sum(map(len, estimates.values()))
    for row, expected in zip(read, summary_rows(estimates), strict=True):
        for name, value in expected.items():
            missing = isinstance(value, float) and math.isnan(value)
            assert row[name] == ("" if missing else str(value))


def test_json_is_strict_and_writes_null_for_nan(estimates, tmp_path):
    write_metrics_json(tmp_path / "metrics.json", estimates, timing_batch=1)

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    read = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert read["timing_batch"] == 1
    assert len(read["cells"]) == len(estimates)
    assert read["cells"][0]["metrics"]["acceptance_rate"]["value"] is None
    assert read["cells"][-1]["metrics"]["acceptance_rate"]["prompts"] == 24
