import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from adtr.calibration import ROUNDING, split_holdout
from adtr.data.folder import content_hash, open_dataset
from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError, ConfigError, DataError, ImageError, ModelError
from adtr.prediction import Prediction
from adtr.progress import Silent
from adtr.training import loop
from conftest import SMALL, good_image, write_dataset

FAST = {**SMALL, "epochs": 1}


def paths(dataset: Path) -> list[Path]:
    return [sample.path for sample in open_dataset(dataset).test]


def scores(predictions: list[Prediction]) -> list[float]:
    return [prediction.score for prediction in predictions]


def assert_same_verdicts(first: list[Prediction], second: list[Prediction], tolerance: float = 0) -> None:
    """The tolerance is relative to the scores: sums in another order differ in the last bits of a float32.

    Distances to the memory are small differences of large squares, so that those bits reach their fifth digit.
    """
    for a, b in zip(first, second, strict=True):
        assert a.score == pytest.approx(b.score, rel=tolerance, abs=0)
        assert a.path == b.path
        np.testing.assert_allclose(a.score_map, b.score_map, rtol=tolerance, atol=tolerance * b.score)


# What it learns.


def test_defects_score_above_good_images(detector: AnomalyDetector, dataset: Path) -> None:
    losses = detector.metadata_["training"]["losses"]
    assert losses[-1] < 0.95 * losses[0]
    assert detector.evaluate(dataset).image_auroc > 0.95  # 1.0 was reached when this was written


def test_defects_are_found_where_they_are(dataset: Path) -> None:
    """The fine levels localise even on these small pictures."""
    fitted = AnomalyDetector(**{**SMALL, "levels": "2,3", "epochs": 15}).fit(dataset)
    metrics = fitted.evaluate(dataset)
    assert metrics.image_auroc > 0.9  # 1.0 was reached when this was written
    assert metrics.pixel_auroc > 0.97  # 0.995
    assert metrics.pixel_ap > 0.6  # 0.78; a map without any meaning would have 0.017
    losses = fitted.metadata_["training"]["losses"]
    assert losses[-1] < 0.6 * losses[0]


def test_a_fit_can_be_repeated_to_the_bit(dataset: Path, detector: AnomalyDetector) -> None:
    again, other = AnomalyDetector(**SMALL).fit(dataset), AnomalyDetector(**SMALL, seed=1).fit(dataset)
    assert again.thresholds_ == detector.thresholds_
    assert again.metadata_["training"]["losses"] == detector.metadata_["training"]["losses"]
    for (name, a), b in zip(again.network_.state_dict().items(), detector.network_.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert other.thresholds_ != detector.thresholds_


class Cut(Silent):
    """Ends the training after some steps, as a power failure would."""

    def __init__(self, steps: int) -> None:
        self.left = steps
        self.stage = ""

    def start(self, description: str, *, total: int | None, done: int = 0) -> None:  # noqa: ARG002
        self.stage = description

    def advance(self, amount: int = 1, *, note: str = "") -> None:  # noqa: ARG002
        if self.stage == "training":
            self.left -= amount
            if self.left < 0:
                raise KeyboardInterrupt


def test_a_fit_that_was_cut_resumes_to_the_same_model(
    dataset: Path, detector: AnomalyDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    cut = AnomalyDetector(**SMALL)
    with pytest.raises(KeyboardInterrupt):
        cut.fit(dataset, work_folder=tmp_path, progress=Cut(5))
    assert not cut.is_fitted
    resumed = AnomalyDetector(**SMALL).fit(dataset, work_folder=tmp_path, resume=True)
    assert resumed.metadata_["training"]["resumed_at"] == 5
    assert resumed.thresholds_ == detector.thresholds_
    for a, b in zip(resumed.network_.state_dict().values(), detector.network_.state_dict().values(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("change", ["images", "held out", "configuration", "backbone"])
def test_a_checkpoint_of_other_circumstances_is_refused(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    work = tmp_path / "work"
    held_out = sorted((dataset / "test/good").iterdir()) if change == "held out" else None
    AnomalyDetector(**FAST).fit(dataset, held_out=held_out, work_folder=work)
    other, images = AnomalyDetector(**FAST), dataset
    if held_out is not None:
        held_out = held_out[1:]
    elif change == "images":
        images = shutil.copytree(dataset, tmp_path / "copy")
        Image.fromarray(good_image(np.random.default_rng(99))).save(images / "train/good/003.png")
    elif change == "configuration":
        other.set_params(seed=5)
    else:
        other.set_params(backbone_weights="random")
    with pytest.raises(ModelError, match="other images or another configuration"):
        other.fit(images, held_out=held_out, work_folder=work, resume=True)


# Thresholds.


def test_thresholds_come_from_held_out_good_images_and_nothing_else(detector: AnomalyDetector, dataset: Path) -> None:
    good = [sample.path for sample in open_dataset(dataset).train]
    training, held_out = split_holdout(len(good), detector.config.calibration, detector.config.training.seed)
    data = detector.metadata_["data"]
    assert (data["images"], data["held_out"], detector.metadata_["training"]["images"]) == (24, 10, 14)
    assert data["image_hashes"] == [content_hash(path) for path in good]
    assert len(training) + len(held_out) == len(good)
    predictions = detector.predict([good[i] for i in held_out])
    highest = max(scores(predictions)), max(p.score_map.max() for p in predictions)
    assert detector.thresholds_.image == pytest.approx(highest[0] * ROUNDING, rel=1e-4)
    assert detector.thresholds_.pixel == pytest.approx(highest[1] * ROUNDING, rel=1e-4)
    assert not any(prediction.is_anomalous for prediction in predictions)
    assert (detector.thresholds_.images, detector.thresholds_.false_alarm_rate) == (10, 0.01)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with images of its own for the thresholds."""
    return write_dataset(tmp_path_factory.mktemp("chosen") / "discs", train=14, test=4, validation=5, seed=7)


@pytest.fixture(scope="module")
def by_choice(chosen: Path) -> AnomalyDetector:
    return AnomalyDetector(**FAST).fit(chosen)


def test_thresholds_come_from_the_images_that_were_chosen_and_all_others_train(
    by_choice: AnomalyDetector, chosen: Path
) -> None:
    training, held_out = (sorted((chosen / part / "good").iterdir()) for part in ("train", "validation"))
    data = by_choice.metadata_["data"]
    assert (data["images"], data["held_out"], by_choice.metadata_["training"]["images"]) == (19, 5, 14)
    assert data["held_out_hashes"] == [content_hash(path) for path in held_out]
    assert data["image_hashes"] == [content_hash(path) for path in [*training, *held_out]]
    predictions = by_choice.predict(held_out)
    maxima = [prediction.score_map.max() for prediction in predictions]
    calibration = by_choice.calibration_
    for kept, seen in ((calibration.image_scores, scores(predictions)), (calibration.pixel_maxima, maxima)):
        assert kept == pytest.approx(sorted(np.array(seen) * ROUNDING), rel=1e-4)
    pixels = np.stack([np.asarray(Image.open(p).resize((64, 64), Image.Resampling.BILINEAR)) for p in training])
    features = by_choice.network_.embedding(torch.from_numpy(pixels)).double().flatten(0, 1)
    torch.testing.assert_close(by_choice.network_.feature_mean, features.mean(dim=0).float(), rtol=1e-3, atol=1e-4)


def test_the_chosen_images_set_the_thresholds_and_nothing_else(
    by_choice: AnomalyDetector, chosen: Path, dataset: Path
) -> None:
    training, others = chosen / "train/good", sorted((dataset / "train/good").iterdir())
    in_memory = AnomalyDetector(**FAST).fit(training, held_out=[np.asarray(Image.open(path)) for path in others])
    assert in_memory.calibration_.images == 24
    assert in_memory.thresholds_ != by_choice.thresholds_
    for a, b in zip(in_memory.network_.state_dict().values(), by_choice.network_.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    given = AnomalyDetector(**FAST).fit(chosen, held_out=dataset)  # wins over validation/good
    assert given.metadata_["data"]["held_out_hashes"] == [content_hash(path) for path in others]
    assert given.thresholds_.image == pytest.approx(in_memory.thresholds_.image, rel=1e-4)


def test_the_chosen_images_are_found_again_and_not_evaluated_on(
    by_choice: AnomalyDetector, chosen: Path, dataset: Path, tmp_path: Path
) -> None:
    by_choice.save(tmp_path / "model")
    assert list(AnomalyDetector.load(tmp_path / "model").good_sources()) == sorted(
        [*(chosen / "train/good").iterdir(), *(chosen / "validation/good").iterdir()]
    )
    data = Path(shutil.copytree(chosen, tmp_path / "data"))
    shutil.copy(data / "validation/good/002.png", data / "test/good/new.png")
    assert by_choice.evaluate(data).images == 8
    elsewhere = AnomalyDetector(**FAST).fit(data, held_out=dataset)
    elsewhere.save(tmp_path / "model")
    found = list(AnomalyDetector.load(tmp_path / "model").good_sources())
    assert found == sorted((data / "train/good").iterdir()) + sorted((dataset / "train/good").iterdir())
    assert elsewhere.evaluate(data).images == 9  # its validation images are strangers to this one


def test_an_image_that_trains_and_is_held_out_is_named(chosen: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(chosen, tmp_path / "data"))
    for i in (3, 4):
        shutil.copy(data / f"train/good/00{i}.png", data / f"validation/good/{i}.png")
    expected = rf"^2 of 7 held-out images are trained on too, such as {data}/validation/good/3\.png; leave them out"
    with pytest.raises(DataError, match=expected):
        AnomalyDetector(**FAST).fit(data)
    images = [np.asarray(Image.open(path)) for path in sorted((data / "train/good").iterdir())]
    with pytest.raises(DataError, match=r"^1 of 1 held-out images are trained on too, such as one that came from mem"):
        AnomalyDetector(**FAST).fit(images, held_out=[images[5]])


def test_folds_and_a_choice_exclude_each_other(chosen: Path, dataset: Path) -> None:
    with pytest.raises(ConfigError, match=r"^3 folds hold nothing out, but 5 images are given"):
        AnomalyDetector(**FAST, folds=3).fit(chosen)
    with pytest.raises(ConfigError, match=r"^3 folds hold nothing out, but 24 images are given"):
        AnomalyDetector(**FAST, folds=3).fit(chosen / "train/good", held_out=dataset)


def test_chosen_images_that_cannot_be_read_are_skipped(chosen: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(chosen, tmp_path / "data"))
    for name in ("train/good/002.png", "validation/good/000.png"):
        (data / name).write_bytes(b"not a picture")
    detector = AnomalyDetector(**FAST).fit(data, on_error="skip")
    left = sorted((data / "validation/good").iterdir())[1:]
    assert detector.metadata_["data"]["held_out_hashes"] == [content_hash(path) for path in left]
    assert (detector.metadata_["training"]["images"], len(detector.skipped_)) == (13, 2)
    for path in left:
        path.write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"^13 good images to train on and 0 held-out ones are too few"):
        AnomalyDetector(**FAST).fit(data, on_error="skip")


def test_labels_are_those_of_the_images_and_not_of_the_chosen_ones(chosen: Path) -> None:
    images = [np.asarray(Image.open(path)) for path in sorted((chosen / "train/good").iterdir())]
    detector = AnomalyDetector(**FAST).fit(images, [1] * 13 + [-1], held_out=chosen / "validation")
    assert (detector.metadata_["training"]["images"], detector.calibration_.images) == (13, 5)


def test_the_test_images_have_no_influence_on_the_model(
    detector: AnomalyDetector, dataset: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    for path in (copy / "test").rglob("*.png"):
        Image.new("RGB", (96, 96), "red").save(path)
    fitted = AnomalyDetector(**SMALL).fit(copy)
    assert fitted.thresholds_ == detector.thresholds_
    assert torch.equal(fitted.network_.feature_mean, detector.network_.feature_mean)


def test_features_are_standardised_over_the_training_images_alone(detector: AnomalyDetector, dataset: Path) -> None:
    good = [sample.path for sample in open_dataset(dataset).train]
    training, _ = split_holdout(len(good), detector.config.calibration, detector.config.training.seed)
    pixels = np.stack([np.asarray(Image.open(good[i]).resize((64, 64), Image.Resampling.BILINEAR)) for i in training])
    features = detector.network_.embedding(torch.from_numpy(pixels)).double().flatten(0, 1)
    torch.testing.assert_close(detector.network_.feature_mean, features.mean(dim=0).float(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        detector.network_.feature_std, features.std(dim=0, correction=0).float(), rtol=1e-3, atol=1e-4
    )


def test_without_standardisation_features_stay_the_backbones_own(dataset: Path) -> None:
    network = AnomalyDetector(**FAST, standardize=False).fit(dataset).network_
    assert (network.feature_mean == 0).all()
    assert (network.feature_std == 1).all()


# Independence of the batch and of the order.


@pytest.mark.parametrize("batch_size", [1, 2, 5, 64])
def test_verdicts_do_not_depend_on_the_batch_size(detector: AnomalyDetector, dataset: Path, batch_size: int) -> None:
    assert_same_verdicts(
        detector.predict(paths(dataset), batch_size=batch_size), detector.predict(paths(dataset)), tolerance=1e-4
    )


def test_verdicts_do_not_depend_on_the_neighbours(detector: AnomalyDetector, dataset: Path) -> None:
    first, *others = paths(dataset)
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    alone = detector.predict(first)[0]
    for neighbours in (others, [noise] * 3, [noise * 0]):
        np.testing.assert_allclose(
            detector.predict([first, *neighbours])[0].score_map, alone.score_map, rtol=1e-4, atol=1e-4 * alone.score
        )


def test_images_in_another_order_give_verdicts_in_that_order(detector: AnomalyDetector, dataset: Path) -> None:
    images = paths(dataset)
    order = np.random.default_rng(0).permutation(len(images))
    predictions = detector.predict(images)
    assert_same_verdicts(detector.predict([images[i] for i in order]), [predictions[i] for i in order], tolerance=1e-4)
    assert [p.path for p in predictions] == images


@pytest.mark.parametrize("batch_size", [0, -3])
def test_a_batch_of_nothing_is_refused(detector: AnomalyDetector, dataset: Path, batch_size: int) -> None:
    with pytest.raises(ConfigError, match=f"^batch_size must be at least 1, not {batch_size}$"):
        detector.predict(dataset / "test/good", batch_size=batch_size)


# What it accepts.


def test_every_form_of_an_image_gives_the_same_verdict(detector: AnomalyDetector, dataset: Path) -> None:
    path = paths(dataset)[0]
    array = np.asarray(Image.open(path))
    expected = detector.predict(path)
    assert len(expected) == 1
    forms = {
        "str": str(path),
        "list": [path],
        "tuple": (str(path),),
        "generator": (p for p in [path]),
        "PIL image": Image.open(path),
        "array": array,
        "4-d array": array[None],
        "tensor": torch.from_numpy(array.copy()),
        "tensor, channels first": torch.from_numpy(array.copy()).permute(2, 0, 1),
        "4-d tensor": torch.from_numpy(array.copy())[None],
        "float tensor": torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255,
    }
    for name, form in forms.items():
        (prediction,) = detector.predict(form)
        assert prediction.score == expected[0].score, name
        assert prediction.size == (96, 96), name
        np.testing.assert_array_equal(prediction.score_map, expected[0].score_map)


def test_a_folder_is_searched_through(detector: AnomalyDetector, dataset: Path) -> None:
    predictions = detector.predict(dataset / "test")
    assert [p.path for p in predictions] == sorted((dataset / "test").rglob("*.png"))
    assert len(predictions) == 16


def test_images_keep_their_own_size(detector: AnomalyDetector) -> None:
    images = [np.full((h, w, 3), 128, np.uint8) for h, w in [(40, 70), (200, 30), (64, 64)]]
    for image, prediction in zip(images, detector.predict(images), strict=True):
        assert prediction.size == image.shape[:2] == prediction.anomaly_map.shape == prediction.mask.shape
        assert prediction.score_map.shape == (16, 16)  # of the details
        assert prediction.path is None


def test_nothing_to_predict_is_one_line(detector: AnomalyDetector, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^no images were given$"):
        detector.predict([])
    with pytest.raises(DataError, match=r"^no images in .*$"):
        detector.predict(tmp_path)
    with pytest.raises(ImageError, match=r"^cannot read image .*none\.png.*$"):
        detector.predict(tmp_path / "none.png")
    with pytest.raises(ImageError):
        detector.predict(3)


def test_a_stream_is_lazy_and_bounded(detector: AnomalyDetector) -> None:
    taken = []

    def endless() -> object:
        while True:
            taken.append(1)
            yield np.zeros((20, 20, 3), np.uint8)

    stream = detector.stream(endless(), batch_size=2, keep_images=True)
    prediction, loaded = next(stream)
    stream.close()
    assert len(taken) < 20
    assert prediction.size == loaded.image.size == (20, 20)


def test_learning_from_arrays(dataset: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = [good_image(rng) for _ in range(24)]
    from_list = AnomalyDetector(**FAST).fit(arrays)
    from_stack = AnomalyDetector(**FAST).fit(np.stack(arrays), None)
    from_folder = AnomalyDetector(**FAST).fit(dataset)  # the same images, as files
    assert from_list.thresholds_ == from_stack.thresholds_ == from_folder.thresholds_
    assert from_list.metadata_["data"]["folder"] is None
    assert from_list.metadata_["data"]["images"] == 24
    pixels = np.asarray(Image.fromarray(arrays[0]).resize((64, 64), Image.Resampling.BILINEAR))
    assert from_list.metadata_["data"]["image_hashes"][0] == hashlib.sha256(pixels.tobytes()).hexdigest()[:16]


def test_learning_from_paths_and_from_a_data_set(dataset: Path, detector: AnomalyDetector) -> None:
    good = sorted((dataset / "train/good").iterdir())
    for images in (good, open_dataset(dataset), dataset / "train/good", str(dataset)):
        assert (
            AnomalyDetector(**SMALL, max_steps=1).fit(images).metadata_["data"]["fingerprint"]
            == (detector.metadata_["data"]["fingerprint"])
        )


def test_too_few_images_fail_before_any_work(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adtr.learning.learned.embed_images", lambda *_, **__: pytest.fail("this would be work"))
    good = sorted((dataset / "train/good").iterdir())
    with pytest.raises(DataError, match="11 good images are too few"):
        AnomalyDetector(**FAST).fit(good[:11])
    with pytest.raises(DataError, match="no images were given"):
        AnomalyDetector(**FAST).fit([])


def test_a_folder_without_good_images_is_one_line(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "test", tmp_path / "only" / "test")
    with pytest.raises(DataError, match=r"^no good images to learn from in .*$"):
        AnomalyDetector(**FAST).fit(tmp_path / "only")
    with pytest.raises(DataError, match=r"^no such folder: .*$"):
        AnomalyDetector(**FAST).fit(tmp_path / "none")


# Images that cannot be read.


@pytest.fixture
def spoiled(dataset: Path, tmp_path: Path) -> Path:
    copy = shutil.copytree(dataset, tmp_path / "spoiled")
    (copy / "train/good/005.png").write_bytes(b"not a picture")
    (copy / "test/good/002.png").write_bytes(b"")
    return copy


def test_an_unreadable_image_stops_the_fit_by_name(spoiled: Path) -> None:
    with pytest.raises(ImageError, match=r"^cannot read image .*train/good/005\.png: .*$"):
        AnomalyDetector(**FAST).fit(spoiled)


def test_unreadable_images_are_skipped_by_name(spoiled: Path) -> None:
    fitted = AnomalyDetector(**FAST).fit(spoiled, on_error="skip")
    assert [image.path for image in fitted.skipped_] == [spoiled / "train/good/005.png"]
    assert "not an image" in fitted.skipped_[0].reason
    data = fitted.metadata_["data"]
    assert (data["images"], data["skipped"], len(data["image_hashes"])) == (23, 1, 23)

    with pytest.raises(ImageError, match=r"test/good/002\.png"):
        fitted.predict(spoiled / "test")
    predictions = fitted.predict(spoiled / "test", on_error="skip")
    assert len(predictions) == 15
    assert [image.path for image in fitted.skipped_] == [spoiled / "test/good/002.png"]

    metrics = fitted.evaluate(spoiled, on_error="skip")
    assert (metrics.images, metrics.anomalous) == (15, 8)
    items = list(fitted.evaluate_each(spoiled, on_error="skip"))
    assert all(item.sample.path == item.prediction.path for item in items)
    fitted.predict(spoiled / "test/dark")
    assert fitted.skipped_ == []


def test_a_folder_of_unreadable_images_is_one_line(tmp_path: Path) -> None:
    for i in range(15):
        (tmp_path / f"{i}.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"^none of the images could be read$"):
        AnomalyDetector(**FAST).fit(tmp_path, on_error="skip")


# Evaluating.


def test_images_that_it_learned_from_are_left_out(detector: AnomalyDetector, dataset: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(dataset, tmp_path / "copy")
    for i in range(5):
        shutil.copy(copy / f"train/good/{i:03}.png", copy / f"test/good/learned{i}.png")
    names = {sample.path.name for sample in detector.test_samples(copy)}
    assert not any(name.startswith("learned") for name in names)
    assert detector.evaluate(copy) == detector.evaluate(dataset)


def test_a_good_folder_is_evaluated_on_what_was_reserved(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "train/good", tmp_path / "good")
    shutil.copytree(dataset / "test/dark", tmp_path / "dark")
    split = open_dataset(tmp_path)
    fitted = AnomalyDetector(**FAST).fit(tmp_path)
    assert fitted.metadata_["data"]["images"] == len(split.train) == 20
    assert fitted.test_samples(tmp_path) == split.test


def test_a_test_set_of_learned_images_only_is_one_line(
    detector: AnomalyDetector, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset / "train/good", tmp_path / "test/good")
    with pytest.raises(DataError, match=r"^no test images in .*$"):
        detector.evaluate(tmp_path)


def test_evaluated_images_come_with_their_truth(detector: AnomalyDetector, dataset: Path) -> None:
    items = list(detector.evaluate_each(dataset, keep_images=True))
    assert len(items) == 16
    for item in items:
        assert item.image.size == (96, 96)
        truth = item.truth()
        assert truth.shape == (96, 96)
        assert truth.any() == item.sample.is_anomalous
    assert all(item.image is None for item in detector.evaluate_each(dataset))


def test_a_defect_without_mask_has_no_truth(detector: AnomalyDetector, dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset / "test", tmp_path / "test")
    for item in detector.evaluate_each(tmp_path):
        assert (item.truth() is None) == item.sample.is_anomalous
    metrics = detector.evaluate(tmp_path)
    assert metrics.image_auroc == detector.evaluate(dataset).image_auroc
    assert metrics.pixel_auroc is None


# Scikit-learn's habits.


def test_scores_have_scikit_learns_signs(detector: AnomalyDetector, dataset: Path) -> None:
    images = [*paths(dataset), *sorted((dataset / "train/good").iterdir())]
    predictions = detector.predict(images)
    samples, decisions = detector.score_samples(images), detector.decision_function(images)
    assert samples.shape == decisions.shape == (len(images),)
    assert samples.dtype == decisions.dtype == np.float64
    np.testing.assert_array_equal(samples, [-p.score for p in predictions])
    np.testing.assert_array_equal(decisions < 0, [p.is_anomalous for p in predictions])
    assert 0 < (decisions < 0).sum() < len(images)


def test_a_score_at_the_threshold_is_good(detector: AnomalyDetector, dataset: Path) -> None:
    other = AnomalyDetector.from_config(detector.config)
    other.network_, other.metadata_, other.calibration_ = detector.network_, detector.metadata_, detector.calibration_
    other.fitted_config_ = detector.config
    path = paths(dataset)[0]
    score = detector.predict(path)[0].score
    other.thresholds_ = type(detector.thresholds_)(
        **{**vars(detector.thresholds_), "image": score, "pixel": detector.predict(path)[0].anomaly_map.max()}
    )
    (prediction,) = other.predict(path)
    assert not prediction.is_anomalous
    assert not prediction.mask.any()
    assert other.decision_function(path)[0] == 0


def test_parameters_go_in_and_come_out() -> None:
    detector = AnomalyDetector("paper-mvtec", device="cpu", epochs=3, image_size="64x96")
    params = detector.get_params()
    assert (params["preset"], params["device"], params["backbone_weights"]) == ("paper-mvtec", "cpu", None)
    assert (params["epochs"], params["batch_size"], params["image_size"]) == (3, 16, "64x96")
    assert AnomalyDetector(**params).config == detector.config
    assert detector.config.embedding.image_size == (64, 96)


def test_set_params_changes_what_it_names() -> None:
    detector = AnomalyDetector("paper-mvtec", epochs=3)
    assert detector.set_params(batch_size=4, device="cpu") is detector
    assert (detector.config.training.batch_size, detector.config.training.epochs) == (4, 3)
    assert detector.device == "cpu"
    detector.set_params(preset="quick")
    assert detector.config.preset == "quick"
    assert (detector.config.training.batch_size, detector.config.training.epochs) == (4, 3)
    before = detector.get_params()
    with pytest.raises(ConfigError, match="did you mean epochs"):
        detector.set_params(epoch=9, batch_size=5)
    with pytest.raises(ConfigError, match="unknown preset"):
        detector.set_params(preset="none", device="mps")
    assert detector.get_params() == before


def test_scikit_learn_can_clone_it(detector: AnomalyDetector) -> None:
    fresh = AnomalyDetector("paper-mvtec", image_size=(64, 96), levels="2,3", backbone_weights="random")
    for original in (fresh, detector):
        copy = clone(original)
        assert copy is not original
        assert copy.config == original.config
        assert copy.get_params() == original.get_params()
        assert not copy.is_fitted


def test_a_loaded_detector_can_be_cloned_and_fitted(model: Path, dataset: Path) -> None:
    copy = clone(AnomalyDetector.load(model)).set_params(epochs=1)
    assert copy.config.reconstruction.width == 32
    assert copy.fit(dataset).is_fitted


def test_parameters_set_after_fitting_wait_for_the_next_fit(model: Path, dataset: Path) -> None:
    loaded, path = AnomalyDetector.load(model), paths(dataset)[0]
    before = loaded.predict(path)
    loaded.set_params(image_size=128)
    assert_same_verdicts(loaded.predict(path), before)


def test_other_rates_need_no_other_training(model: Path, dataset: Path, tmp_path: Path) -> None:
    loaded = AnomalyDetector.load(model)
    before = loaded.predict(paths(dataset))
    thresholds = loaded.set_rates(0.3, unsure_rate=0.6)
    after = loaded.predict(paths(dataset))
    assert thresholds == loaded.thresholds_ == loaded.calibration_.thresholds(0.3, 0.6)
    assert [p.p_value for p in after] == [p.p_value for p in before]
    assert all((p.verdict == "good") == (p.p_value > 0.6) for p in after)
    loaded.save(tmp_path / "other")
    assert AnomalyDetector.load(tmp_path / "other").thresholds_ == thresholds
    with pytest.raises(ConfigError, match="unsure_rate"):
        loaded.set_rates(unsure_rate=0.1)
    assert loaded.thresholds_ == thresholds


def test_folds_let_every_good_image_serve_both(dataset: Path) -> None:
    fitted = AnomalyDetector(**SMALL, folds=3).fit(dataset)
    assert fitted.metadata_["training"]["images"] == fitted.thresholds_.images == 24
    assert (fitted.metadata_["data"]["held_out"], fitted.thresholds_.folds) == (0, 3)
    good = [sample.path for sample in open_dataset(dataset).train]
    own = np.sort(scores(fitted.predict(good)))
    assert np.median(fitted.calibration_.image_scores) > np.median(own)  # none vouches for itself
    assert fitted.evaluate(dataset).image_auroc > 0.9


def test_bad_parameters_fail_at_once() -> None:
    with pytest.raises(ConfigError, match="did you mean epochs"):
        AnomalyDetector(epoch=3)
    with pytest.raises(ConfigError, match="unknown preset 'fast'"):
        AnomalyDetector("fast")
    with pytest.raises(ConfigError, match="unknown device 'gpu'"):
        AnomalyDetector(device="gpu", **FAST).fit([np.zeros((8, 8, 3), np.uint8)] * 12)


def test_before_fitting_there_is_one_line(dataset: Path, tmp_path: Path) -> None:
    detector = AnomalyDetector()
    assert not detector.is_fitted
    for call in (
        lambda: detector.predict(dataset),
        lambda: detector.score_samples(dataset),
        lambda: detector.decision_function(dataset),
        lambda: detector.evaluate(dataset),
        lambda: detector.test_samples(dataset),
        lambda: detector.save(tmp_path / "model"),
    ):
        with pytest.raises(AdtrError, match=r"^this detector has learned nothing yet; call fit\(\), or .*$"):
            call()


def test_its_repr_says_what_it_is(detector: AnomalyDetector) -> None:
    assert repr(detector) == "AnomalyDetector(preset='quick', backbone='tf_efficientnet_lite2', fitted)"
    assert repr(AnomalyDetector()).endswith("not fitted)")


def test_what_is_remembered_is_json(detector: AnomalyDetector) -> None:
    remembered = json.loads(json.dumps(detector.metadata_))
    assert remembered == detector.metadata_
    assert set(remembered["versions"]) == {"torch", "timm", "numpy", "pillow"}


def test_bf16_training_gives_a_working_detector(dataset: Path) -> None:
    fitted = AnomalyDetector(**{**SMALL, "levels": "2,3", "epochs": 15, "precision": "bf16"}).fit(dataset)
    assert fitted.metadata_["training"]["precision"] == "bf16"
    metrics = fitted.evaluate(dataset)
    assert metrics.image_auroc > 0.9
    assert metrics.pixel_auroc > 0.97


@pytest.mark.parametrize("backbone", ["tf_efficientnet_lite0", "tf_efficientnet_lite1"])
def test_the_smaller_embedded_backbones_work_too(dataset: Path, backbone: str) -> None:
    fitted = AnomalyDetector(**{**SMALL, "levels": "2,3", "epochs": 15}, backbone=backbone).fit(dataset)
    assert fitted.evaluate(dataset).pixel_auroc > 0.95
