"""Two processes on the CPU, which talk by gloo, learn what one learns."""

import hashlib
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from safetensors.torch import load_file, save_file
from test_loop import CPU, IMAGES, INDEX, Cut, Ledger, configuration, new_network

from adtr.detector import AnomalyDetector
from adtr.device import has_fast_bf16
from adtr.errors import ConfigError
from adtr.model.network import ADTR
from adtr.training import loop
from adtr.training.batches import GoodImages
from adtr.training.feature_cache import FeatureCache
from adtr.training.loop import TrainingRecord, train
from adtr.training.processes import exchange, fabric_precision
from conftest import SMALL, write_dataset

RTOL = 1e-4
"""Of losses, scores and features: the same sums in another order."""

FIT: dict[str, Any] = {**SMALL, "epochs": 2}
IMPROVE: dict[str, Any] = {"synthetic": ("confetti",), "improve_epochs": 1, "improve_max_steps": 3, "on_error": "skip"}


def cache() -> FeatureCache:
    generator = torch.Generator().manual_seed(0)
    mixture = torch.randn(3, 16 * 16, generator=generator)
    cache = FeatureCache(IMAGES, 16, 16, dtype=torch.float32)
    cache.append(((1 + torch.rand(IMAGES, 3, generator=generator)) @ mixture).view(IMAGES, 16, 16))
    return cache


def trained(settings: dict[str, object], **options: object) -> tuple[ADTR, TrainingRecord]:
    """13 images in batches of 4: the last batch holds one, so that the second of two processes has none."""
    config = configuration(**settings)
    network = new_network(config)
    record = train(network, GoodImages(network, cache(), INDEX), config.training, device=CPU, **options)
    return network, record


def digest(network: ADTR) -> str:
    state = network.state_dict()
    return hashlib.sha256(b"".join(value.numpy().tobytes() for value in state.values())).hexdigest()


def work(fabric: Fabric, folder: Path) -> None:
    """What each of two processes does; each leaves what it found in a file."""
    found: dict[str, Any] = {"messages": exchange(fabric, ["ä" * fabric.global_rank, None])}
    for optimizer in ("adamw", "muon"):
        network, record = trained({"optimizer": optimizer}, fabric=fabric)
        found[optimizer] = {"losses": record.losses, "digest": digest(network)}
        if fabric.is_global_zero:
            save_file(network.reconstruction.state_dict(), folder / f"{optimizer}.safetensors")
    for reconstructor in ("no-query", "no-attention"):
        _, record = trained({"reconstructor": reconstructor, "max_steps": 3}, fabric=fabric)
        found[reconstructor] = record.losses
    with pytest.raises(ConfigError, match="batch normalisation needs whole batches; train it on one device"):
        trained({"reconstructor": "cnn"}, fabric=fabric)

    loop.CHECKPOINT_SECONDS = -1
    with pytest.raises(KeyboardInterrupt):
        trained({}, fabric=fabric, checkpoint=folder / "cut-by-two", progress=Cut(6))
    _, record = trained({}, fabric=fabric, checkpoint=folder / "cut-by-one", resume=True)
    found["resumed"] = {"losses": record.losses, "at": record.resumed_at}

    ledger = Ledger()
    detector = AnomalyDetector(**FIT)
    detector.fit(folder / "discs", on_error="skip", keep_features=True, progress=ledger, fabric=fabric)
    found["fit"] = {
        "embedded": ledger.steps - 8,  # those of training
        "skipped": [str(image.path) for image in detector.skipped_],
        "hashes": detector.metadata_["data"]["image_hashes"],
        "losses": detector.metadata_["training"]["losses"],
        "scores": detector.calibration_.image_scores,
    }
    if fabric.is_global_zero:
        save_file({"features": detector.features_.clone()}, folder / "features.safetensors")
    found["held out"] = _by_choice(folder, fabric=fabric).calibration_.image_scores
    detector = AnomalyDetector.load(folder / "model")
    better = detector.improve(folder / "discs/test/dark", fabric=fabric, **IMPROVE)
    found["improve"] = {"losses": better.improvement_.losses, "after": better.improvement_.after.image_auroc}
    (folder / f"{fabric.global_rank}.json").write_text(json.dumps(found))


def _by_choice(folder: Path, **options: Any) -> AnomalyDetector:  # noqa: ANN401
    """Fitted to all good images that can be read, with the good test images held out."""
    held_out = folder / "discs/test/good"
    return AnomalyDetector(**FIT).fit(folder / "discs", held_out=held_out, on_error="skip", **options)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process finds, and the folder on which two work."""
    folder = tmp_path_factory.mktemp("together")
    discs = write_dataset(folder / "discs", train=40)
    (discs / "train/good/020.png").write_text("no image")  # in the second batch of 16: the second process reads it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "CHECKPOINT_SECONDS", -1)
        with pytest.raises(KeyboardInterrupt):
            trained({}, checkpoint=folder / "cut-by-one", progress=Cut(6))
    detector = AnomalyDetector(**FIT).fit(discs, on_error="skip", keep_features=True)
    detector.save(folder / "model")
    improved = detector.improve(discs / "test/dark", **IMPROVE)
    return {"folder": folder, "detector": detector, "improvement": improved.improvement_}


@pytest.fixture(scope="module")
def two(one: dict[str, Any]) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = one["folder"]
    multiprocessing.set_forkserver_preload(["adtr.detector", "adtr.learning.improve", "adtr.training.loop"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MASTER_PORT", "0")  # Fabric sets it for good
        patch.delenv("MASTER_PORT")
        fabric = Fabric(accelerator="cpu", devices=2, strategy=DDPStrategy(start_method="forkserver"))
        fabric.launch(work, folder)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_two_processes_have_the_losses_of_one(one: dict[str, Any], two: list[dict[str, Any]], optimizer: str) -> None:
    network, record = trained({"optimizer": optimizer})
    assert two[0][optimizer] == two[1][optimizer]  # bit for bit the same weights, too
    # In bf16 Muon rounds what differs in the last digit to different numbers.
    slack = 10 if optimizer == "muon" and has_fast_bf16(torch.device("cpu")) else 1
    assert two[0][optimizer]["losses"] == pytest.approx(record.losses, rel=slack * RTOL)
    shared = load_file(one["folder"] / f"{optimizer}.safetensors")
    for name, value in network.reconstruction.state_dict().items():
        if not name.endswith("key.bias"):  # whose gradient is 0 but for rounding; see test_loop
            torch.testing.assert_close(shared[name], value, rtol=1e-2, atol=slack * 1e-3)


def test_what_the_processes_tell_one_another_arrives(two: list[dict[str, Any]]) -> None:
    assert two[0]["messages"] == two[1]["messages"] == [["", None], ["ä", None]]


@pytest.mark.parametrize("reconstructor", ["no-query", "no-attention"])
def test_the_other_reconstructors(two: list[dict[str, Any]], reconstructor: str) -> None:
    _, record = trained({"reconstructor": reconstructor, "max_steps": 3})
    assert two[1][reconstructor] == pytest.approx(record.losses, rel=RTOL)


def test_resuming_with_another_number_of_processes(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    _, whole = trained({})
    assert two[0]["resumed"]["at"] == 6
    assert two[0]["resumed"]["losses"] == pytest.approx(whole.losses, rel=RTOL)
    _, resumed = trained({}, checkpoint=one["folder"] / "cut-by-two", resume=True)
    assert resumed.resumed_at == 6
    assert resumed.losses == pytest.approx(whole.losses, rel=RTOL)


def test_each_image_is_embedded_once_and_all_share_the_features(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    detector: AnomalyDetector = one["detector"]
    assert [each["fit"]["embedded"] for each in two] == [24, 15]
    assert two[0]["fit"]["hashes"] == two[1]["fit"]["hashes"] == detector.metadata_["data"]["image_hashes"]
    assert two[0]["fit"]["skipped"] == two[1]["fit"]["skipped"] == [str(image.path) for image in detector.skipped_]
    shared = load_file(one["folder"] / "features.safetensors")["features"]
    torch.testing.assert_close(shared, detector.features_, rtol=RTOL, atol=1e-4)
    assert not list(Path(one["folder"]).parent.rglob("adtr-features-*"))


def test_a_detector_that_two_have_fitted_is_that_of_one(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    detector: AnomalyDetector = one["detector"]
    assert two[0]["fit"]["scores"] == two[1]["fit"]["scores"]
    assert two[0]["fit"]["losses"] == pytest.approx(detector.metadata_["training"]["losses"], rel=RTOL)
    assert two[0]["fit"]["scores"] == pytest.approx(detector.calibration_.image_scores, rel=1e-3)


def test_both_hold_out_what_was_chosen(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    detector = _by_choice(one["folder"])
    assert detector.metadata_["training"]["images"] == 39
    assert len(two[0]["held out"]) == 8
    assert two[0]["held out"] == two[1]["held out"] == pytest.approx(detector.calibration_.image_scores, rel=1e-3)


def test_improving_together(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    assert two[0]["improve"] == two[1]["improve"]
    assert two[0]["improve"]["losses"] == pytest.approx(one["improvement"].losses, rel=RTOL)
    assert two[0]["improve"]["after"] == pytest.approx(one["improvement"].after.image_auroc, abs=0.1)


def test_a_fabric_of_another_precision_is_refused() -> None:
    assert fabric_precision(Fabric(accelerator="cpu", devices=1, precision="bf16-mixed")) == "bf16"
    with pytest.raises(ConfigError, match="32-true or bf16-mixed, not in 64-true; tell Fabric so"):
        fabric_precision(Fabric(accelerator="cpu", devices=1, precision="64-true"))


def test_a_fabric_of_one_process_is_as_good_as_none(one: dict[str, Any]) -> None:
    fabric = Fabric(accelerator="cpu", devices=1)
    detector = AnomalyDetector(**FIT).fit(one["folder"] / "discs", on_error="skip", fabric=fabric)
    assert detector.calibration_ == one["detector"].calibration_
