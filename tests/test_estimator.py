"""Scikit-learn's own checks and tools, on the real detector."""

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import ArrayLike
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, KFold, StratifiedKFold, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.utils import Tags, check_array, get_tags
from sklearn.utils.estimator_checks import check_estimator

from adtr.data.folder import open_dataset
from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError, DataError
from conftest import defect_image, good_image

TINY = {
    "target": "pixels",
    "image_size": 16,
    "grid_size": 4,
    "width": 8,
    "heads": 1,
    "feedforward": 8,
    "max_steps": 3,
    "optimizer": "adamw",
    "precision": "fp32",
    "holdout_min": 1,
}
"""A detector without backbone, which is fitted in milliseconds."""

NOT_FOR_IMAGES = {
    "check_no_attributes_set_in_init": "`config` holds what the parameters mean, checked as soon as they are given",
    "check_do_not_raise_errors_in_init_or_set_params": "a wrong parameter fails at once, not after images were read",
    "check_n_features_in_after_fitting": "images of any size are accepted: there is no number of features",
    "check_n_features_in": "images of any size are accepted: there is no number of features",
    "check_estimators_pickle": "what is fitted is saved and loaded, never unpickled",
    "check_fit2d_1sample": "the error names good images, not samples",
    "check_outliers_train": "images of any size are accepted, so a transposed matrix too",
    "check_methods_subset_invariance": "asks for 1e-7, and float32 differs by 1e-6 between batches (see test_detector)",
    "check_methods_sample_order_invariance": "as above",
}
"""Scikit-learn's checks that a detector of images fails, or may fail, and why."""


class OfRows(AnomalyDetector):
    """Takes a matrix, as the checks make them: each row becomes an image. Answers 1 and -1, as outlier detectors do."""

    def __init__(
        self, preset: str = "quick", *, device: str = "cpu", backbone_weights: str | None = None, **overrides: object
    ) -> None:
        super().__init__(preset, device=device, backbone_weights=backbone_weights, **{**TINY, **overrides})

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.input_tags.one_d_array, tags.input_tags.two_d_array = False, True
        return tags

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> "OfRows":  # noqa: ARG002, N803
        return super().fit(_pictures(X))

    def predict(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        return np.where([p.is_anomalous for p in super().predict(_pictures(X))], -1, 1)

    def score_samples(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        return super().score_samples(_pictures(X))


def _pictures(rows: ArrayLike) -> list[np.ndarray]:
    gray = np.clip(128 + 16 * check_array(rows).astype(float), 0, 255).astype(np.uint8)
    return [np.tile(row[None, :, None], (4, 1, 3)) for row in gray]


def test_scikit_learns_checks_pass_but_those_that_do_not_suit_images() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of checks about themselves
        results = check_estimator(OfRows(), on_fail=None, on_skip=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    assert failed <= set(NOT_FOR_IMAGES)
    assert sum(result["status"] == "passed" for result in results) >= 30


def test_the_tags_say_what_it_is() -> None:
    tags = get_tags(AnomalyDetector())
    assert tags.estimator_type == "outlier_detector"
    assert not tags.target_tags.required
    assert (tags.input_tags.one_d_array, tags.input_tags.two_d_array, tags.input_tags.string) == (True, False, True)


def test_unfitted_is_said_in_both_languages(dataset: Path) -> None:
    with pytest.raises(NotFittedError, match="has learned nothing yet"):
        AnomalyDetector().predict(dataset)
    with pytest.raises(AdtrError, match="has learned nothing yet"):
        AnomalyDetector().predict(dataset)


# Pickles.


def test_a_pickle_holds_the_parameters_alone() -> None:
    detector = AnomalyDetector("paper-mvtec", device="cpu", epochs=3, image_size="64x96")
    copy = pickle.loads(pickle.dumps(detector))
    assert copy.get_params() == detector.get_params()
    assert copy.config == detector.config
    assert not copy.is_fitted


def test_what_is_fitted_is_not_pickled(detector: AnomalyDetector) -> None:
    with pytest.raises(AdtrError, match=r"save\(folder\).*AnomalyDetector\.load\(folder\)"):
        pickle.dumps(detector)


# Model selection.


@pytest.fixture(scope="module")
def labelled() -> tuple[list[np.ndarray], np.ndarray]:
    """Good images and defects, and scikit-learn's labels of them."""
    rng = np.random.default_rng(3)
    good, bad = [good_image(rng, 32) for _ in range(24)], [defect_image(rng, 32)[0] for _ in range(12)]
    return [*good, *bad], np.repeat([1, -1], [24, 12])


def test_cross_validation_learns_from_the_good_images_alone(labelled: tuple[list[np.ndarray], np.ndarray]) -> None:
    images, y = labelled
    folds = StratifiedKFold(3, shuffle=True, random_state=0)
    result = cross_validate(AnomalyDetector(**TINY), images, y, scoring="roc_auc", cv=folds, return_estimator=True)
    for (training, test), detector, score in zip(
        folds.split(images, y), result["estimator"], result["test_score"], strict=True
    ):
        learned = detector.metadata_["data"]["image_hashes"]
        alone = AnomalyDetector(**TINY).fit([images[i] for i in training if y[i] == 1])
        assert alone.metadata_["data"]["image_hashes"] == learned
        assert score == roc_auc_score(y[test], alone.decision_function([images[i] for i in test]))


def test_a_grid_search_chooses_by_auroc(labelled: tuple[list[np.ndarray], np.ndarray]) -> None:
    images, y = labelled
    search = GridSearchCV(
        AnomalyDetector(**TINY), {"max_steps": [1, 30]}, scoring="roc_auc", cv=StratifiedKFold(2), error_score="raise"
    )
    search.fit(np.stack(images), y)
    assert set(search.cv_results_["param_max_steps"]) == {1, 30}
    best = search.best_estimator_
    assert best.is_fitted
    assert best.config.training.max_steps == search.best_params_["max_steps"]
    assert search.best_score_ == max(search.cv_results_["mean_test_score"])
    assert search.decision_function(images[:2]).shape == (2,)


def passed(detector: AnomalyDetector, images: object, y: object = None) -> float:
    """The share of good images that raise no alarm."""
    assert y is None
    return float((detector.decision_function(images) >= 0).mean())


def test_without_labels_a_scorer_of_ones_own_decides(dataset: Path) -> None:
    good = [sample.path for sample in open_dataset(dataset).train]
    scores = cross_val_score(AnomalyDetector(**TINY), good, scoring=passed, cv=KFold(3))
    assert scores.shape == (3,)
    assert ((scores >= 0) & (scores <= 1)).all()
    search = GridSearchCV(AnomalyDetector(**TINY), {"width": [8, 16]}, scoring=passed, cv=2).fit(good)
    assert search.best_estimator_.metadata_["data"]["images"] == 24


def test_workers_get_the_parameters(labelled: tuple[list[np.ndarray], np.ndarray]) -> None:
    """As joblib sends them: a clone is pickled, fitted there, and its score comes back."""
    images, y = labelled
    sent = pickle.loads(pickle.dumps(clone(AnomalyDetector(**TINY, seed=4))))
    own = AnomalyDetector(**TINY, seed=4).fit(images, y)
    np.testing.assert_array_equal(sent.fit(images, y).score_samples(images), own.score_samples(images))


def test_it_ends_a_pipeline(labelled: tuple[list[np.ndarray], np.ndarray]) -> None:
    images, y = labelled
    pipeline = make_pipeline(AnomalyDetector(**TINY)).set_params(anomalydetector__max_steps=2)
    decisions = pipeline.fit(images, y).decision_function(images)
    np.testing.assert_array_equal(
        decisions, AnomalyDetector(**{**TINY, "max_steps": 2}).fit(images, y).decision_function(images)
    )


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([1] * 35, "for each of the 36 images"),
        ([0] * 24 + [1] * 12, "1 for good or -1 for anomalous"),
        ([-1] * 36, "marks no image as good"),
        ([[1]] * 36, "for each of the 36 images"),
    ],
)
def test_labels_of_another_kind_are_refused(
    labelled: tuple[list[np.ndarray], np.ndarray], y: list[Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        AnomalyDetector(**TINY).fit(labelled[0], y)


# Columns of paths.


def test_columns_of_paths_are_images(detector: AnomalyDetector, dataset: Path) -> None:
    paths = [sample.path for sample in open_dataset(dataset).test[:3]]
    expected = [p.score for p in detector.predict(paths)]
    names = [str(path) for path in paths]
    frame = pd.DataFrame({"path": names, "line": [1, 2, 3]})
    forms = {
        "objects": np.array(paths, dtype=object),
        "text": np.array(names),
        "one column": np.array(names, dtype=object)[:, None],
        "series": frame["path"],
        "series of another index": frame["path"].set_axis([7, 5, 9]),
        "frame of one column": frame[["path"]],
    }
    for name, form in forms.items():
        predictions = detector.predict(form)
        assert [p.score for p in predictions] == expected, name
        assert [p.path for p in predictions] == paths, name


def test_images_of_several_sizes_in_an_array_of_objects(detector: AnomalyDetector) -> None:
    images = np.empty(2, dtype=object)
    images[:] = [np.zeros((20, 30, 3), np.uint8), np.zeros((40, 30, 3), np.uint8)]
    assert [p.size for p in detector.predict(images)] == [(20, 30), (40, 30)]


def test_a_frame_of_paths_is_split_and_learned_from(dataset: Path) -> None:
    frame = pd.DataFrame({"path": [str(sample.path) for sample in open_dataset(dataset).train]})
    assert cross_val_score(AnomalyDetector(**TINY), frame, scoring=passed, cv=2).shape == (2,)


def test_a_gray_image_is_no_column(detector: AnomalyDetector) -> None:
    (prediction,) = detector.predict(Image.fromarray(np.zeros((30, 20), np.uint8)))
    (same,) = detector.predict(np.zeros((30, 20), np.uint8))
    assert same.score == prediction.score


def test_epochs_set_on_a_clone_are_epochs() -> None:
    detector = clone(AnomalyDetector()).set_params(epochs=5)
    assert (detector.config.training.epochs, detector.config.training.max_steps) == (5, 0)
    assert AnomalyDetector(**detector.get_params()).config == detector.config
