import json
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from adtr import metrics
from adtr.metrics import Metrics, MetricsAccumulator, Scores

Array = NDArray[Any]
PIXEL_METRICS = ("pixel_auroc", "pixel_ap", "aupro")


def evaluate(
    maps: Sequence[Array | None],
    masks: Sequence[Array | None],
    types: Sequence[str] | None = None,
    scores: Iterable[float] | None = None,
    **options: float,
) -> Metrics:
    accumulator = MetricsAccumulator(**options)
    types = types or ["good" if mask is None or not mask.any() else "bad" for mask in masks]
    scores = [float(m.max()) for m in maps] if scores is None else scores
    for score, anomaly_map, mask, defect_type in zip(scores, maps, masks, types, strict=True):
        accumulator.add(score, anomaly_map, mask, defect_type=defect_type)
    return accumulator.compute()


def flood_fill(mask: Array) -> list[list[tuple[int, int]]]:
    """The 8-connected regions of a mask, each as a list of pixels."""
    unseen = set(zip(*np.nonzero(mask), strict=True))
    regions = []
    while unseen:
        queue, region = deque([unseen.pop()]), []
        while queue:
            y, x = queue.popleft()
            region.append((y, x))
            for near in [(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]:
                if near in unseen:
                    unseen.remove(near)
                    queue.append(near)
        regions.append(region)
    return regions


def literal_aupro(maps: list[Array], masks: list[Array], limit: float) -> float:
    """The definition, threshold by threshold and region by region."""
    regions = [
        np.array([m[p] for p in region]) for m, mask in zip(maps, masks, strict=True) for region in flood_fill(mask)
    ]
    normal = np.concatenate([m[~mask] for m, mask in zip(maps, masks, strict=True)])
    curve = [(0.0, 0.0)]
    for threshold in sorted({v for m in maps for v in m.ravel().tolist()}, reverse=True):
        fpr = np.mean(normal >= threshold)
        curve.append((fpr, np.mean([np.mean(region >= threshold) for region in regions])))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 >= limit or x1 == x0:
            continue
        end = min(x1, limit)
        y_end = y0 + (y1 - y0) * (end - x0) / (x1 - x0)
        area += (end - x0) * (y0 + y_end) / 2
    return area / limit


def some_images(
    seed: int, count: int = 4, shape: tuple[int, int] = (12, 17), levels: int | None = None
) -> tuple[list[Array], list[Array]]:
    """Maps that find the anomalies somewhat; every other image is good."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for i in range(count):
        mask = np.zeros(shape, bool)
        if i % 2:
            mask[1:4, 2:6] = mask[4, 6] = True  # touches at a corner: one region of 8-connectivity, two of 4
            mask[8:11, 9:15] = True
            mask[7, 1] = True
        anomaly_map = rng.gamma(3, 2, shape) + rng.uniform(0, 5, shape) * mask
        if levels:
            anomaly_map = np.round(anomaly_map * levels) / levels
        maps.append(anomaly_map.astype(np.float32))
        masks.append(mask)
    return maps, masks


def assert_close(left: Scores, right: Scores, *, abs: float) -> None:  # noqa: A002 as pytest.approx names it
    for name in PIXEL_METRICS:
        assert getattr(left, name) == pytest.approx(getattr(right, name), abs=abs), name


@pytest.mark.parametrize("levels", [None, 1, 4])
@pytest.mark.parametrize("limit", [0.05, 0.3, 1.0])
def test_pixel_metrics_follow_their_definitions(levels: int | None, limit: float) -> None:
    maps, masks = some_images(seed=1, levels=levels)
    result = evaluate(maps, masks, aupro_limit=limit)
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    assert result.pixel_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)
    assert result.pixel_ap == pytest.approx(average_precision_score(labels, scores), abs=1e-12)
    assert result.aupro == pytest.approx(literal_aupro(maps, masks, limit), abs=1e-12)


def test_aupro_weighs_regions_and_not_pixels() -> None:
    # By hand: of two regions the large one (6 pixels) is found before any false alarm and the single pixel never is.
    mask = np.zeros((5, 5), bool)
    mask[:2, :3] = True
    mask[4, 4] = True
    anomaly_map = np.ones((5, 5), np.float32)
    anomaly_map[:2, :3] = 2
    anomaly_map[4, 4] = 0
    assert evaluate([anomaly_map], [mask]).aupro == pytest.approx(0.5)


def test_aupro_interpolates_at_the_limit() -> None:
    # By hand: one region and a constant map give the diagonal, whose area up to 0.3 is 0.3 ** 2 / 2.
    mask = np.zeros((4, 4), bool)
    mask[0, 0] = True
    assert evaluate([np.ones((4, 4))], [mask]).aupro == pytest.approx(0.15)


@pytest.mark.parametrize("negative", [False, True])
def test_binned_metrics_stay_close_to_exact_ones(monkeypatch: pytest.MonkeyPatch, negative: bool) -> None:
    maps, masks = some_images(seed=2, count=8, shape=(120, 130))
    maps = [m - 6 if negative else m for m in maps]
    exact = evaluate(maps, masks)
    monkeypatch.setattr(metrics, "MAX_BINS", 4096)
    binned = evaluate(maps, masks)
    assert binned != exact
    assert_close(binned, exact, abs=1e-4)


@pytest.mark.parametrize("sizes", [(60, 14), (14, 60)])
def test_bins_of_different_widths_are_brought_together(monkeypatch: pytest.MonkeyPatch, sizes: tuple[int, int]) -> None:
    # The larger image has coarser bins than the smaller one.
    maps, masks = zip(
        *[[a[i] for a in some_images(seed=15, shape=(n, n + 3))] for i, n in enumerate(sizes)], strict=True
    )
    monkeypatch.setattr(metrics, "MAX_BINS", 1024)
    result = evaluate(maps, masks)
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    assert result.pixel_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-3)
    assert result.pixel_auroc != pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_full_size_images_match_sklearn() -> None:
    rng = np.random.default_rng(3)
    mask = np.zeros((512, 512), bool)
    mask[100:200, 150:300] = True
    maps = [rng.gamma(3, 2, mask.shape).astype(np.float32), (rng.gamma(3, 2, mask.shape) + 3 * mask).astype(np.float32)]
    result = evaluate(maps, [None, mask])
    labels = np.concatenate([np.zeros(mask.size, bool), mask.ravel()])
    scores = np.concatenate([m.ravel() for m in maps])
    assert result.pixel_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-5)
    assert result.pixel_ap == pytest.approx(average_precision_score(labels, scores), abs=1e-5)


@pytest.mark.parametrize("signs", [[1], [-1, 1]])
def test_memory_is_bounded_under_a_pathological_range(signs: list[int]) -> None:
    rng = np.random.default_rng(4)
    accumulator = MetricsAccumulator()
    maps, masks = [], []
    for _ in range(3):
        mask = rng.random((300, 300)) < 0.1
        magnitude = 10 ** rng.uniform(-30, 30, mask.shape)
        maps.append((rng.choice(signs, mask.shape) * magnitude * (1 + mask)).astype(np.float32))
        masks.append(mask)
        accumulator.add(0.0, maps[-1], mask, defect_type="bad")
    histogram = accumulator._groups["bad"].pixels
    assert sum(m.size for m in maps) > 2 * metrics.MAX_BINS
    assert histogram.bins.size <= metrics.MAX_BINS
    assert histogram.counts.nbytes + histogram.bins.nbytes <= 28 * metrics.MAX_BINS
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    assert accumulator.compute().pixel_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-4)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), power=st.integers(-20, 20))
def test_powers_of_two_change_nothing(seed: int, power: int) -> None:
    maps, masks = some_images(seed)
    scaled = [m * np.float32(2.0**power) for m in maps]
    assert evaluate(scaled, masks) == evaluate(maps, masks)


def test_scaling_changes_nothing_where_bins_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_BINS", 256)
    maps, masks = some_images(seed=5, shape=(40, 40))
    assert evaluate([8 * m for m in maps], masks) == evaluate(maps, masks)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), transform=st.sampled_from([np.log, np.sqrt, lambda x: 3 * x - 100, np.cbrt]))
def test_increasing_transforms_change_nothing(seed: int, transform: Callable[[Array], Array]) -> None:
    maps, masks = some_images(seed, levels=64)
    assert_close(evaluate([transform(m + 1) for m in maps], masks), evaluate(maps, masks), abs=1e-12)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(6)))
def test_the_order_of_the_images_does_not_matter(order: list[int]) -> None:
    maps, masks = some_images(seed=6, count=6)
    types = ["good", "scratch", "good", "dent", "good", "scratch"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "MAX_BINS", 300)
        straight = evaluate(maps, masks, types)
        shuffled = evaluate([maps[i] for i in order], [masks[i] for i in order], [types[i] for i in order])
    assert_close(shuffled, straight, abs=1e-12)
    assert shuffled.image_auroc == straight.image_auroc
    assert list(shuffled.per_type) == list(straight.per_type)
    for name in straight.per_type:
        assert_close(shuffled.per_type[name], straight.per_type[name], abs=1e-12)


def test_perfect_separation() -> None:
    maps, masks = some_images(seed=7)
    maps = [m + 1000 * mask for m, mask in zip(maps, masks, strict=True)]
    result = evaluate(maps, masks)
    for name in ("image_auroc", "image_ap", "image_f1_max", *PIXEL_METRICS):
        assert getattr(result, name) == pytest.approx(1.0, abs=1e-12), name


def test_a_constant_map_is_worth_nothing() -> None:
    _, masks = some_images(seed=8)
    result = evaluate([np.full(m.shape, 2.5) for m in masks], masks)
    assert result.pixel_auroc == pytest.approx(0.5)
    assert result.pixel_ap == pytest.approx(np.mean(masks))
    assert (result.image_auroc, result.image_ap) == (0.5, 0.5)


def test_zero_and_minus_zero_are_equal() -> None:
    mask = np.array([[True, False]])
    assert evaluate([np.array([[0.0, -0.0]])], [mask]).pixel_auroc == 0.5
    assert evaluate([np.array([[0.0, -1e-30]])], [mask]).pixel_auroc == 1.0


def test_image_metrics_equal_sklearn() -> None:
    rng = np.random.default_rng(9)
    scores = np.round(rng.normal(size=60), 1)  # with ties
    labels = rng.random(60) < 0.4
    types = ["bad" if label else "good" for label in labels]
    result = evaluate([None] * 60, [None] * 60, types, scores)
    assert result.image_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-14)
    assert result.image_ap == pytest.approx(average_precision_score(labels, scores), abs=1e-14)
    assert result.image_f1_max == pytest.approx(max(f1_score(labels, scores >= t) for t in scores), abs=1e-14)
    assert (result.images, result.anomalous) == (60, labels.sum())


def test_image_scores_keep_their_float64_differences() -> None:
    # As float32, or through a sigmoid, all of these would tie.
    result = evaluate([None] * 4, [None] * 4, ["good", "good", "bad", "bad"], 1e6 + 1e-3 * np.arange(4))
    assert result.image_auroc == 1.0


def test_each_defect_type_stands_against_all_good_images() -> None:
    maps, masks = some_images(seed=10, count=8)
    types = ["good", "scratch", "good", "dent", "good", "scratch", "good", "dent"]
    result = evaluate(maps, masks, types)
    assert list(result.per_type) == ["dent", "scratch"]
    for name, scores in result.per_type.items():
        chosen = [i for i, t in enumerate(types) if t in ("good", name)]
        alone = evaluate([maps[i] for i in chosen], [masks[i] for i in chosen], [types[i] for i in chosen])
        assert (scores.images, scores.anomalous) == (6, 2)
        assert scores.image_auroc == alone.image_auroc
        assert_close(scores, alone, abs=1e-12)
    assert (result.images, result.anomalous) == (8, 4)
    labels, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    assert result.pixel_auroc == pytest.approx(roc_auc_score(labels, scores), abs=1e-12)


def test_images_of_one_class_have_no_metrics() -> None:
    for defect_type in ("good", "bad"):
        result = evaluate([np.ones((3, 3))], [None], [defect_type])
        assert (result.image_auroc, result.image_ap, result.image_f1_max) == (None, None, None)
        assert (result.pixel_auroc, result.pixel_ap, result.aupro) == (None, None, None)
        assert result.images == 1
    assert MetricsAccumulator().compute().images == 0


def test_an_anomalous_image_without_a_mask_is_left_out_of_the_pixel_metrics() -> None:
    maps, masks = some_images(seed=11)
    types = ["good", "scratch", "good", "dent"]
    unknown = evaluate(maps, [None, masks[1], None, None], types)
    without = evaluate(maps[:3], masks[:3], types[:3])
    assert unknown.anomalous == 2
    assert_close(unknown, without, abs=1e-12)
    assert unknown.per_type["dent"].image_auroc is not None
    assert unknown.per_type["dent"].pixel_auroc is None
    assert evaluate(maps, [None] * 4, types).pixel_auroc is None


def test_more_images_may_follow() -> None:
    maps, masks = some_images(seed=12)
    accumulator = MetricsAccumulator()
    for anomaly_map, mask in zip(maps, masks, strict=True):
        accumulator.compute()
        accumulator.add(float(anomaly_map.max()), anomaly_map, mask, defect_type="bad" if mask.any() else "good")
    assert accumulator.compute() == evaluate(maps, masks)


def test_masks_may_be_images_of_0_and_255() -> None:
    maps, masks = some_images(seed=13)
    assert evaluate(maps, [m.astype(np.uint8) * 255 for m in masks]) == evaluate(maps, masks)


def test_to_dict_is_ready_for_json() -> None:
    maps, masks = some_images(seed=14)
    result = evaluate(maps, masks)
    assert isinstance(result, Metrics)
    read = json.loads(json.dumps(result.to_dict()))
    keys = ["image_auroc", "image_ap", "image_f1_max", *PIXEL_METRICS, "images", "anomalous"]
    assert list(read) == [*keys, "per_type"]
    assert list(read["per_type"]["bad"]) == keys
    assert read["aupro"] == result.aupro


@pytest.mark.parametrize(
    ("score", "anomaly_map", "mask", "defect_type", "message"),
    [
        (float("nan"), None, None, "good", "image score is nan"),
        (float("inf"), None, None, "good", "image score is inf"),
        (0.0, np.zeros((2, 2, 1)), None, "good", r"shape \(H, W\), not \(2, 2, 1\)"),
        (0.0, np.zeros((2, 2)), np.zeros((2, 3)), "bad", r"\(2, 3\) is not the anomaly map's \(2, 2\)"),
        (0.0, np.array([[0.0, np.nan]]), None, "good", "not finite"),
        (0.0, np.array([[0.0, np.inf]], np.float32), None, "good", "not finite"),
        (0.0, np.zeros((2, 2)), np.ones((2, 2)), "good", "'good' has anomalous pixels"),
    ],
)
def test_what_cannot_be_measured_is_refused_and_leaves_no_trace(
    score: float, anomaly_map: Array | None, mask: Array | None, defect_type: str, message: str
) -> None:
    accumulator = MetricsAccumulator()
    with pytest.raises(ValueError, match=message):
        accumulator.add(score, anomaly_map, mask, defect_type=defect_type)
    assert accumulator.compute().images == 0


@pytest.mark.parametrize("limit", [0, 1.5, float("nan")])
def test_the_limit_of_aupro_is_checked(limit: float) -> None:
    with pytest.raises(ValueError, match="aupro_limit"):
        MetricsAccumulator(aupro_limit=limit)
