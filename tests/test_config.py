import json
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from adtr import config as module
from adtr.config import (
    Config,
    find_setting,
    flatten,
    list_presets,
    load_preset,
    read_config_file,
    settings,
)
from adtr.errors import ConfigError

# Sections 4.1 to 4.3 and appendix A of the paper.
PAPER = {
    "target": "features",
    "reconstructor": "transformer",
    "backbone": "tf_efficientnet_b4.aa_in1k",
    "levels": "all",
    "standardize": False,
    "width": 256,
    "heads": 8,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "feedforward": 1024,
    "epochs": 500,
    "max_steps": 0,
    "optimizer": "adamw",
    "learning_rate": 1e-4,
    "weight_decay": 1e-4,
    "schedule": "step",
    "drop_epoch": 400,
    "precision": "fp32",
    "improve_epochs": 300,
    "improve_max_steps": 0,
    "improve_learning_rate": 1e-4,
    "improve_drop_epoch": 200,
    "alpha": 0.003,
    "top_k": 20,
    "anomaly_share": 0.5,
    "memory_size": 0,
    "mahalanobis_weight": 0.0,
}
PRESETS = {
    "paper-mvtec": {**PAPER, "image_size": (256, 256), "grid_size": (16, 16), "batch_size": 16},
    "paper-mvtec-512": {**PAPER, "image_size": (512, 512), "grid_size": (32, 32), "batch_size": 16},
    "paper-cifar10": {**PAPER, "image_size": (32, 32), "grid_size": (8, 8), "batch_size": 128},
}
NOT_IN_THE_PAPER = {
    "pool_size",
    "memory_weight",
    "seed",
    "holdout",
    "holdout_min",
    "folds",
    "false_alarm_rate",
    "unsure_rate",
    "anomaly_holdout",
}


def error_of(call: Callable[..., object], *arguments: object, **keywords: object) -> str:
    """The message of the ConfigError that the call must raise, which must be one line."""
    with pytest.raises(ConfigError) as caught:
        call(*arguments, **keywords)
    message = str(caught.value)
    assert message
    assert len(message.splitlines()) == 1
    return message


@pytest.fixture(scope="module")
def quick() -> Config:
    return load_preset("quick")


@pytest.mark.parametrize("name", PRESETS)
def test_paper_presets_hold_the_papers_numbers_field_by_field(name: str) -> None:
    flat = load_preset(name).flat()
    assert set(flat) == set(PRESETS[name]) | NOT_IN_THE_PAPER
    for field, value in PRESETS[name].items():
        assert flat[field] == value, field
        assert type(flat[field]) is type(value), field


def test_every_preset_loads_under_its_own_name_and_says_what_it_is() -> None:
    assert set(list_presets()) == {*PRESETS, "quick"}
    for name, description in list_presets().items():
        assert load_preset(name).preset == name
        assert len(description) > 20
        assert "\n" not in description


def test_the_default_preset_needs_no_download(quick: Config) -> None:
    assert quick.embedding.backbone == "tf_efficientnet_lite2"
    assert quick.embedding.standardize


def test_flat_names_are_unique_and_complete(quick: Config) -> None:
    names = [f.name for section in module._SECTIONS.values() for f in fields(section)]
    assert len(names) == len(set(names))
    assert set(names) == set(settings()) == set(quick.flat())
    assert all(setting.help for setting in settings().values())
    assert not set(names) & {"preset", "description", *module._SECTIONS}


def test_round_trip_through_dict_and_json(quick: Config) -> None:
    odd = quick.override(image_size="64x96", grid_size=(4, 6), levels="2,3", learning_rate="3e-5", standardize="no")
    for config in (quick, odd):
        assert Config.from_dict(config.to_dict()) == config
        assert Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config
        assert Config.from_dict({"preset": config.preset, **config.flat()}) == config


def test_a_dict_without_preset_is_custom(quick: Config) -> None:
    values = quick.to_dict()
    del values["preset"]
    assert Config.from_dict(values).preset == "custom"


def test_a_dict_that_lacks_fields_names_them(quick: Config) -> None:
    values = quick.to_dict()
    del values["training"]["seed"], values["embedding"]["levels"]
    assert error_of(Config.from_dict, values) == "the configuration lacks levels, seed"


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("epochs", "50", 50),
        ("epochs", "5e1", 50),
        ("learning_rate", "1e-4", 1e-4),
        ("learning_rate", 1, 1.0),
        ("image_size", "256", (256, 256)),
        ("image_size", 256, (256, 256)),
        ("image_size", "128X256", (128, 256)),
        ("image_size", [128, 256], (128, 256)),
        ("image_size", [128.0, 256.0], (128, 256)),
        ("grid_size", (3,), (3, 3)),
        ("standardize", "off", False),
        ("standardize", "True", True),
        ("standardize", False, False),
        ("levels", 2, "2"),
        ("optimizer", "adamw", "adamw"),
        ("holdout", "0.25", 0.25),
    ],
)
def test_values_are_brought_to_the_fields_type(quick: Config, name: str, text: object, value: object) -> None:
    got = quick.override(**{name: text}).flat()[name]
    assert got == value
    assert type(got) is type(value)


def test_override_changes_what_it_names_and_nothing_else(quick: Config) -> None:
    changed = quick.override(epochs=7, levels="last")
    assert changed.flat() == {**quick.flat(), "epochs": 7, "max_steps": 0, "levels": "last"}
    assert changed.preset == quick.preset
    assert quick.training.epochs != 7


def test_epochs_alone_lift_the_limit_of_steps(quick: Config) -> None:
    assert quick.training.max_steps > 0
    assert quick.override(epochs=7).training.max_steps == 0
    assert quick.override(epochs=7, max_steps=3).training.max_steps == 3
    assert quick.override(batch_size=7).training.max_steps == quick.training.max_steps


def test_dashes_serve_as_underscores(quick: Config) -> None:
    assert quick.override(**{"batch-size": 3}).training.batch_size == 3
    assert find_setting("batch-size") is find_setting("batch_size")


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("epochs", "many", "epochs takes a whole number, not 'many'"),
        ("epochs", 2.5, "epochs takes a whole number, not 2.5"),
        ("epochs", True, "epochs takes a whole number, not True"),
        ("epochs", None, "epochs takes a whole number, not None"),
        ("epochs", float("inf"), "epochs takes a whole number, not inf"),
        ("epochs", 0, "epochs must be at least 1, not 0"),
        ("epochs", "0\n", "epochs must be at least 1, not 0"),
        ("learning_rate", "nan", "learning_rate takes a number, not 'nan'"),
        ("learning_rate", "inf", "learning_rate must be from 0 to 10, not inf"),
        ("learning_rate", -1e-9, "learning_rate must be from 0 to 10"),
        ("standardize", "maybe", "standardize takes true or false, not 'maybe'"),
        ("standardize", 1, "standardize takes true or false, not 1"),
        ("backbone", ["resnet18"], "backbone takes a name"),
        ("image_size", "256x", "image_size takes a number of pixels or tokens, or HEIGHTxWIDTH"),
        ("image_size", "1x2x3", "image_size takes a number of pixels"),
        ("image_size", [], "image_size takes a number of pixels"),
        ("image_size", [64.5, 64], "image_size takes a number of pixels"),
        ("image_size", True, "image_size takes a number of pixels"),
        ("image_size", "7x64", "image_size must be from 8 to 8192, not 7x64"),
        ("grid_size", 0, "grid_size must be from 1 to 512"),
        ("holdout", 0.91, "holdout must be from 0 to 0.9, not 0.91"),
        ("false_alarm_rate", 0.6, "false_alarm_rate must be from 0 to 0.5"),
        ("seed", 2**31, "seed must be from 0 to"),
        ("optimizer", "adam", "unknown optimizer 'adam'; did you mean adamw?"),
        ("schedule", "onecycle", "unknown schedule 'onecycle'; did you mean one-cycle?"),
        ("precision", 32, "unknown precision '32'"),
        ("heads", 7, "width 128 is not a multiple of heads 7"),
        ("epoch", 3, "unknown configuration field 'epoch'; did you mean epochs?"),
        ("zzzzzz", 3, "unknown configuration field 'zzzzzz' (known: alpha, anomaly_holdout,"),
    ],
)
def test_mistakes_are_one_line_that_says_what_is_right(quick: Config, name: str, value: object, says: str) -> None:
    assert error_of(quick.override, **{name: value}).startswith(says)


def test_an_unknown_preset_names_the_nearest() -> None:
    assert "did you mean paper-mvtec?" in error_of(load_preset, "paper_mvtec")


def test_a_field_in_the_wrong_section_is_told_its_own() -> None:
    assert error_of(flatten, {"embedding": {"epochs": 3}}) == "epochs belongs to [training], not [embedding]"


@pytest.mark.parametrize("values", [{1: 2}, {None: 2}, {"training": {1: 2}}, {"training": {None: 2}}])
def test_names_that_are_no_text_are_unknown_fields(values: dict[Any, Any]) -> None:
    assert error_of(flatten, values).startswith("unknown configuration field")


def test_a_section_must_be_a_section() -> None:
    assert error_of(flatten, {"training": 3}) == "[training] must hold names and values, not 3"
    assert flatten({"training": None, "epochs": 3}) == (None, {"epochs": 3})


NESTED_TOML = """
preset = "paper-mvtec"
[training]
epochs = 3
learning_rate = 1e-3
[embedding]
image_size = [64, 128]
standardize = true
"""
FLAT_TOML = 'preset = "paper-mvtec"\nepochs = 3\nlearning-rate = 1e-3\nimage_size = "64x128"\nstandardize = true\n'
NESTED_YAML = """
preset: paper-mvtec
training:
  epochs: 3
  learning_rate: 1e-3
embedding: {image_size: 64x128, standardize: yes}
comparison:
  # pool_size: 0.1
"""
FLAT_YAML = "preset: paper-mvtec\nepochs: 3\nlearning_rate: 0.001\nimage_size: [64, 128]\nstandardize: 'on'\n"


@pytest.mark.parametrize(
    ("file", "text"),
    [("a.toml", NESTED_TOML), ("b.toml", FLAT_TOML), ("a.yaml", NESTED_YAML), ("b.yml", FLAT_YAML)],
)
def test_configuration_files_nested_and_flat(tmp_path: Path, file: str, text: str) -> None:
    (tmp_path / file).write_text(text)
    preset, flat = read_config_file(tmp_path / file)
    assert preset == "paper-mvtec"
    expected = load_preset("paper-mvtec").override(epochs=3, learning_rate=1e-3, image_size=(64, 128), standardize=True)
    assert load_preset(preset).override(**flat) == expected


def test_every_preset_survives_a_yaml_file(tmp_path: Path) -> None:
    for name in list_presets():
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(json.loads(json.dumps(load_preset(name).to_dict()))))
        preset, flat = read_config_file(path)
        assert preset == name
        assert Config.from_dict({"preset": preset, **flat}) == load_preset(name)


def test_an_empty_yaml_file_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("# nothing\n")
    assert read_config_file(tmp_path / "a.yaml") == (None, {})


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("a.toml", "epochs = \n = 3", "cannot parse"),
        ("a.yaml", "epochs: [1, 2\nseed: {", "cannot parse"),
        ("a.yaml", "- epochs\n- seed\n", "must hold names and values, not a list"),
        ("a.yaml", "1: 2\n", "unknown configuration field '1'"),
        ("a.toml", "epoch = 3", "did you mean epochs?"),
        ("a.json", "{}", "must end in .toml, .yaml or .yml"),
        ("a.toml", b"\xff\xfe\x00", "cannot read the configuration file"),
        ("a.yaml", "!!python/object/apply:os.getcwd []", "cannot parse"),
    ],
)
def test_bad_configuration_files_are_one_line(tmp_path: Path, file: str, text: str | bytes, says: str) -> None:
    (tmp_path / file).write_bytes(text if isinstance(text, bytes) else text.encode())
    assert says in error_of(read_config_file, tmp_path / file)


def test_a_missing_configuration_file_is_one_line(tmp_path: Path) -> None:
    assert "cannot read the configuration file" in error_of(read_config_file, tmp_path / "none.toml")
    assert "cannot read the configuration file" in error_of(read_config_file, tmp_path)


@given(st.integers(8, 8192), st.integers(8, 8192))
@examples(deadline=None)
def test_any_size_survives_its_text(height: int, width: int) -> None:
    parse = settings()["image_size"].parse
    assert parse(f"{height}x{width}") == parse([height, width]) == parse((height, width)) == (height, width)
    assert parse(str(height)) == parse(height) == (height, height)


@given(st.integers(0, 2**31 - 1), st.floats(0, 10), st.booleans())
@examples(deadline=None)
def test_any_number_survives_its_text(seed: int, rate: float, flag: bool) -> None:
    table = settings()
    assert table["seed"].parse(str(seed)) == table["seed"].parse(seed) == seed
    assert table["learning_rate"].parse(repr(rate)) == table["learning_rate"].parse(rate) == rate
    assert table["standardize"].parse(str(flag)) is flag


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.sampled_from(sorted(settings())), JUNK)
@examples(max_examples=300, deadline=None)
def test_any_value_is_taken_or_refused_in_one_line(name: str, value: object) -> None:
    setting = settings()[name]
    try:
        parsed = setting.parse(value)
    except ConfigError:
        assert name in error_of(setting.parse, value)
    else:
        assert setting.parse(parsed) == parsed


def test_a_batch_of_the_improvement_counts_its_good_images(quick: Config) -> None:
    training = quick.override(batch_size=8, anomaly_share=0.25, improve_learning_rate=0.5).improvement_training()
    assert (training.batch_size, training.learning_rate, training.max_steps) == (6, 0.5, 600)
    assert quick.override(batch_size=1).improvement_training().batch_size == 1


@pytest.mark.parametrize("name", ["improve_epochs", "improve-epochs"])
def test_whoever_gives_epochs_of_the_improvement_means_epochs(quick: Config, name: str) -> None:
    assert quick.improvement.improve_max_steps == 600
    assert quick.override(**{name: 3}).improvement_training().max_steps == 0
    assert quick.override(**{name: 3}).training.max_steps == 300


ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name} {{<<: [{','.join([f'*{before}'] * 9)}]}}\n"
    for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", ALIASES + "epochs: *j\n", r"has an alias \(\*name\)"),
        ("c.yaml", MERGES + "training: *j\n", r"has an alias \(\*name\)"),
        ("c.yaml", "epochs: &a [*a]\n", r"has an alias \(\*name\)"),
        ("c.yaml", "epochs: " + "[" * 10_000, "cannot parse"),
        ("c.yaml", "epochs: 0x" + "f" * 20_000, "epochs takes a whole number, not a number of thousands of digits"),
        ("c.toml", "epochs = 0x" + "f" * 20_000, "epochs takes a whole number, not a number of thousands of digits"),
        ("c.yaml", "? 0x" + "f" * 20_000 + "\n: 1", "unknown configuration field 'a number of thousands of digits'"),
        ("c.yaml", "preset: [1, 2]", "unknown preset"),
        ("c.yaml", "? " + "x" * 50_000 + "\n: 1", "unknown configuration field 'x{100}'"),
        ("c.toml", "epochs = '" + "x" * 50_000 + "'", r"not 'x{99}\.\.\.$"),
        ("c.toml", "#" * 70_000, "it has more than 65536 bytes"),
        ("c.toml", "epochs = " + "[" * 20_000, "cannot parse"),
    ],
)
def test_hostile_configuration_files_are_one_line(name: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words) as caught:
        load_preset(read_config_file(tmp_path / name)[0] or "quick").override(**read_config_file(tmp_path / name)[1])
    assert len(str(caught.value)) < 2000
    assert "\n" not in str(caught.value)
