from typing import Any

import pytest

from adtr.experiments.plans import PLANS
from adtr.experiments.published import published_tables
from adtr.experiments.summary import METRICS, NOT_RUN, Results, beside_published, everything_measured, spread


def record(row: str, category: str, seed: int, pixel: float, **more: object) -> dict[str, Any]:
    metrics = {**dict.fromkeys(METRICS), "pixel_auroc": pixel}
    return {"row": row, "category": category, "seed": seed, "metrics": metrics, "seconds": 2.0 + seed, **more}


RESULTS = Results(
    records=[
        record("ADTR", "screw", 0, 0.90, peak_memory_mib=10),
        record("ADTR", "screw", 1, 0.94, peak_memory_mib=30),
        record("ADTR", "bricks", 0, 0.80, peak_memory_mib=None),
        record("ADTR", "bricks", 1, 0.70, peak_memory_mib=None),
        record("ADTR+", "screw", 0, 0.99, peak_memory_mib=20),
    ]
)


def test_spread_is_the_mean_and_half_the_range() -> None:
    two = spread([0.90, 0.94])
    assert two is not None
    assert str(two) == "92.00 ± 2.00"
    assert two.minus(93.0) == "-1.00 ± 2.00"
    one = spread([0.5])
    assert one is not None
    assert (str(one), one.minus(40)) == ("50.00", "+10.00")
    assert spread([]) is None


def test_the_mean_is_taken_for_each_seed_over_the_categories() -> None:
    assert str(RESULTS.mean("ADTR", "pixel_auroc")) == "83.50 ± 1.50"  # (90 + 80) / 2 and (94 + 70) / 2
    assert RESULTS.mean("ADTR", "image_auroc") is None


def test_a_table_holds_published_and_measured_rows_and_what_was_not_run() -> None:
    table = published_tables()["table-1"]
    cells = beside_published(PLANS["mvtec"], table, RESULTS)
    header, by_name = cells[0], {row[0]: row for row in cells[1:]}
    screw, bricks = header.index("screw"), header.index("bricks")
    assert {len(row) for row in cells} == {len(header)}
    assert by_name["PSVDD [37]"][screw] == "95.7"
    assert by_name["PSVDD [37]"][bricks] == "-"
    assert by_name["P-Net [40]"][screw] == "100"
    assert by_name["PSVDD [37]"][header.index("metal nut")] == "98.0"
    assert by_name["ADTR"][-1] == "97.2"
    assert by_name["ADTR, measured"][screw] == "92.00 ± 2.00"
    assert by_name["ADTR, measured"][header.index("grid")] == NOT_RUN
    assert by_name["ADTR, measured"][-1] == "83.50 ± 1.50 (2 of 15)"
    assert by_name["ADTR, measured - paper"][screw] == "-7.30 ± 2.00"  # 92.0 - 99.3
    assert by_name["ADTR, measured - paper"][bricks] == "-"
    assert by_name["ADTR+, measured - paper"][-1] == "-0.30"  # over screw alone: 99.0 - 99.3


def test_a_row_without_runs_is_marked() -> None:
    cells = beside_published(PLANS["ablation-attention"], published_tables()["table-4a"], RESULTS)
    assert cells[1] == ["CNN", "94.4", NOT_RUN, "-", NOT_RUN, NOT_RUN]
    measured = Results(records=[record("CNN", "screw", 0, 0.95)])
    cells = beside_published(PLANS["ablation-attention"], published_tables()["table-4a"], measured)
    assert cells[1] == ["CNN", "94.4", "95.00 (1 of 15)", "+0.60", "95.00"]


@pytest.mark.parametrize("name", ["table-1", "table-2"])
def test_differences_compare_equal_categories(name: str) -> None:
    table = published_tables()[name]
    perfect = [record("ADTR", column, 0, 1.0) for column in table.columns[:3]]
    for one in perfect:
        one["metrics"]["image_auroc"] = 1.0
    cells = beside_published(PLANS["mvtec"], table, Results(records=perfect))
    row = table.row("ADTR")
    assert row is not None
    expected = 100 - sum(row.values[:3]) / 3
    difference = next(line for line in cells if line[0] == "ADTR, measured - paper")
    assert difference[-1] == f"{expected:+.2f}"


def test_everything_measured_names_seeds_seconds_and_memory() -> None:
    cells = everything_measured(RESULTS)
    screw = next(row for row in cells if row[:2] == ["screw", "ADTR"])
    assert (screw[2], screw[-2:]) == ("0, 1", ["2", "30"])
    assert next(row for row in cells if row[0] == "bricks")[-1] == "-"
