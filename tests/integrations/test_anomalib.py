"""adtr in the real anomalib: its engine, data modules, checkpoints, exports and command line."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError, ConfigError
from conftest import SMALL

pytest.importorskip("anomalib")

from adtr.integrations.anomalib import Adtr, CalibratedPostProcessor, PillowResize

from anomalib.data import Folder, PredictDataset  # isort: skip - adtr's import of timm goes first
from anomalib.engine import Engine  # isort: skip
from anomalib.post_processing import PostProcessor  # isort: skip

START = "from adtr.model.backbones import import_timm; import_timm(); from anomalib.cli.cli import main; main()"
"""What the command `anomalib` does, also where torchvision and torch are of different builds."""


def discs(root: Path, **options: object) -> Folder:
    parts = {
        "normal_dir": "train/good",
        "abnormal_dir": "test/dark",
        "normal_test_dir": "test/good",
        "mask_dir": "ground_truth/dark",
        "val_split_mode": "same_as_test",
    }
    return Folder(name="discs", root=root, num_workers=0, **parts, **{"train_batch_size": 5, **options})


def engine(folder: Path) -> Engine:
    return Engine(default_root_dir=folder, accelerator="cpu", enable_progress_bar=False)


@pytest.fixture(scope="module")
def trained(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adtr, Engine]:
    model = Adtr(settings=SMALL)
    runner = engine(tmp_path_factory.mktemp("results"))
    runner.fit(model, datamodule=discs(dataset))
    return model, runner


@pytest.fixture(scope="module")
def own(dataset: Path) -> AnomalyDetector:
    return AnomalyDetector(**SMALL, device="cpu").fit(dataset)


def images(dataset: Path) -> list[Path]:
    return sorted((dataset / "test").rglob("*.png"))


def test_it_learns_what_adtr_learns(trained: tuple[Adtr, Engine], own: AnomalyDetector, dataset: Path) -> None:
    """The same images in the same order, whatever order and batches the loader has: float32 differs by its rounding."""
    detector = trained[0].to_detector()
    assert detector.metadata_["data"]["image_hashes"] == own.metadata_["data"]["image_hashes"]
    assert detector.metadata_["data"]["held_out_hashes"] == own.metadata_["data"]["held_out_hashes"]
    np.testing.assert_allclose(detector.metadata_["training"]["losses"], own.metadata_["training"]["losses"], rtol=1e-4)
    np.testing.assert_allclose(detector.score_samples(images(dataset)), own.score_samples(images(dataset)), rtol=1e-4)
    assert detector.thresholds_.image == pytest.approx(own.thresholds_.image, rel=1e-4)


def test_raw_scores_and_maps_are_adtrs(
    trained: tuple[Adtr, Engine], own: AnomalyDetector, dataset: Path, tmp_path: Path
) -> None:
    model = trained[0]
    model.post_processor, post_processor = None, model.post_processor
    try:
        batches = engine(tmp_path).predict(model, datamodule=discs(dataset, eval_batch_size=3))
    finally:
        model.post_processor = post_processor
    expected = {str(p.path): p for p in own.predict(images(dataset))}
    seen = 0
    for batch in batches:
        for path, score, score_map in zip(batch.image_path, batch.pred_score, batch.anomaly_map, strict=True):
            assert float(score) == pytest.approx(expected[path].score, rel=1e-4)
            at_grid = torch.nn.functional.interpolate(
                torch.from_numpy(expected[path].score_map)[None, None], size=(64, 64), mode="bilinear"
            )
            torch.testing.assert_close(score_map.as_subclass(torch.Tensor), at_grid[0, 0], rtol=1e-4, atol=1e-3)
            seen += 1
    assert seen == 16


def test_verdicts_are_those_of_adtrs_thresholds(
    trained: tuple[Adtr, Engine], own: AnomalyDetector, dataset: Path
) -> None:
    model, runner = trained
    expected = {str(p.path): p for p in own.predict(images(dataset))}
    for batch in runner.predict(model, datamodule=discs(dataset)):
        for path, score, label in zip(batch.image_path, batch.pred_score, batch.pred_label, strict=True):
            raw, threshold = expected[path].score, own.thresholds_.image
            assert float(score) == pytest.approx(raw / (raw + threshold), rel=1e-4)
            assert bool(label) == expected[path].is_anomalous


def test_anomalibs_metrics_agree(trained: tuple[Adtr, Engine], own: AnomalyDetector, dataset: Path) -> None:
    model, runner = trained
    (result,) = runner.test(model, datamodule=discs(dataset), verbose=False)
    assert result["image_AUROC"] == pytest.approx(own.evaluate(dataset).image_auroc, abs=1e-6)


def test_validation_images_do_not_move_the_thresholds(trained: tuple[Adtr, Engine], dataset: Path) -> None:
    model, runner = trained
    before = float(model.post_processor.image_threshold)
    assert before == pytest.approx(model.to_detector().thresholds_.image)
    runner.validate(model, datamodule=discs(dataset))
    assert float(model.post_processor.image_threshold) == before


def test_a_checkpoint_brings_everything_back(trained: tuple[Adtr, Engine], dataset: Path, tmp_path: Path) -> None:
    model, runner = trained
    loaded = Adtr.load_from_checkpoint(runner.best_model_path)
    detector, other = model.to_detector(), loaded.to_detector()
    assert other.config == detector.config
    assert other.thresholds_ == detector.thresholds_
    assert float(loaded.post_processor.image_threshold) == float(model.post_processor.image_threshold)
    np.testing.assert_array_equal(other.score_samples(images(dataset)), detector.score_samples(images(dataset)))
    assert isinstance(loaded.pre_processor.transform, PillowResize)

    other.save(tmp_path / "model")
    again = AnomalyDetector.load(tmp_path / "model")
    assert again.thresholds_ == detector.thresholds_
    np.testing.assert_array_equal(again.score_samples(images(dataset)), detector.score_samples(images(dataset)))


def test_single_images_are_predicted(trained: tuple[Adtr, Engine], own: AnomalyDetector, dataset: Path) -> None:
    model, runner = trained
    (batch,) = runner.predict(model, dataset=PredictDataset(path=images(dataset)[0]))
    assert bool(batch.pred_label) == own.predict(images(dataset)[0])[0].is_anomalous


def test_folds_and_other_post_processors_work(dataset: Path, tmp_path: Path) -> None:
    model = Adtr(settings={**SMALL, "folds": 2, "max_steps": 4, "optimizer": "muon"}, post_processor=PostProcessor())
    engine(tmp_path).fit(model, datamodule=discs(dataset))
    assert model.to_detector().thresholds_.folds == 2
    assert not isinstance(model.post_processor, CalibratedPostProcessor)
    assert not torch.isnan(model.post_processor.image_max)


def test_images_of_several_sizes_are_resized_one_by_one(dataset: Path, own: AnomalyDetector, tmp_path: Path) -> None:
    """anomalib's batches would stretch the smaller images otherwise."""
    for i, path in enumerate(sorted((dataset / "train/good").iterdir())):
        target = tmp_path / "data" / path.relative_to(dataset)
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(path).resize((96 + 7 * (i % 3), 96)).save(target)
    for part in ("test", "ground_truth"):
        (tmp_path / "data" / part).symlink_to(dataset / part)
    model = Adtr(settings=SMALL)
    engine(tmp_path).fit(model, datamodule=discs(tmp_path / "data"))
    detector = AnomalyDetector(**SMALL, device="cpu").fit(tmp_path / "data")
    assert model.to_detector().metadata_["data"]["fingerprint"] == detector.metadata_["data"]["fingerprint"]
    assert model.to_detector().thresholds_.image == pytest.approx(detector.thresholds_.image, rel=1e-4)
    assert detector.thresholds_.image != own.thresholds_.image


@pytest.mark.parametrize("size", [(30, 50), (97, 41), (64, 64), (200, 333)])
def test_the_resize_gives_pillows_pixels(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    expected = np.asarray(Image.fromarray(pixels).resize((48, 64), Image.Resampling.BILINEAR)).astype(int)
    resized = PillowResize((64, 48))(torch.from_numpy(pixels).permute(2, 0, 1) / 255)
    got = (resized * 255).round().permute(1, 2, 0).numpy().astype(int)
    assert np.abs(got - expected).max() <= (1 if size[0] > size[1] else 0)  # see `adtr.deploy.graph.resize`


def test_another_pre_processor_is_noticed(dataset: Path, tmp_path: Path) -> None:
    from anomalib.models.components import AnomalibModule

    model = Adtr(settings=SMALL, pre_processor=AnomalibModule.configure_pre_processor((64, 64)))
    with pytest.raises(ConfigError, match=r"not in 0\.\.1"):
        engine(tmp_path).fit(model, datamodule=discs(dataset))
    model = Adtr(settings=SMALL, pre_processor=False)
    with pytest.raises(ConfigError, match="takes images of"):
        engine(tmp_path).fit(model, datamodule=discs(dataset))


def test_mistakes_are_one_line(trained: tuple[Adtr, Engine], dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(AdtrError, match="has learned already"):
        engine(tmp_path).fit(trained[0], datamodule=discs(dataset))
    with pytest.raises(AdtrError, match="has learned nothing yet"):
        engine(tmp_path).validate(Adtr(settings=SMALL), datamodule=discs(dataset))
    with pytest.raises(ConfigError, match="did you mean epochs"):
        Adtr(settings={"epoch": 3})
    with pytest.raises(AdtrError, match="has learned nothing yet"):
        Adtr(settings=SMALL).to_detector()


@pytest.mark.slow
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_anomalibs_exports_judge_alike(
    trained: tuple[Adtr, Engine], own: AnomalyDetector, dataset: Path, tmp_path: Path, form: str
) -> None:
    """From images of any size in 0..1, resized inside as adtr resizes them."""
    pytest.importorskip("onnxscript")
    pytest.importorskip(form)
    model, runner = trained
    file = runner.export(model, export_type=form, export_root=tmp_path)
    paths = images(dataset)
    batch = np.stack([np.asarray(Image.open(path)) for path in paths]).transpose(0, 3, 1, 2).astype(np.float32) / 255
    if form == "onnx":
        from onnxruntime import InferenceSession

        session = InferenceSession(file, providers=["CPUExecutionProvider"])
        outputs = dict(zip([o.name for o in session.get_outputs()], session.run(None, {"input": batch}), strict=True))
    else:
        import openvino

        options = {"INFERENCE_PRECISION_HINT": "f32"}
        compiled = openvino.Core().compile_model(file, "CPU", options)
        outputs = {output.get_any_name(): value for output, value in compiled(batch).items()}
    raw = np.array([p.score for p in own.predict(paths)])
    expected = raw / (raw + own.thresholds_.image)
    np.testing.assert_allclose(outputs["pred_score"].ravel(), expected, rtol=1e-3)
    np.testing.assert_array_equal(outputs["pred_label"].ravel(), raw > own.thresholds_.image)
    assert outputs["anomaly_map"].shape == (16, 1, 64, 64)


def test_anomalibs_torch_export_is_loaded_again(trained: tuple[Adtr, Engine], dataset: Path, tmp_path: Path) -> None:
    model, runner = trained
    file = runner.export(model, export_type="torch", export_root=tmp_path)
    loaded = torch.load(file, weights_only=False)["model"]  # anomalib's own form; written just now
    image = torch.from_numpy(np.asarray(Image.open(images(dataset)[0])).copy()).permute(2, 0, 1)[None] / 255
    with torch.inference_mode():
        assert float(loaded(image).pred_score) == float(model.eval()(image).pred_score)


def test_the_command_line_trains_and_tests(own: AnomalyDetector, dataset: Path, tmp_path: Path) -> None:
    settings = json.dumps(SMALL)
    arguments = [
        *("train", "--model", "adtr.integrations.anomalib.Adtr", "--model.settings", settings),
        *("--data", "Folder", "--data.name", "discs", "--data.root", dataset, "--data.normal_dir", "train/good"),
        *("--data.abnormal_dir", "test/dark", "--data.normal_test_dir", "test/good"),
        *("--data.mask_dir", "ground_truth/dark", "--data.num_workers", "0"),
        *("--trainer.accelerator", "cpu", "--default_root_dir", tmp_path),
    ]
    process = subprocess.run(
        [sys.executable, "-c", START, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert process.returncode == 0, process.stderr[-2000:]
    assert "image_AUROC" in process.stdout
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    detector = Adtr.load_from_checkpoint(checkpoint).to_detector()
    assert detector.thresholds_.image == pytest.approx(own.thresholds_.image, rel=1e-4)
    np.testing.assert_allclose(detector.score_samples(images(dataset)), own.score_samples(images(dataset)), rtol=1e-4)
