"""The numbers that the paper prints, from `published.toml`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib import resources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SOURCE = 'You et al., "ADTR: Anomaly Detection Transformer with Feature Reconstruction", 2022 (arXiv:2209.01816)'


@dataclass(frozen=True, kw_only=True)
class PublishedRow:
    """One method's line of a table, in percent."""

    method: str
    mean: float
    """As printed."""
    values: tuple[float, ...] = ()
    """One for each of the table's columns; none where only the mean is printed."""
    reference: int | None = None
    """The method's number among the paper's references; None for the paper's own."""
    note: str = ""
    """Where a cell was not copied as it stands, or contradicts the others."""

    def mean_over(self, table: PublishedTable, columns: set[str]) -> float | None:
        """The mean over some of the columns; the printed one where they are all, or the table has none."""
        chosen = [value for name, value in zip(table.columns, self.values, strict=False) if name in columns]
        if columns >= set(table.columns):
            return self.mean
        return sum(chosen) / len(chosen) if chosen else None


@dataclass(frozen=True, kw_only=True)
class PublishedTable:
    """One table of the paper."""

    title: str
    metric: str
    """The field of `adtr.metrics.Scores` that it shows."""
    columns: tuple[str, ...]
    """Categories; none where the table prints their mean alone."""
    rows: tuple[PublishedRow, ...]

    def row(self, method: str) -> PublishedRow | None:
        """A method's line; None where the paper has none."""
        return next((row for row in self.rows if row.method == method), None)

    def value(self, method: str, column: str) -> float | None:
        """One cell; None where the paper has none."""
        row = self.row(method)
        return dict(zip(self.columns, row.values, strict=False)).get(column) if row else None


@cache
def published_tables() -> dict[str, PublishedTable]:
    """Every table by its name, such as "table-1" or "table-4a"."""
    text = (resources.files("adtr.experiments") / "published.toml").read_text("utf-8")
    return {
        name: PublishedTable(
            title=table["title"],
            metric=table["metric"],
            columns=tuple(table["columns"]),
            rows=tuple(PublishedRow(**{**row, "values": tuple(row["values"])}) for row in table["rows"]),
        )
        for name, table in tomllib.loads(text).items()
    }
