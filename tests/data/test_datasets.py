import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from adtr.data.datasets import DatasetImages, good_images, is_dataset
from adtr.data.folder import Sample, open_dataset
from adtr.detector import AnomalyDetector
from adtr.errors import DataError, ImageError
from conftest import SMALL

FAST = {**SMALL, "max_steps": 2}


def table(samples: list[Sample], *, embed: bool = True, masks: bool = True) -> datasets.Dataset:
    """The samples of a folder as users of the hub have them; files as bytes, or as paths."""

    def encoded(path: Path | None) -> dict[str, Any] | None:
        return path and ({"bytes": path.read_bytes(), "path": None} if embed else {"bytes": None, "path": str(path)})

    names = ["dark", "good"]
    columns: dict[str, list[Any]] = {
        "image": [encoded(sample.path) for sample in samples],
        "label": [names.index(sample.defect_type) for sample in samples],
        "line": list(range(len(samples))),
    }
    features: dict[str, Any] = {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=names),
        "line": datasets.Value("int64"),
    }
    if masks:
        columns["mask"] = [encoded(sample.mask) for sample in samples]
        features["mask"] = datasets.Image()
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


@pytest.fixture(scope="module")
def splits(dataset: Path) -> datasets.DatasetDict:
    folder = open_dataset(dataset)
    return datasets.DatasetDict({"train": table(folder.train), "test": table(folder.test)})


def scores(detector: AnomalyDetector, images: object) -> list[float]:
    return [prediction.score for prediction in detector.predict(images)]


@pytest.mark.parametrize("embed", [True, False])
def test_a_table_is_predicted_as_the_files_are(detector: AnomalyDetector, dataset: Path, embed: bool) -> None:
    samples = open_dataset(dataset).test
    rows = table(samples, embed=embed)
    expected = scores(detector, [sample.path for sample in samples])
    assert scores(detector, rows) == expected
    assert scores(detector, rows.with_format("numpy")) == expected
    assert scores(detector, rows["image"]) == pytest.approx(expected, rel=1e-6)  # pictures that `datasets` decoded


def test_a_table_is_learned_from_as_the_files_are(splits: datasets.DatasetDict, dataset: Path) -> None:
    expected = AnomalyDetector(**FAST).fit(dataset)
    for form in (splits, splits["train"], splits["train"].remove_columns("label")):
        fitted = AnomalyDetector(**FAST).fit(form)
        assert fitted.metadata_["data"]["fingerprint"] == expected.metadata_["data"]["fingerprint"]
        assert fitted.thresholds_ == expected.thresholds_


def test_only_good_rows_are_learned_from(splits: datasets.DatasetDict) -> None:
    mixed = datasets.concatenate_datasets([splits["train"], splits["test"]])
    assert len(mixed) == 40
    fitted = AnomalyDetector(**FAST).fit(mixed)
    assert fitted.metadata_["data"]["images"] == 32  # 24 and the 8 good ones of the test
    with pytest.raises(DataError, match="no image of the data set is labelled good"):
        good_images(mixed.filter(lambda label: label == mixed.features["label"].str2int("dark"), input_columns="label"))


def test_a_table_is_evaluated_as_the_folder_is(
    detector: AnomalyDetector, splits: datasets.DatasetDict, dataset: Path
) -> None:
    expected = detector.evaluate(dataset)
    assert detector.evaluate(splits) == detector.evaluate(splits["test"]) == expected
    everything = detector.evaluate(datasets.concatenate_datasets([splits["train"], splits["test"]]))
    assert (everything.images, everything.anomalous) == (16, 8)  # what was learned does not count
    assert everything.pixel_auroc == pytest.approx(expected.pixel_auroc, abs=1e-4)


def test_without_masks_pixels_are_not_judged(detector: AnomalyDetector, dataset: Path) -> None:
    metrics = detector.evaluate(table(open_dataset(dataset).test, masks=False))
    assert metrics.pixel_auroc is None
    assert metrics.image_auroc == detector.evaluate(dataset).image_auroc


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["ok", "scratch"], ["good", "scratch"]),
        (["Normal", None], ["good", None]),
        ([0, 1], ["good", "anomalous"]),
        ([False, True], ["good", "anomalous"]),
    ],
)
def test_labels_have_many_forms(labels: list[Any], expected: list[str | None]) -> None:
    rows = datasets.Dataset.from_dict({"image": [picture(), picture()], "label": labels})
    rows = rows.cast_column("image", datasets.Image())
    assert DatasetImages(rows).types() == expected


def picture() -> dict[str, Any]:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6)).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("labels", [[3, 4], ["a", "b"], [0.5, 1.5]])
def test_labels_that_do_not_tell_what_is_good_are_refused(labels: list[Any]) -> None:
    rows = datasets.Dataset.from_dict({"image": [picture(), picture()], "label": labels})
    with pytest.raises(DataError, match="'label'"):
        DatasetImages(rows.cast_column("image", datasets.Image())).types()


def test_a_class_label_without_value_is_unknown() -> None:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["good", "bad"])})
    rows = datasets.Dataset.from_dict({"image": [picture()] * 3, "label": [0, -1, 1]}, features=features)
    assert DatasetImages(rows).types() == ["good", None, "bad"]


def test_without_any_label_all_are_good() -> None:
    """As the loader of image folders leaves a training split of one class."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["good", "bad"])})
    for labels, learned in (([None] * 3, 3), ([None, 0, 1], 1)):
        rows = datasets.Dataset.from_dict({"image": [picture()] * 3, "label": labels}, features=features)
        assert len(good_images(rows)) == learned


def test_columns_and_splits_that_are_missing_are_named(detector: AnomalyDetector, splits: datasets.DatasetDict) -> None:
    with pytest.raises(DataError, match="several splits; give one of them: 'train', 'test'"):
        detector.predict(splits)
    with pytest.raises(DataError, match="no split 'test'"):
        detector.evaluate(datasets.DatasetDict({"train": splits["train"]}))
    with pytest.raises(DataError, match="no column of labels"):
        detector.evaluate(splits["test"].remove_columns("label"))
    with pytest.raises(DataError, match=r"needs one column 'image'.*none"):
        detector.predict(splits["test"].remove_columns("image"))
    two = splits["test"].rename_column("image", "left").add_column("right", list(splits["test"]["line"]))
    assert scores(detector, two) == scores(detector, splits["test"])
    two = two.remove_columns("right").add_column("right", [picture()] * len(two)).cast_column("right", datasets.Image())
    with pytest.raises(DataError, match="left, right"):
        detector.predict(two)


def test_rows_that_cannot_be_read_are_skipped_by_place(detector: AnomalyDetector, splits: datasets.DatasetDict) -> None:
    rows = splits["test"].select(range(3)).remove_columns(["mask"])
    spoiled = [
        {"bytes": b"no picture", "path": None},
        *[row["image"] for row in rows.cast_column("image", datasets.Image(decode=False))][1:],
    ]
    rows = rows.remove_columns("image").add_column("image", spoiled).cast_column("image", datasets.Image())
    with pytest.raises(ImageError, match="not an image"):
        detector.predict(rows)
    assert len(detector.predict(rows, on_error="skip")) == 2
    assert len(detector.skipped_) == 1


def test_a_mask_of_another_size_is_refused(detector: AnomalyDetector, splits: datasets.DatasetDict) -> None:
    rows = splits["test"].remove_columns("mask").add_column("mask", [picture()] * len(splits["test"]))
    with pytest.raises(ImageError, match="mask of row"):
        detector.evaluate(rows.cast_column("mask", datasets.Image()))


def test_rows_are_read_when_they_are_asked_for(splits: datasets.DatasetDict) -> None:
    images = DatasetImages(splits["test"])
    assert len(images) == 16
    assert images[-1] == images[15] == images[14:][1]
    assert isinstance(images[0], bytes)
    assert np.asarray(Image.open(io.BytesIO(images[0]))).shape == (96, 96, 3)


def test_other_things_are_no_tables() -> None:
    for thing in ([], {}, "x.png", np.zeros((3, 3)), {"train": []}):
        assert not is_dataset(thing)


def test_adtr_does_not_import_what_was_not_asked_for() -> None:
    code = (
        "import sys, adtr, adtr.detector, adtr.data.sources, adtr.estimator; "
        "print([m for m in ('datasets', 'huggingface_hub', 'anomalib', 'sklearn', 'pandas') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
