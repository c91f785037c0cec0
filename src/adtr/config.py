"""Configuration: frozen dataclasses, one for each box of Figure 2 and each stage of fitting, and the named presets.

Presets are data: `presets/*.toml`. The fields' names are unique over all sections, so that one flat name serves as
keyword (`AnomalyDetector(epochs=50)`), as flag (`--epochs 50`) and as key of a configuration file.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, get_type_hints

from adtr.errors import ConfigError
from adtr.files import read_bounded
from adtr.settings import Setting, Size, as_text, setting, shown, unknown

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MAX_BYTES = 1 << 16
"""Of a configuration file."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingConfig:
    """Figure 2a: how an image becomes a grid of feature tokens."""

    target: Literal["features", "pixels"] = setting(
        "what is reconstructed: the backbone's features, or (Table 4b) the image's own pixels, a patch for each token"
    )
    backbone: str = setting("timm name of the frozen feature extractor")
    image_size: Size = setting("images are resized to this: N, or HEIGHTxWIDTH, pixels", low=8, high=8192)
    grid_size: Size = setting("feature tokens: N, or HEIGHTxWIDTH", low=1, high=512)
    levels: str = setting("levels of the backbone to concatenate: all, last, or numbers from 1 such as 2,3")
    standardize: bool = setting("bring each feature channel to mean 0, deviation 1 over the training images")


@dataclass(frozen=True, kw_only=True)
class ReconstructionConfig:
    """Figure 2b: the transformer that reconstructs the tokens."""

    reconstructor: Literal["transformer", "no-query", "no-attention", "cnn"] = setting(
        "transformer: the paper's method; the others are those of Table 4a"
    )
    width: int = setting("dimension of a token inside the transformer", low=1, high=8192)
    heads: int = setting("attention heads", low=1, high=256)
    encoder_layers: int = setting("encoder layers", low=1, high=64)
    decoder_layers: int = setting("decoder layers", low=1, high=64)
    feedforward: int = setting("hidden dimension of the feed-forward networks", low=1, high=65536)

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} is not a multiple of heads {self.heads}")


@dataclass(frozen=True, kw_only=True)
class ComparisonConfig:
    """Figure 2c: from feature differences to scores."""

    pool_size: float = setting("side of the pooling window of the image score, as a share of the image", low=0, high=1)
    memory_size: int = setting(
        "patches of good images to remember, whose distance joins the score map; 0: none, as in the paper",
        low=0,
        high=1_000_000,
    )
    memory_weight: float = setting(
        "weight of that distance, of each of its two kinds, beside the reconstruction's error", low=0, high=1000
    )
    mahalanobis_weight: float = setting(
        "weight, in the image score, of the image's Mahalanobis distance as a whole; 0: none, as in the paper",
        low=0,
        high=1000,
    )


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training loop."""

    epochs: int = setting("passes over the training images", low=1)
    max_steps: int = setting("end after so many training steps, however many epochs that is; 0: no limit", low=0)
    batch_size: int = setting("images in a training step", low=1)
    optimizer: Literal["adamw", "muon"] = setting("muon: Muon for the hidden matrices, AdamW for the rest")
    learning_rate: float = setting("peak learning rate", low=0, high=10)
    weight_decay: float = setting("decoupled weight decay", low=0, high=10)
    schedule: Literal["step", "one-cycle"] = setting("step: x0.1 at drop_epoch; one-cycle: up, then down to 0")
    drop_epoch: int = setting("epoch after which the step schedule multiplies the learning rate by 0.1", low=1)
    precision: Literal["auto", "fp32", "bf16"] = setting(
        "arithmetic of the networks; auto: bf16 where it is in hardware"
    )
    seed: int = setting("seed of everything random", low=0, high=2**31 - 1)


@dataclass(frozen=True, kw_only=True)
class ImprovementConfig:
    """ADTR+ (Section 3.3): how a trained detector goes on to learn from anomalies."""

    improve_epochs: int = setting("improve: passes over the good training images", low=1)
    improve_max_steps: int = setting("improve: end after so many training steps; 0: no limit", low=0)
    improve_learning_rate: float = setting("improve: peak learning rate", low=0, high=10)
    improve_drop_epoch: int = setting("improve: epoch after which the step schedule takes 0.1 of the rate", low=1)
    alpha: float = setting("weight of the terms that push anomalies away (Eq. 7 and 9)", low=0, high=1e6)
    top_k: int = setting("positions in an image's score q where only its label is known (Eq. 8)", low=1)
    anomaly_share: float = setting("share of anomalies among the images of a training step", low=0.01, high=0.9)
    anomaly_holdout: float = setting(
        "share of each type's labelled anomalies that is not learned from but judged, before and after", low=0, high=0.9
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationConfig:
    """The decision thresholds, from good images held out of training."""

    holdout: float = setting("share of the good images held out of training for the thresholds", low=0, high=0.9)
    holdout_min: int = setting("hold out at least this many images", low=1)
    folds: int = setting(
        "0: hold images out; from 2 on: train so many networks more, each for scores of images that it never saw, so "
        "that few good images serve both training and thresholds",
        low=0,
        high=100,
    )
    false_alarm_rate: float = setting("share of good images that may be called anomalous", low=0, high=0.5)
    unsure_rate: float = setting(
        "share of good images that may be called unsure or anomalous; 0: every verdict is sure", low=0, high=0.9
    )

    def __post_init__(self) -> None:
        if self.folds == 1:
            raise ConfigError("folds must be 0 or at least 2, not 1")
        if 0 < self.unsure_rate <= self.false_alarm_rate:
            raise ConfigError(
                f"unsure_rate {self.unsure_rate} must be above false_alarm_rate {self.false_alarm_rate}, or 0"
            )


@dataclass(frozen=True, kw_only=True)
class Config:
    """The whole configuration of a detector."""

    preset: str
    embedding: EmbeddingConfig
    reconstruction: ReconstructionConfig
    comparison: ComparisonConfig
    training: TrainingConfig
    improvement: ImprovementConfig
    calibration: CalibrationConfig

    def override(self, **values: Any) -> Config:  # noqa: ANN401 - values are checked against the fields' types
        """The same configuration with some fields, of any section, replaced.

        Whoever gives `epochs` without `max_steps` means epochs: a preset's limit of steps is lifted.

        Raises:
            ConfigError: unknown field (the nearest name is suggested), wrong type, or value out of range.
        """
        given = {name.replace("-", "_") for name in values}
        for stage in ("", "improve_"):
            if f"{stage}epochs" in given and f"{stage}max_steps" not in given:
                values[f"{stage}max_steps"] = 0
        by_section: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            known = find_setting(name)
            by_section.setdefault(known.section, {})[known.name] = known.parse(value)
        sections = {s: replace(getattr(self, s), **changed) for s, changed in by_section.items()}
        return replace(self, **sections)

    def improvement_training(self) -> TrainingConfig:
        """The training loop's configuration while it learns from anomalies; `batch_size` counts the good images."""
        improvement = self.improvement
        return replace(
            self.training,
            epochs=improvement.improve_epochs,
            max_steps=improvement.improve_max_steps,
            learning_rate=improvement.improve_learning_rate,
            drop_epoch=improvement.improve_drop_epoch,
            batch_size=max(1, round(self.training.batch_size * (1 - improvement.anomaly_share))),
        )

    def flat(self) -> dict[str, Any]:
        """Every field of every section under its flat name."""
        return {name: getattr(getattr(self, s.section), name) for name, s in settings().items()}

    def to_dict(self) -> dict[str, Any]:
        """Nested plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Config:
        """The inverse of `to_dict`; also reads what TOML and JSON made of it.

        Raises:
            ConfigError: a field is missing or unknown, or a value is wrong.
        """
        preset, flat = flatten(values)
        missing = sorted(set(settings()) - set(flat))
        if missing:
            raise ConfigError(f"the configuration lacks {', '.join(missing)}")
        sections: dict[str, dict[str, Any]] = {name: {} for name in _SECTIONS}
        for name, value in flat.items():
            known = find_setting(name)
            sections[known.section][name] = known.parse(value)
        return cls(preset=preset or "custom", **{name: _SECTIONS[name](**sections[name]) for name in _SECTIONS})


_SECTIONS: dict[str, Any] = {
    "embedding": EmbeddingConfig,
    "reconstruction": ReconstructionConfig,
    "comparison": ComparisonConfig,
    "training": TrainingConfig,
    "improvement": ImprovementConfig,
    "calibration": CalibrationConfig,
}


def _parse_yaml(text: str) -> Any:  # noqa: ANN401
    """YAML without aliases: a few aliases of aliases mean billions of values, and settings need none."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                raise ValueError("it has an alias (*name); write the value itself")
            return super().compose_node(parent, index)

    return yaml.load(text, Loader)  # noqa: S506 - a safe loader


@cache
def settings() -> dict[str, Setting]:
    """Every field of every section by its flat name."""
    table: dict[str, Setting] = {}
    for section, cls in _SECTIONS.items():
        hints = get_type_hints(cls)
        for f in fields(cls):
            assert f.name not in table, f"field {f.name} appears in two sections"
            table[f.name] = Setting(name=f.name, section=section, type=hints[f.name], **f.metadata)
    return table


def find_setting(name: str) -> Setting:
    """The setting of that flat name; dashes serve as underscores.

    Raises:
        ConfigError: no such field; the nearest name is suggested.
    """
    key = str(name).replace("-", "_")  # YAML also makes numbers of keys
    if key not in settings():
        raise ConfigError(unknown("configuration field", str(name), settings()))
    return settings()[key]


def flatten(values: dict[str, Any]) -> tuple[str | None, dict[str, Any]]:
    """Preset name and flat fields of a nested or flat mapping.

    Raises:
        ConfigError: an unknown section or field.
    """
    flat: dict[str, Any] = {}
    preset = None
    for key, value in ((as_text(key), value) for key, value in values.items()):
        if key == "preset":
            preset = as_text(value)
        elif key == "description":
            continue
        elif key in _SECTIONS:
            if not isinstance(value, dict | None):  # YAML reads a section whose lines are all commented out as None
                raise ConfigError(f"[{key}] must hold names and values, not {shown(value)}")
            for name, inner in ((as_text(name), inner) for name, inner in (value or {}).items()):
                if find_setting(name).section != key:
                    raise ConfigError(f"{name} belongs to [{find_setting(name).section}], not [{key}]")
                flat[name.replace("-", "_")] = inner
        else:
            find_setting(key)
            flat[key.replace("-", "_")] = value
    return preset, flat


def list_presets() -> dict[str, str]:
    """Names of the presets with their descriptions."""
    folder = resources.files("adtr") / "presets"
    names = sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name.endswith(".toml"))
    return {name: str(_read_preset(name)["description"]) for name in names}


def _read_preset(name: str) -> dict[str, Any]:
    return tomllib.loads((resources.files("adtr") / "presets" / f"{name}.toml").read_text("utf-8"))


def load_preset(name: str) -> Config:
    """The configuration of a named preset.

    Raises:
        ConfigError: no such preset; the nearest name is suggested.
    """
    known = list_presets()
    if name not in known:
        raise ConfigError(unknown("preset", name, known))
    return Config.from_dict({**_read_preset(name), "preset": name})


def read_config_file(path: str | Path) -> tuple[str | None, dict[str, Any]]:
    """Preset name (or None) and flat fields from a YAML or TOML file, with sections or without.

    Raises:
        ConfigError: unreadable, of another kind, or with unknown fields.
    """
    path = Path(path)
    try:
        text = read_bounded(path, MAX_BYTES).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is not UTF-8 text"
        raise ConfigError(f"cannot read the configuration file {path}: {reason}") from error
    try:
        if path.suffix == ".toml":
            values = tomllib.loads(text)
        elif path.suffix in (".yaml", ".yml"):
            values = _parse_yaml(text) or {}
        else:
            raise ConfigError(f"the configuration file {path} must end in .toml, .yaml or .yml")
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"cannot parse {path}: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold names and values, not a {type(values).__name__}")
    return flatten(values)
