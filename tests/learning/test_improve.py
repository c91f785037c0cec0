"""Learning from anomalies: what is learned, what is held out, and what is said of it."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from adtr.calibration import Calibration
from adtr.data.anomalies import Anomalies, open_anomalies
from adtr.data.folder import content_hash
from adtr.data.images import read_image, resize
from adtr.detector import AnomalyDetector
from adtr.errors import AdtrWarning, ConfigError, DataError, ImageError, ModelError
from adtr.model.memory import nearest_distance
from adtr.progress import Silent
from adtr.store import FEATURES
from adtr.training import loop
from conftest import SMALL, good_image, write_dataset

FEW_STEPS = {"improve_epochs": 1}


def faint_image(rng: np.random.Generator, side: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """A good image with a patch in which the ground's ripples stand still: hard to see for who never saw it."""
    image, mask = good_image(rng, side), np.zeros((side, side), bool)
    top, left = rng.integers(0, side * 3 // 4, 2)
    mask[top : top + 14, left : left + 14] = True
    image[mask] = np.clip(image[mask] * 0.9 + 8 + rng.normal(0, 3, (int(mask.sum()), 3)), 0, 255).astype(np.uint8)
    return image, mask


def write_anomalies(folder: Path, count: int, *, masks: bool = True, seed: int = 5, kind: str = "faint") -> Path:
    rng = np.random.default_rng(seed)
    (folder / kind).mkdir(parents=True)
    (folder / "ground_truth" / kind).mkdir(parents=True)
    for i in range(count):
        image, mask = faint_image(rng)
        Image.fromarray(image).save(folder / kind / f"{i:03}.png")
        if masks:
            Image.fromarray(mask).save(folder / "ground_truth" / kind / f"{i:03}_mask.png")
    return folder


@pytest.fixture(scope="module")
def anomalies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_anomalies(tmp_path_factory.mktemp("anomalies") / "marked", 8)


@pytest.fixture(scope="module")
def improved(detector: AnomalyDetector, anomalies: Path) -> AnomalyDetector:
    return detector.improve(anomalies, improve_epochs=3)


def state(detector: AnomalyDetector) -> dict[str, torch.Tensor]:
    return detector.network_.reconstruction.state_dict()


def same(first: AnomalyDetector, second: AnomalyDetector) -> bool:
    return all(torch.equal(a, b) for a, b in zip(state(first).values(), state(second).values(), strict=True))


# What it learns.


def test_a_kind_of_defect_that_was_hard_to_see_is_seen_after_some_are_marked(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "discs", train=24, test=4)
    detector = AnomalyDetector(
        **{**SMALL, "levels": "2,3", "epochs": 15, "memory_size": 0, "mahalanobis_weight": 0}
    ).fit(data)
    marked = write_anomalies(tmp_path / "marked", 8)
    better = detector.improve(marked, anomaly_holdout=0, improve_epochs=40)
    rng = np.random.default_rng(77)
    unseen = [faint_image(rng)[0] for _ in range(20)]
    good = [good_image(rng) for _ in range(20)]

    def separation(fitted: AnomalyDetector) -> float:
        a, b = fitted.score_samples(unseen), fitted.score_samples(good)
        return float((a[:, None] < b[None]).mean())  # AUROC

    assert separation(detector) < 0.9
    assert separation(better) > separation(detector) + 0.05


@pytest.mark.parametrize(
    "what",
    [{"synthetic": ["confetti"]}, {"synthetic": ["scar", "blend"]}, {"external": "photos"}, {"labels": "image"}],
    ids=str,
)
def test_every_source_changes_the_network_and_leaves_the_old_one(
    detector: AnomalyDetector, anomalies: Path, what: dict[str, object]
) -> None:
    before = {name: value.clone() for name, value in state(detector).items()}
    rng = np.random.default_rng(0)
    if "external" in what:
        what = {"external": [rng.integers(0, 255, (40, 50, 3), np.uint8) for _ in range(3)]}
    better = detector.improve(anomalies if "labels" in what else None, **what, **FEW_STEPS)
    assert not same(detector, better)
    assert all(torch.equal(before[name], value) for name, value in state(detector).items())
    assert better.improvement_ is not None
    expected = {"synthetic": what.get("synthetic"), "external": ["external"], "labels": ["labelled"]}
    assert better.improvement_.sources == expected[next(iter(what))]
    assert better.improvement_.external == (3 if "external" in what else 0)
    assert better.thresholds_ != detector.thresholds_


def test_it_can_be_repeated_to_the_bit(detector: AnomalyDetector, anomalies: Path) -> None:
    runs = [detector.improve(anomalies, synthetic=["confetti"], seed=seed, **FEW_STEPS) for seed in (0, 0, 1)]
    assert same(runs[0], runs[1])
    assert runs[0].thresholds_ == runs[1].thresholds_
    assert not same(runs[0], runs[2])


def test_the_thresholds_come_from_the_good_images_of_the_fit_s_hold_out(
    detector: AnomalyDetector, improved: AnomalyDetector, dataset: Path
) -> None:
    held = set(detector.metadata_["data"]["held_out_hashes"])
    assert set(improved.metadata_["data"]["held_out_hashes"]) == held
    paths = [path for path in sorted((dataset / "train/good").iterdir()) if content_hash(path) in held]
    assert len(paths) == len(held) == 10
    predictions = improved.predict(paths)
    calibration = Calibration.of(np.array([p.score for p in predictions]), np.stack([p.score_map for p in predictions]))
    expected = calibration.thresholds(0.01)
    assert improved.thresholds_.image == pytest.approx(expected.image, rel=1e-3)
    assert improved.thresholds_.pixel == pytest.approx(expected.pixel, rel=1e-3)


def test_it_is_told_what_was_learned_and_held_out(improved: AnomalyDetector, anomalies: Path) -> None:
    report = improved.improvement_
    assert report is not None
    assert report.learned == {"faint": 6}
    assert report.with_mask == 6
    assert (report.before.good, report.before.anomalies) == (report.after.good, report.after.anomalies) == (10, 2)
    assert report.before.anomalies_by_type == {"faint": 2}
    assert len(set(report.hashes)) == 6
    assert set(report.hashes) < {content_hash(path) for path in (anomalies / "faint").iterdir()}
    assert improved.metadata_["improvements"] == [report.to_dict()]


def test_evaluation_leaves_out_the_anomalies_that_were_learned(
    detector: AnomalyDetector, improved: AnomalyDetector, anomalies: Path, dataset: Path, tmp_path: Path
) -> None:
    shutil.copytree(dataset / "test", tmp_path / "test")
    shutil.copytree(anomalies / "faint", tmp_path / "test/faint")
    assert len(detector.test_samples(tmp_path)) == 8 + 8 + 8
    left = improved.test_samples(tmp_path)
    assert sum(sample.defect_type == "faint" for sample in left) == 2
    assert len(left) == 8 + 8 + 2


def test_it_can_be_improved_again(improved: AnomalyDetector) -> None:
    again = improved.improve(synthetic=["scar"], **FEW_STEPS)
    assert [past["sources"] for past in again.metadata_["improvements"]] == [["labelled"], ["scar"]]


# Where good images come from.


def test_kept_features_give_the_same_model_without_the_images(dataset: Path, anomalies: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(dataset, tmp_path / "data"))
    detector = AnomalyDetector(**SMALL).fit(copied, keep_features=True)
    detector.save(tmp_path / "model")
    assert (tmp_path / "model" / FEATURES).is_file()
    from_images = AnomalyDetector(**SMALL).fit(copied).improve(anomalies, **FEW_STEPS)
    shutil.rmtree(copied)
    loaded = AnomalyDetector.load(tmp_path / "model")
    better = loaded.improve(anomalies, **FEW_STEPS)
    assert same(better, from_images)
    better.save(tmp_path / "better")  # and can be improved again
    again = AnomalyDetector.load(tmp_path / "better").improve(anomalies, **FEW_STEPS)
    assert len(again.metadata_["improvements"]) == 2
    with pytest.raises(DataError, match=r"are not at hand \(.*is not there any more\); give them with --good"):
        loaded.improve(synthetic=["confetti"], **FEW_STEPS)
    with pytest.raises(DataError, match="no such folder"):
        loaded.improve(anomalies, good=tmp_path / "nowhere")


@pytest.mark.parametrize("damage", ["flipped bit", "cut", "missing", "of other images"])
def test_damaged_features_are_named_and_computed_again(
    damage: str, dataset: Path, kept: Path, anomalies: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(kept, tmp_path / "model"))
    features = model / FEATURES
    data = bytearray(features.read_bytes())
    if damage == "flipped bit":
        data[-1000] ^= 4
        features.write_bytes(data)
    elif damage == "cut":
        features.write_bytes(data[:-100])
    elif damage == "missing":
        features.unlink()
    else:
        save_file({"features": load_file(features)["features"][1:]}, features)
    detector = AnomalyDetector.load(model)
    detector.predict(dataset / "test/good")  # needs none, and says nothing
    with pytest.warns(AdtrWarning, match=rf"{FEATURES}.*; the good images are read again where they are needed$"):
        better = detector.improve(anomalies, **FEW_STEPS)
    assert same(better, AnomalyDetector.load(kept).improve(anomalies, **FEW_STEPS))
    better.save(tmp_path / "better")
    assert (tmp_path / "better" / FEATURES).read_bytes() == (kept / FEATURES).read_bytes()


@pytest.fixture(scope="module")
def kept(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its features."""
    folder = tmp_path_factory.mktemp("kept") / "model"
    AnomalyDetector(**{**SMALL, "epochs": 1}).fit(dataset, keep_features=True).save(folder)
    return folder


def test_images_from_memory_are_remembered_by_the_detector_but_not_by_the_model(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    detector = AnomalyDetector(**{**SMALL, "epochs": 1}).fit([good_image(rng) for _ in range(14)])
    assert not same(detector.improve(synthetic=["scar"], **FEW_STEPS), detector)
    detector.save(tmp_path / "model")
    with pytest.raises(DataError, match=r"\(they came from memory\); give them with --good"):
        AnomalyDetector.load(tmp_path / "model").improve(synthetic=["scar"], **FEW_STEPS)


def test_new_good_images_are_dealt_out_and_old_ones_keep_their_side(detector: AnomalyDetector, dataset: Path) -> None:
    rng = np.random.default_rng(50)
    old = sorted((dataset / "train/good").iterdir())
    better = detector.improve(synthetic=["scar"], good=[*old, *(good_image(rng) for _ in range(30))], **FEW_STEPS)
    data = better.metadata_["data"]
    assert data["images"] == 54
    assert set(detector.metadata_["data"]["held_out_hashes"]) < set(data["held_out_hashes"])
    assert 11 <= data["held_out"] <= 10 + 15


def test_what_was_chosen_to_be_held_out_stays_so_and_new_images_are_not_dealt_out(tmp_path: Path) -> None:
    data = write_dataset(tmp_path / "discs", train=14, test=2, validation=4)
    fitted = AnomalyDetector(**{**SMALL, "epochs": 1}).fit(data, keep_features=True)
    chosen = fitted.metadata_["data"]["held_out_hashes"]
    for features in (fitted.features_, None):  # those kept, or those of the images, which are found again
        fitted.features_ = features
        better = fitted.improve(synthetic=["scar"], **FEW_STEPS)
        assert better.metadata_["data"]["held_out_hashes"] == chosen
        assert better.calibration_.images == 4
    rng = np.random.default_rng(50)
    more = [*fitted.good_sources(), *(good_image(rng) for _ in range(10))]
    better = fitted.improve(synthetic=["scar"], good=more, **FEW_STEPS)
    assert (better.metadata_["data"]["images"], better.metadata_["data"]["held_out_hashes"]) == (28, chosen)
    for i in range(3):
        Image.fromarray(good_image(rng)).save(data / f"validation/good/new-{i}.png")
        Image.fromarray(good_image(rng)).save(data / f"train/good/new-{i}.png")
    shutil.move(data / "validation/good/000.png", data / "train/good/was-held-out.png")
    better = fitted.improve(synthetic=["scar"], good=data, **FEW_STEPS)
    new = [content_hash(data / f"validation/good/new-{i}.png") for i in range(3)]
    assert sorted(better.metadata_["data"]["held_out_hashes"]) == sorted([*chosen, *new])
    shutil.rmtree(data / "validation")
    with pytest.raises(DataError, match=r"validation/good is not there any more\); give them with --good"):
        fitted.improve(synthetic=["scar"], **FEW_STEPS)


def test_what_was_learned_once_is_never_judged(detector: AnomalyDetector, dataset: Path, tmp_path: Path) -> None:
    """Also where `improve` was given other good images than `fit`, and again after it was saved."""
    folder = write_dataset(tmp_path / "other", train=14, test=3, seed=77)
    other = sorted((folder / "train/good").iterdir())
    for path in sorted((dataset / "train/good").iterdir())[:5]:
        shutil.copy(path, folder / "test/good" / f"old-{path.name}")
    better = detector.improve(synthetic=["scar"], good=other, **FEW_STEPS)
    assert better.evaluate(folder).images == 6
    better.improve(synthetic=["scar"], good=[*other, good_image(np.random.default_rng(9))], **FEW_STEPS).save(
        tmp_path / "model"
    )
    assert AnomalyDetector.load(tmp_path / "model").evaluate(folder).images == 6


def test_an_image_learned_as_good_that_is_marked_now_no_longer_counts_as_good(
    detector: AnomalyDetector, dataset: Path, tmp_path: Path
) -> None:
    folder = write_anomalies(tmp_path / "marked", 2)
    held_out = detector.metadata_["data"]["held_out_hashes"]
    learned = next(p for p in sorted((dataset / "train/good").iterdir()) if content_hash(p) not in held_out)
    shutil.copy(learned, folder / "faint/dark.png")
    better = detector.improve(folder, **FEW_STEPS)
    assert better.improvement_ is not None
    assert "1 image(s) learned as good are labelled as anomalies now" in " ".join(better.improvement_.notes)

    def remembered(fitted: AnomalyDetector) -> float:
        network = fitted.network_
        pixels = torch.from_numpy(resize(read_image(learned), network.config.embedding.image_size))
        features = network.standardize(network.embedding(pixels[None]))
        parts = network.memory.patches()["parts"]
        return float(nearest_distance(parts.describe(features), parts.patches, parts.lifted).mean())

    assert remembered(better) > 2 * remembered(detector)
    assert better.improvement_.with_mask == 2


# Requests that cannot be met.


def test_nothing_to_learn_from(detector: AnomalyDetector) -> None:
    with pytest.raises(ConfigError, match="nothing to learn from"):
        detector.improve()


@pytest.mark.parametrize(("name", "value"), [("grid_size", 4), ("levels", "1"), ("holdout", 0.5), ("width", 8)])
def test_what_shapes_the_network_cannot_change(detector: AnomalyDetector, name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is .* in this model and cannot change now"):
        detector.improve(synthetic=["scar"], **{name: value})


def test_unknown_kinds_and_labels(detector: AnomalyDetector, anomalies: Path) -> None:
    with pytest.raises(ConfigError, match="unknown synthetic kind 'confety'"):
        detector.improve(synthetic=["confety"])
    with pytest.raises(ConfigError, match="labels must be auto, pixel or image"):
        detector.improve(anomalies, labels="mask")  # type: ignore[arg-type]


def test_pixel_labels_ask_for_masks(detector: AnomalyDetector, tmp_path: Path) -> None:
    folder = write_anomalies(tmp_path / "unmarked", 2, masks=False)
    with pytest.raises(DataError, match=r"2 of 2 anomalies have no mask, the first is .*000.png"):
        detector.improve(folder, labels="pixel")
    better = detector.improve(folder, **FEW_STEPS)
    assert better.improvement_ is not None
    assert better.improvement_.with_mask == 0


def test_one_single_anomaly_is_learned_and_nothing_is_claimed_of_missed_ones(
    detector: AnomalyDetector, tmp_path: Path
) -> None:
    better = detector.improve(write_anomalies(tmp_path / "one", 1), **FEW_STEPS)
    assert better.improvement_ is not None
    assert better.improvement_.learned == {"faint": 1}
    assert better.improvement_.after.image_auroc is None
    assert "missed defects are not known" in "\n".join(better.improvement_.describe())


def test_masks_that_look_wrong_are_named(detector: AnomalyDetector, tmp_path: Path) -> None:
    folder = write_anomalies(tmp_path / "odd", 3)
    masks = folder / "ground_truth/faint"
    Image.fromarray(np.zeros((96, 96), bool)).save(masks / "000_mask.png")
    inverted = ~np.asarray(Image.open(masks / "001_mask.png"))
    Image.fromarray(inverted).save(masks / "001_mask.png")
    better = detector.improve(folder, **FEW_STEPS)
    assert better.improvement_ is not None
    notes = " ".join(better.improvement_.notes)
    assert "faint/000.png has an empty mask" in notes
    assert "faint/001.png marks 98 % of the image" in notes
    assert better.improvement_.with_mask == 2
    Image.fromarray(np.ones((50, 96), bool)).save(masks / "002_mask.png")
    with pytest.raises(ImageError, match=r"002_mask.png.*50 x 96"):
        detector.improve(folder, **FEW_STEPS)


def test_an_external_set_smaller_than_the_good_one_is_used_more_often(detector: AnomalyDetector) -> None:
    rng = np.random.default_rng(0)
    better = detector.improve(external=[rng.integers(0, 255, (20, 20, 3), np.uint8) for _ in range(3)], **FEW_STEPS)
    assert better.improvement_ is not None
    (note,) = better.improvement_.notes
    assert note == "the external data set has 3 images for 14 good ones; each is used more often"


def test_unreadable_anomalies_are_named_and_counted(detector: AnomalyDetector, tmp_path: Path) -> None:
    folder = write_anomalies(tmp_path / "damaged", 3)
    (folder / "faint/001.png").write_bytes(b"damaged")
    with pytest.raises(ImageError, match=r"001\.png"):
        detector.improve(folder, **FEW_STEPS)
    better = detector.improve(folder, on_error="skip", **FEW_STEPS)
    assert [image.path for image in better.skipped_] == [folder / "faint/001.png"]
    assert better.improvement_ is not None
    assert better.improvement_.learned == {"faint": 2}


def test_an_external_parquet_file(detector: AnomalyDetector, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    rng = np.random.default_rng(0)
    rows = []
    for _ in range(4):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (30, 30, 3), np.uint8)).save(buffer, "PNG")
        rows.append({"bytes": buffer.getvalue(), "path": None})
    parquet.write_table(pyarrow.table({"label": [0, 1, 2, 3], "img": rows}), tmp_path / "photos.parquet")
    better = detector.improve(external=tmp_path / "photos.parquet", **FEW_STEPS)
    assert better.improvement_ is not None
    assert better.improvement_.external == 4
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"cannot read .*text\.parquet"):
        detector.improve(external=tmp_path / "text.parquet")
    parquet.write_table(pyarrow.table({"label": [0, 1]}), tmp_path / "labels.parquet")
    with pytest.raises(DataError, match=r"labels\.parquet holds no images"):
        detector.improve(external=tmp_path / "labels.parquet")


# Resuming.


class Cut(Silent):
    """Ends the training after some steps, as a power failure would."""

    def __init__(self, steps: int) -> None:
        self.left, self.stage = steps, ""

    def start(self, description: str, *, total: int | None, done: int = 0) -> None:  # noqa: ARG002
        self.stage = description

    def advance(self, amount: int = 1, *, note: str = "") -> None:  # noqa: ARG002
        if self.stage == "training":
            self.left -= amount
            if self.left < 0:
                raise KeyboardInterrupt


def test_a_run_that_was_cut_resumes_to_the_same_model(
    detector: AnomalyDetector,
    improved: AnomalyDetector,
    anomalies: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1)
    with pytest.raises(KeyboardInterrupt):
        detector.improve(anomalies, improve_epochs=3, work_folder=tmp_path, progress=Cut(5))
    resumed = detector.improve(anomalies, improve_epochs=3, work_folder=tmp_path, resume=True)
    assert same(resumed, improved)
    assert resumed.thresholds_ == improved.thresholds_
    with pytest.raises(ModelError, match="other images or another configuration"):
        detector.improve(anomalies, improve_epochs=3, alpha=0.1, work_folder=tmp_path, resume=True)
    with pytest.raises(ModelError, match="other images or another configuration"):  # the same network, improved since
        improved.improve(anomalies, improve_epochs=3, work_folder=tmp_path, resume=True)
    drawn = Path(shutil.copytree(anomalies, tmp_path / "drawn"))
    mask = next((drawn / "ground_truth/faint").iterdir())
    for path in (drawn / "ground_truth/faint").iterdir():  # the same images, marked elsewhere
        Image.fromarray(np.asarray(Image.open(mask))[::-1]).save(path)
    with pytest.raises(ModelError, match="other images or another configuration"):
        detector.improve(drawn, improve_epochs=3, work_folder=tmp_path, resume=True)


def test_anomalies_that_were_opened_before_are_taken_as_they_are(detector: AnomalyDetector, anomalies: Path) -> None:
    opened = open_anomalies(anomalies)
    chosen = Anomalies(root=opened.root, samples=opened.samples[:2], good=[], notes=[])
    better = detector.improve(chosen, **FEW_STEPS)
    assert better.improvement_ is not None
    assert better.improvement_.learned == {"faint": 2}
