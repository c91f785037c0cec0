"""Runs brought into tables: measured beside published, with the seeds' spread."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from adtr.experiments.plans import Plan
from adtr.experiments.published import PublishedTable
from adtr.experiments.records import Record

NOT_RUN = "not run"
METRICS = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """Mean and half the range over seeds, in percent."""

    mean: float
    half_range: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half_range:.2f}" if self.seeds > 1 else f"{self.mean:.2f}"

    def minus(self, published: float) -> str:
        """The difference from a published number, with the same spread."""
        difference = f"{self.mean - published:+.2f}"
        return f"{difference} ± {self.half_range:.2f}" if self.seeds > 1 else difference


def spread(values: Sequence[float]) -> Spread | None:
    """Of fractions, one for each seed; None where there is none."""
    if not values:
        return None
    percent = [100 * value for value in values]
    return Spread(mean=statistics.fmean(percent), half_range=(max(percent) - min(percent)) / 2, seeds=len(percent))


@dataclass(frozen=True, kw_only=True)
class Results:
    """The records of an experiment, looked up by row and category."""

    records: Sequence[Record]

    @property
    def categories(self) -> list[str]:
        """Those with any run, in the order of the first one."""
        return list(dict.fromkeys(record["category"] for record in self.records))

    @property
    def rows(self) -> list[str]:
        """Those with any run."""
        return list(dict.fromkeys(record["row"] for record in self.records))

    def values(self, row: str, category: str, metric: str) -> dict[int, float]:
        """A metric by seed."""
        return {
            record["seed"]: record["metrics"][metric]
            for record in self.records
            if (record["row"], record["category"]) == (row, category) and record["metrics"][metric] is not None
        }

    def cell(self, row: str, category: str, metric: str) -> Spread | None:
        """A metric over the seeds."""
        return spread(list(self.values(row, category, metric).values()))

    def complete(self, row: str, metric: str) -> list[str]:
        """The categories in which the row has a number."""
        return [category for category in self.categories if self.values(row, category, metric)]

    def mean(self, row: str, metric: str) -> Spread | None:
        """The mean over the row's categories, for each seed that all of them have."""
        by_category = [self.values(row, category, metric) for category in self.complete(row, metric)]
        if not by_category:
            return None
        seeds = set.intersection(*(set(values) for values in by_category))
        return spread([statistics.fmean(values[seed] for values in by_category) for seed in sorted(seeds)])


Cells = list[list[str]]


def beside_published(plan: Plan, table: PublishedTable, results: Results) -> Cells:
    """A table of the paper, its header first, with the measured rows and, where both have a number, the difference."""
    if not table.columns:
        return _means_beside_published(plan, table, results)
    extra = [name for name in results.categories if name not in table.columns]
    columns = [*table.columns, *extra]
    cells: Cells = [["method", *(name.replace("_", " ") for name in columns), "mean"]]
    for row in table.rows:
        by_name = dict(zip(table.columns, row.values, strict=False))
        reference = f" [{row.reference}]" if row.reference else ""
        values = [by_name.get(name) for name in columns]
        digits = 0 if all(float(value).is_integer() for value in row.values) and row.values else 1
        shown = ["-" if value is None else f"{value:.{digits}f}" for value in (*values, row.mean)]
        cells.append([f"{row.method}{reference}", *shown])
    for planned in plan.rows:
        name = planned.name
        measured = {column: results.cell(name, column, table.metric) for column in columns}
        mean, run = results.mean(name, table.metric), results.complete(name, table.metric)
        share = "" if set(run) >= set(table.columns) else f" ({len(run)} of {len(table.columns)})"
        shown = [str(cell) if cell else NOT_RUN for cell in measured.values()]
        cells.append([f"{name}, measured", *shown, f"{mean}{share}" if mean else NOT_RUN])
        published = table.row(name)
        if published is not None and mean is not None:
            same = published.mean_over(table, set(run))
            differences = [_minus(measured[column], table.value(name, column)) for column in columns]
            cells.append([f"{name}, measured - paper", *differences, _minus(mean, same)])
    return cells


def _means_beside_published(plan: Plan, table: PublishedTable, results: Results) -> Cells:
    """For the tables of which the paper prints a mean alone: those of the measured categories may differ from it."""
    columns = results.categories
    cells: Cells = [["row", "paper, mean of 15", "measured, mean", "measured - paper", *columns]]
    names = [row.method for row in table.rows] + [row.name for row in plan.rows if table.row(row.name) is None]
    for name in names:
        published, mean = table.row(name), results.mean(name, table.metric)
        measured = [results.cell(name, column, table.metric) for column in columns]
        cells.append(
            [
                name,
                f"{published.mean:.1f}" if published else "-",
                f"{mean} ({len(results.complete(name, table.metric))} of 15)" if mean else NOT_RUN,
                _minus(mean, published.mean if published else None),
                *(str(cell) if cell else NOT_RUN for cell in measured),
            ]
        )
    return cells


def everything_measured(results: Results) -> Cells:
    """Every metric of every row and category."""
    cells: Cells = [["category", "row", "seeds", *(name.replace("_", " ") for name in METRICS), "seconds", "peak MiB"]]
    for category in results.categories:
        for row in results.rows:
            runs = [r for r in results.records if (r["row"], r["category"]) == (row, category)]
            if runs:
                values = [results.cell(row, category, name) for name in METRICS]
                memory = [r["peak_memory_mib"] for r in runs if r["peak_memory_mib"]]
                cells.append(
                    [
                        category,
                        row,
                        ", ".join(str(r["seed"]) for r in sorted(runs, key=lambda r: r["seed"])),
                        *("-" if value is None else str(value) for value in values),
                        f"{statistics.fmean(r['seconds'] for r in runs):.0f}",
                        f"{max(memory):.0f}" if memory else "-",
                    ]
                )
    return cells


def _minus(measured: Spread | None, published: float | None) -> str:
    return "-" if measured is None or published is None else measured.minus(published)
