import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from adtr.regions import Region, find_regions, label_regions

MASKS = st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 10**6), st.floats(0, 1))


def literal_regions(values: NDArray[np.float32], mask: NDArray[np.bool_]) -> set[tuple[object, ...]]:
    """Flood fill, pixel by pixel."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    found = set()
    while left:
        region, border = set(), [left.pop()]
        while border:
            y, x = border.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            border += near
        rows, columns = zip(*region, strict=True)
        box = (min(columns), min(rows), max(columns) - min(columns) + 1, max(rows) - min(rows) + 1)
        found.add((box, len(region), max(float(values[point]) for point in region)))
    return found


@given(MASKS)
@settings(deadline=None)
def test_regions_are_what_touches(drawn: tuple[int, int, int, float]) -> None:
    height, width, seed, share = drawn
    rng = np.random.default_rng(seed)
    values, mask = rng.random((height, width), np.float32), rng.random((height, width)) < share
    labels = label_regions(mask)
    regions = find_regions(values, labels)
    assert {(r.box, r.area, r.peak) for r in regions} == literal_regions(values, mask)
    assert len({r.label for r in regions}) == len(regions)
    assert all(((labels == r.label).sum(), values[labels == r.label].max()) == (r.area, r.peak) for r in regions)
    peaks = [r.peak for r in regions]
    assert peaks == sorted(peaks, reverse=True)


def test_a_region_becomes_plain_json() -> None:
    region = Region(label=1, box=(1, 2, 3, 4), area=5, peak=6.5)
    assert region.to_dict() == {"box": [1, 2, 3, 4], "area": 5, "peak": 6.5}
