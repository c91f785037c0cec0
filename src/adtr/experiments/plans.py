"""What each experiment runs: rows of a table, each the configuration with one thing changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from adtr.config import Config, load_preset
from adtr.errors import ConfigError

Data = Literal["mvtec", "cifar10"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a table."""

    name: str
    """As the paper calls it."""
    changes: Mapping[str, Any] = field(default_factory=dict)
    """Fields of the configuration that make the row what it is."""
    continues: str | None = None
    """The row whose detector this one improves (ADTR+)."""
    peer: str | None = None
    """Another method in place of adtr; see `adtr.experiments.peers`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One experiment."""

    name: str
    help: str
    data: Data
    preset: str
    """Unless another one is asked for."""
    tables: tuple[str, ...]
    """Of the paper; see `published_tables`."""
    rows: tuple[Row, ...]
    setup: Mapping[str, Any] = field(default_factory=dict)
    """Fields that belong to the data rather than to the preset."""
    traced: bool = False
    """Whether the reconstruction is watched while it trains."""

    def config(self, row: Row, preset: str | None, given: Mapping[str, Any], seed: int) -> Config:
        """The configuration of a run: the preset, the setup, what was given, and what makes the row.

        The paper trains on all good images; two are held out here, the fewest that a threshold can be set with. And
        it has neither a memory nor the Mahalanobis distance.
        """
        as_in_the_paper = {"holdout": 0, "holdout_min": 2, "memory_size": 0, "mahalanobis_weight": 0.0}
        values = {**as_in_the_paper, **self.setup, **given, **row.changes, "seed": seed}
        return load_preset(preset or self.preset).override(**values)

    def with_backbones(self, names: Sequence[str]) -> Plan:
        """The plan with a row for each of some backbones; only for the experiment that compares them.

        Raises:
            ConfigError: it is another one.
        """
        if "backbone" not in self.rows[0].changes:
            raise ConfigError(f"{self.name} takes one backbone, not {len(names)}; ablation-backbone compares several")
        known = {str(row.changes["backbone"]): row for row in self.rows}
        return replace(self, rows=tuple(known.get(n) or Row(name=n, changes={"backbone": n}) for n in names))


RECONSTRUCTORS = (
    Row(name="CNN", changes={"reconstructor": "cnn"}),
    Row(name="w/o Attn", changes={"reconstructor": "no-attention"}),
    Row(name="w/o Query", changes={"reconstructor": "no-query"}),
    Row(name="Attn+Query", changes={"reconstructor": "transformer"}),
)
ADTR_AND_PLUS = (Row(name="ADTR"), Row(name="ADTR+", continues="ADTR"))

PLANS = {
    plan.name: plan
    for plan in (
        Plan(
            name="mvtec",
            help="Tables 1 and 2: ADTR, and ADTR+ with confetti, on MVTec AD or any folder of that layout",
            data="mvtec",
            preset="paper-mvtec",
            tables=("table-2", "table-1"),
            rows=ADTR_AND_PLUS,
        ),
        Plan(
            name="cifar10",
            help="Table 3: ADTR, and ADTR+ with an external data set (--external), each class against the others",
            data="cifar10",
            preset="paper-cifar10",
            tables=("table-3",),
            rows=ADTR_AND_PLUS,
            setup={"image_size": 32, "grid_size": 8},
        ),
        Plan(
            name="ablation-attention",
            help="Table 4a: a CNN, no attention, no query, and the full method",
            data="mvtec",
            preset="paper-mvtec",
            tables=("table-4a",),
            rows=RECONSTRUCTORS,
        ),
        Plan(
            name="ablation-target",
            help="Table 4b: reconstructing pixels or features",
            data="mvtec",
            preset="paper-mvtec",
            tables=("table-4b",),
            rows=(
                Row(name="Pixels", changes={"target": "pixels"}),
                Row(name="Features", changes={"target": "features"}),
            ),
        ),
        Plan(
            name="ablation-backbone",
            help="Table 4c: ResNet-18, ResNet-34, EfficientNet-B0 and -B4, or those that --backbone names",
            data="mvtec",
            preset="paper-mvtec",
            tables=("table-4c",),
            rows=(
                Row(name="Res-18", changes={"backbone": "resnet18.tv_in1k"}),
                Row(name="Res-34", changes={"backbone": "resnet34.tv_in1k"}),
                Row(name="Efficient-B0", changes={"backbone": "tf_efficientnet_b0.aa_in1k"}),
                Row(name="Efficient-B4", changes={"backbone": "tf_efficientnet_b4.aa_in1k"}),
            ),
        ),
        Plan(
            name="ablation-levels",
            help="Table 4d: the last level of the backbone, or all five",
            data="mvtec",
            preset="paper-mvtec",
            tables=("table-4d",),
            rows=(
                Row(name="Last-layer", changes={"levels": "last"}),
                Row(name="Multi-scale", changes={"levels": "all"}),
            ),
        ),
        Plan(
            name="identity-shortcut",
            help="Section 3.2 made visible: how far each reconstructor of Table 4a learns the identity",
            data="mvtec",
            preset="paper-mvtec",
            tables=(),
            rows=RECONSTRUCTORS,
            traced=True,
        ),
    )
}
"""Every experiment that trains by its name; `figures` draws."""
