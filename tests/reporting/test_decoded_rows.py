import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tempspec.errors import UserError
from tempspec.reporting.decoded_rows import decoded_rows
from tempspec.reporting.runs import collect, read_run
from tests.reporting.runs import write_predict

FORMER = {"expected_acceptance": "expected"}


@pytest.fixture
def run(tmp_path):
    return write_predict(tmp_path / "run", {0.0: 0.8}, prompts=2)


def make_former(run):
    """Give a run's rows the columns of an earlier version."""
    file = run / "predict" / "predictions.parquet"
    table = pq.read_table(file)
    pq.write_table(table.rename_columns([FORMER.get(name, name) for name in table.column_names]), file)
    return file


def test_former_columns_are_read_with_one_line(run):
    today, said = decoded_rows(run / "predict" / "predictions.parquet")
    assert not said
    rows, (line,) = decoded_rows(make_former(run))
    assert rows == today
    assert line.endswith("column expected as expected_acceptance")


def test_a_report_says_once_that_rows_are_of_an_earlier_version(run, tmp_path):
    other = write_predict(tmp_path / "other", {0.0: 0.8}, prompts=2)
    for folder in (run, other):
        make_former(folder)
    assert len(read_run(run).rows) == len(read_run(other).rows) > 0
    assert len([note for note in collect([run, other]).notes if "earlier version" in note]) == 1


def test_a_missing_column_is_one_line(run):
    file = run / "predict" / "predictions.parquet"
    pq.write_table(pa.Table.from_pylist([{"key": "a"}]), file)
    with pytest.raises(UserError, match="expected the column accepted, got a file of another version"):
        decoded_rows(file)
