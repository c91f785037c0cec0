import pytest

from adtr.errors import ConfigError
from adtr.experiments.plans import PLANS
from adtr.experiments.published import published_tables

VARIED = {
    "ablation-attention": {"reconstructor"},
    "ablation-target": {"target"},
    "ablation-backbone": {"backbone"},
    "ablation-levels": {"levels"},
    "identity-shortcut": {"reconstructor"},
    "mvtec": set(),
    "cifar10": set(),
}


@pytest.mark.parametrize("name", PLANS)
def test_rows_differ_in_the_one_thing_that_the_table_names(name: str) -> None:
    configs = [PLANS[name].config(row, None, {}, 0).flat() for row in PLANS[name].rows]
    varied = {field for config in configs for field in config if config[field] != configs[0][field]}
    assert varied == VARIED[name]
    assert len({str(config) for config in configs}) == (len(configs) if varied else 1)


@pytest.mark.parametrize("name", PLANS)
def test_rows_are_those_of_the_papers_tables(name: str) -> None:
    plan = PLANS[name]
    for table in plan.tables:
        published = [row.method for row in published_tables()[table].rows]
        assert [row.name for row in plan.rows] == published[-len(plan.rows) :]


def test_the_papers_schedule_is_the_default_and_all_but_two_images_are_trained_on() -> None:
    config = PLANS["ablation-attention"].config(PLANS["ablation-attention"].rows[-1], None, {}, 3)
    assert config.preset == "paper-mvtec"
    assert (config.training.epochs, config.training.seed, config.reconstruction.reconstructor) == (
        500,
        3,
        "transformer",
    )
    assert (config.calibration.holdout, config.calibration.holdout_min) == (0, 2)
    cifar = PLANS["cifar10"].config(PLANS["cifar10"].rows[0], "quick", {"epochs": 7}, 0)
    assert (cifar.embedding.image_size, cifar.embedding.grid_size) == ((32, 32), (8, 8))
    assert (cifar.training.epochs, cifar.training.max_steps) == (7, 0)
    larger = PLANS["cifar10"].config(PLANS["cifar10"].rows[0], "quick", {"image_size": "64"}, 0)
    assert larger.embedding.image_size == (64, 64)


def test_backbones_become_rows_where_they_are_compared() -> None:
    plan = PLANS["ablation-backbone"].with_backbones(["tf_efficientnet_lite0", "resnet18.tv_in1k"])
    assert [row.name for row in plan.rows] == ["tf_efficientnet_lite0", "Res-18"]
    with pytest.raises(ConfigError, match="takes one backbone, not 2"):
        PLANS["mvtec"].with_backbones(["a", "b"])
