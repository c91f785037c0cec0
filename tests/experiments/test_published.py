import statistics
from dataclasses import fields

import pytest

from adtr.experiments.published import PublishedRow, published_tables
from adtr.metrics import Scores

TABLES = published_tables()


def test_every_table_of_the_paper_is_there() -> None:
    assert list(TABLES) == ["table-1", "table-2", "table-3", "table-4a", "table-4b", "table-4c", "table-4d"]
    assert [len(table.rows) for table in TABLES.values()] == [14, 9, 13, 4, 2, 4, 2]
    assert [len(table.columns) for table in TABLES.values()] == [15, 15, 10, 0, 0, 0, 0]
    assert {table.metric for table in TABLES.values()} <= {field.name for field in fields(Scores)}


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_whole_and_in_percent(name: str) -> None:
    table = TABLES[name]
    assert len({row.method for row in table.rows}) == len(table.rows)
    for row in table.rows:
        assert len(row.values) in (0, len(table.columns)), row
        assert all(40 < value <= 100 for value in (*row.values, row.mean)), row


def printed_precision(row: PublishedRow) -> float:
    whole = all(float(value).is_integer() for value in row.values)
    return 0.5 if whole else 0.05


@pytest.mark.parametrize("row", [row for table in TABLES.values() for row in table.rows if row.values])
def test_the_printed_mean_is_that_of_the_columns_or_the_note_says_otherwise(row: PublishedRow) -> None:
    agrees = abs(statistics.fmean(row.values) - row.mean) <= printed_precision(row) + 1e-9
    assert agrees != ("the mean of the columns is" in row.note)


def test_the_papers_own_rows_are_what_its_text_says() -> None:
    def mean(table: str, method: str) -> float:
        row = TABLES[table].row(method)
        assert row is not None
        return row.mean

    assert mean("table-1", "ADTR") - mean("table-1", "SPADE") == pytest.approx(1.2)
    assert mean("table-1", "ADTR+") - mean("table-1", "ADTR") == pytest.approx(0.3)
    assert mean("table-2", "ADTR") - mean("table-2", "TS") == pytest.approx(3.9)
    assert mean("table-2", "ADTR+") - mean("table-2", "ADTR") == pytest.approx(0.5)
    assert mean("table-3", "ADTR") - mean("table-3", "KDAD") == pytest.approx(7.5)
    assert mean("table-3", "ADTR+") - mean("table-3", "ADTR") == pytest.approx(1.4)
    full = mean("table-4a", "Attn+Query")
    assert [full - mean("table-4a", name) for name in ("CNN", "w/o Attn", "w/o Query")] == pytest.approx([2.8, 2.4, 3])
    assert TABLES["table-1"].value("ADTR", "transistor") == 97.9
    assert TABLES["table-2"].value("ADTR", "screw") == 94.0
    assert TABLES["table-1"].value("ADTR", "brick") is None


def test_a_mean_over_some_columns_is_theirs() -> None:
    table = TABLES["table-1"]
    row = table.row("ADTR")
    assert row is not None
    assert row.mean_over(table, {"transistor"}) == 97.9
    assert row.mean_over(table, set(table.columns)) == row.mean
    assert row.mean_over(table, {"brick"}) is None
    spade = TABLES["table-2"].row("SPADE")
    assert spade is not None
    assert spade.mean_over(TABLES["table-2"], {"transistor"}) is None
    assert spade.mean_over(TABLES["table-2"], set(TABLES["table-2"].columns)) == 85.5
    cnn = TABLES["table-4a"].row("CNN")
    assert cnn is not None
    assert cnn.mean_over(TABLES["table-4a"], {"transistor"}) == 94.4
