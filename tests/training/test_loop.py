from pathlib import Path

import pytest
import torch

from adtr.config import Config, load_preset
from adtr.device import has_fast_bf16
from adtr.errors import ModelError
from adtr.model.network import ADTR
from adtr.model.reconstruction import Reconstruction
from adtr.progress import Silent
from adtr.training import loop
from adtr.training.batches import GoodImages
from adtr.training.checkpoint import FILE
from adtr.training.feature_cache import FeatureCache
from adtr.training.loop import TrainingRecord, epoch_order, train

CPU = torch.device("cpu")
IMAGES = 14
INDEX = torch.arange(IMAGES - 1)  # 13 images in batches of 4: the last batch holds one


def configuration(**values: object) -> Config:
    small = {
        "backbone": "tf_efficientnet_lite0",
        "image_size": 32,
        "grid_size": 4,
        "levels": "1",
        "standardize": False,
        "width": 16,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "feedforward": 24,
        "batch_size": 4,
        "epochs": 4,
        "optimizer": "adamw",
        "learning_rate": 5e-3,
        "precision": "fp32",
    }
    return load_preset("quick").override(**{**small, **values})


def new_network(config: Config) -> ADTR:
    torch.manual_seed(config.training.seed)
    return ADTR(config, "random")


@pytest.fixture(scope="module")
def cache() -> FeatureCache:
    """Features that a few numbers describe, as those of one product's images are."""
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(3, 16 * 16, generator=generator)
    rows = (1 + torch.rand(IMAGES, 3, generator=generator)) @ mixture
    cache = FeatureCache(IMAGES, 16, 16, dtype=torch.float32)
    cache.append(rows.view(IMAGES, 16, 16))
    return cache


class Cut(Silent):
    """Ends the training after some steps, as a power failure would."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def advance(self, amount: int = 1, *, note: str = "") -> None:  # noqa: ARG002
        self.left -= amount
        if self.left < 0:
            raise KeyboardInterrupt


class Ledger(Silent):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.steps = 0

    def start(self, description: str, *, total: int | None, done: int = 0) -> None:
        self.events.append((description, total, done))

    def advance(self, amount: int = 1, *, note: str = "") -> None:  # noqa: ARG002
        self.steps += amount

    def finish(self) -> None:
        self.events.append(("finished",))


def trained(cache: FeatureCache, config: Config, **options: object) -> tuple[ADTR, TrainingRecord]:
    network = new_network(config)
    record = train(
        network, GoodImages(network, cache, INDEX), config.training, device=CPU, fingerprint="print", **options
    )
    return network, record


def assert_same(first: ADTR, second: ADTR) -> None:
    for (name, a), b in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b), name


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_training_lowers_the_loss(cache: FeatureCache, optimizer: str) -> None:
    network, record = trained(cache, configuration(optimizer=optimizer, epochs=25))
    assert len(record.losses) == 25
    assert record.losses[-1] < 0.5 * record.losses[0]
    assert (record.steps, record.images, record.precision, record.resumed_at) == (100, 13, "fp32", 0)
    assert record.seconds > 0
    assert not network.training


def test_one_epoch_is_what_a_literal_loop_does(cache: FeatureCache) -> None:
    config = configuration(epochs=2, schedule="step", drop_epoch=1, weight_decay=0.1)
    network, record = trained(cache, config)
    literal = new_network(config)
    optimizer = torch.optim.AdamW(literal.reconstruction.parameters(), lr=5e-3, weight_decay=0.1)
    losses = []
    for epoch, rate in enumerate((5e-3, 5e-4)):
        optimizer.param_groups[0]["lr"] = rate
        total = 0.0
        for rows in INDEX[epoch_order(len(INDEX), config.training.seed, epoch)].split(4):
            optimizer.zero_grad()
            features = cache[rows]
            difference = features - literal.reconstruction(features)
            loss = difference.square().sum() / (len(rows) * 16)
            loss.backward()
            optimizer.step()
            total += loss.item() * len(rows)
        losses.append(total / len(INDEX))
    assert record.losses == pytest.approx(losses, rel=1e-5)
    for (name, a), b in zip(network.state_dict().items(), literal.state_dict().values(), strict=True):
        if not name.endswith("key.bias"):  # its gradient is 0 but for rounding, which AdamW blows up; see the softmax
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5, msg=name)


def test_features_are_standardised_before_they_are_learned(cache: FeatureCache) -> None:
    config = configuration()
    mean, std = cache.statistics(INDEX)
    standardised = FeatureCache(IMAGES, 16, 16, dtype=torch.float32)
    standardised.append((cache[torch.arange(IMAGES)] - mean) / std)
    expected, _ = trained(standardised, config)
    network = new_network(config)
    network.feature_mean.copy_(mean)
    network.feature_std.copy_(std)
    train(network, GoodImages(network, cache, INDEX), config.training, device=CPU)
    for name, a in network.reconstruction.state_dict().items():
        torch.testing.assert_close(a, expected.reconstruction.state_dict()[name], rtol=1e-3, atol=1e-5)


def test_images_outside_the_index_have_no_influence(cache: FeatureCache) -> None:
    spoiled = FeatureCache(IMAGES, 16, 16, dtype=torch.float32)
    spoiled.append(cache[torch.arange(IMAGES)])
    spoiled.features[IMAGES - 1] = 1e6
    assert_same(trained(cache, configuration())[0], trained(spoiled, configuration())[0])


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_the_same_seed_gives_the_same_weights(cache: FeatureCache, optimizer: str) -> None:
    first, a = trained(cache, configuration(optimizer=optimizer))
    second, b = trained(cache, configuration(optimizer=optimizer))
    other, _ = trained(cache, configuration(optimizer=optimizer, seed=1))
    assert_same(first, second)
    assert a.losses == b.losses
    assert not torch.equal(first.reconstruction.query, other.reconstruction.query)


def test_where_gradients_are_off_it_trains_all_the_same(cache: FeatureCache) -> None:
    config = configuration(epochs=1)
    with torch.no_grad():
        network, _ = trained(cache, config)
        assert not torch.is_grad_enabled()
    assert_same(network, trained(cache, config)[0])


def test_the_embedding_does_not_move(cache: FeatureCache) -> None:
    network, _ = trained(cache, configuration())
    untouched = new_network(configuration())
    for (name, a), b in zip(
        network.embedding.state_dict().items(), untouched.embedding.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b), name


def test_max_steps_ends_the_training_in_mid_epoch(cache: FeatureCache) -> None:
    ledger = Ledger()
    _, record = trained(cache, configuration(max_steps=6), progress=ledger)
    assert (record.steps, len(record.losses), ledger.steps) == (6, 2, 6)
    assert ledger.events == [("training", 6, 0), ("finished",)]


def test_the_loss_of_a_cut_epoch_is_a_mean_too(cache: FeatureCache) -> None:
    """With a learning rate of 0 every epoch costs the same per image, whole or cut."""
    config = configuration(learning_rate=0.0, max_steps=6, weight_decay=0.0)
    network, record = trained(cache, config)
    with torch.no_grad():
        rows = INDEX[epoch_order(len(INDEX), 0, 1)][:8]
        features = cache[rows]
        expected = (features - network.reconstruction(features)).square().sum(dim=-1).mean()
    assert record.losses[-1] == pytest.approx(float(expected), rel=1e-5)


def cut_and_resume(cache: FeatureCache, config: Config, folder: Path, *cuts: int) -> tuple[ADTR, TrainingRecord]:
    for i, steps in enumerate(cuts):
        with pytest.raises(KeyboardInterrupt):
            trained(cache, config, checkpoint=folder, resume=i > 0, progress=Cut(steps))
    return trained(cache, config, checkpoint=folder, resume=True)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@pytest.mark.parametrize("cuts", [(8,), (9,), (6, 5)], ids=str)
def test_a_resumed_run_equals_an_uninterrupted_one(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str, cuts: tuple[int, ...]
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    config = configuration(optimizer=optimizer)
    whole, record = trained(cache, config)
    resumed, resumed_record = cut_and_resume(cache, config, tmp_path, *cuts)
    assert_same(whole, resumed)
    assert resumed_record.losses == record.losses
    assert resumed_record.steps == record.steps
    assert resumed_record.resumed_at == sum(cuts)
    assert resumed_record.seconds > 0


def test_progress_begins_where_the_resumed_run_does(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt):
        trained(cache, configuration(), checkpoint=tmp_path, progress=Cut(6))
    ledger = Ledger()
    trained(cache, configuration(), checkpoint=tmp_path, resume=True, progress=ledger)
    assert ledger.events == [("training", 16, 6), ("finished",)]
    assert ledger.steps == 10


def test_a_finished_run_has_nothing_left_to_do(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    whole, record = trained(cache, configuration(), checkpoint=tmp_path)
    again, again_record = trained(cache, configuration(), checkpoint=tmp_path, resume=True)
    assert_same(whole, again)
    assert again_record.losses == record.losses
    assert again_record.resumed_at == 16


def test_without_resume_a_checkpoint_is_passed_over(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    (tmp_path / FILE).write_text("damaged")
    network, record = trained(cache, configuration(), checkpoint=tmp_path)
    assert record.resumed_at == 0
    assert_same(network, trained(cache, configuration())[0])


def test_a_checkpoint_of_another_run_is_refused(
    cache: FeatureCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    config = configuration(epochs=1)
    trained(cache, config, checkpoint=tmp_path)
    network = new_network(config)
    with pytest.raises(ModelError, match="other images or another configuration"):
        train(
            network,
            GoodImages(network, cache, INDEX),
            config.training,
            device=CPU,
            fingerprint="another print",
            checkpoint=tmp_path,
            resume=True,
        )


def test_checkpoints_are_written_only_now_and_then(cache: FeatureCache, tmp_path: Path) -> None:
    assert loop.CHECKPOINT_SECONDS > 5
    trained(cache, configuration(), checkpoint=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_order_of_an_epoch_is_a_permutation_of_its_own() -> None:
    assert sorted(epoch_order(50, 3, 4).tolist()) == list(range(50))
    assert torch.equal(epoch_order(50, 3, 4), epoch_order(50, 3, 4))
    different = {tuple(epoch_order(50, seed, epoch).tolist()) for seed in (0, 1, 2**31 - 1) for epoch in range(20)}
    assert len(different) == 60
    torch.manual_seed(0)
    before = torch.rand(1)
    torch.manual_seed(0)
    epoch_order(50, 3, 4)
    assert torch.equal(torch.rand(1), before)


@pytest.mark.skipif(not has_fast_bf16(CPU), reason="the processor has no bfloat16 products")
def test_bf16_learns_as_well_where_it_is_in_hardware(cache: FeatureCache) -> None:
    settings = {"epochs": 25, "optimizer": "muon"}
    _, exact = trained(cache, configuration(**settings))
    network, record = trained(cache, configuration(**settings, precision="auto"))
    assert record.precision == "bf16"
    assert record.losses != exact.losses
    assert record.losses[-1] < 0.6 * record.losses[0]
    assert {p.dtype for p in network.parameters()} == {torch.float32}


def test_auto_is_fp32_where_bf16_is_slow(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adtr.device.has_fast_bf16", lambda _device: False)
    network, record = trained(cache, configuration(precision="auto"))
    assert record.precision == "fp32"
    assert_same(network, trained(cache, configuration())[0])


def test_long_trainings_on_cuda_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "find_spec", lambda _name: True)
    monkeypatch.setattr(loop, "which", lambda name: name if name == "gcc" else None)
    network, cuda, enough = torch.nn.Linear(2, 2), torch.device("cuda"), loop.COMPILE_STEPS
    fast = loop.compiled(network, cuda, enough)
    assert fast is not network
    assert list(fast.parameters()) == list(network.parameters())
    assert loop.compiled(network, cuda, enough - 1) is network
    assert loop.compiled(network, CPU, enough) is network
    monkeypatch.setattr(loop, "which", lambda _name: None)
    assert loop.compiled(network, cuda, enough) is network


def test_a_compiled_network_learns_the_same(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(epochs=3)
    plain, expected = trained(cache, config)
    monkeypatch.setattr(loop, "compiled", lambda network, *_: torch.compile(network, backend="eager"))
    network, record = trained(cache, config)
    assert record.losses == pytest.approx(expected.losses, rel=1e-5)
    assert network.reconstruction.state_dict().keys() == plain.reconstruction.state_dict().keys()


def test_a_batch_in_several_passes_learns_the_same(cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    config = configuration(batch_size=7)  # passes of 3, 3 and 1, which must weigh 3, 3 and 1
    _, whole = trained(cache, config)
    monkeypatch.setattr(loop, "CPU_PASS", 3)
    sizes: list[int] = []
    forward = Reconstruction.forward
    monkeypatch.setattr(Reconstruction, "forward", lambda self, f: sizes.append(len(f)) or forward(self, f))
    _, parts = trained(cache, config)
    assert set(sizes) == {3, 1}
    assert parts.losses == pytest.approx(whole.losses, rel=1e-4)
