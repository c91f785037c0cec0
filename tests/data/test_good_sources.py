"""What a user gives to learn from, and what is held out of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from adtr.data.folder import open_dataset
from adtr.data.sources import GoodSources, good_sources
from adtr.errors import DataError


class Lazy(Sequence[object]):
    """Says which images were asked for."""

    def __init__(self, names: str) -> None:
        self.names, self.asked = names, []

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> str:
        self.asked.append(index)
        return self.names[index]


def paths(root: Path, folder: str, count: int) -> list[Path]:
    (root / folder).mkdir(parents=True)
    made = [root / folder / f"{i}.png" for i in range(count)]
    for path in made:
        path.touch()
    return made


def test_both_parts_are_one_sequence_that_reads_what_is_asked_for() -> None:
    training, held_out = Lazy("abc"), Lazy("de")
    good = GoodSources(training, None, held_out)
    assert (len(good), good[3], good[-1], good[np.int64(1)]) == (5, "d", "e", "b")
    assert (training.asked, held_out.asked) == ([1], [0, 1])
    assert "".join(map(str, good)) == "abcde"
    assert good[1::2] == ["b", "d"]
    with pytest.raises(IndexError):
        good[5]


def test_places_of_the_chosen_ones() -> None:
    good = GoodSources("abc", None, "de")
    assert good.chosen() == [3, 4]
    assert good.chosen([0, 2, 4]) == [2]  # 1 and 3 could not be read
    assert good.chosen([0, 1]) == []
    assert GoodSources("abc").chosen() is None


def test_a_data_set_brings_its_own(tmp_path: Path) -> None:
    training, chosen = paths(tmp_path, "train/good", 3), paths(tmp_path, "validation/good", 2)
    for images in (tmp_path, str(tmp_path), open_dataset(tmp_path)):
        good = good_sources(images)
        assert (list(good), good.root, good.is_found_again) == ([*training, *chosen], tmp_path, True)
        assert (good.held_out, good.held_out_root) == (chosen, tmp_path / "validation/good")
    again = good_sources(tmp_path, good.held_out_root)
    assert (list(again), again.held_out_root) == (list(good), good.held_out_root)
    alone = good_sources(tmp_path / "train/good")
    assert (list(alone), alone.held_out) == (training, None)


def test_what_is_given_wins(tmp_path: Path) -> None:
    training, _ = paths(tmp_path, "data/train/good", 3), paths(tmp_path, "data/validation/good", 2)
    other, tested = paths(tmp_path, "other/train/good", 2), paths(tmp_path, "other/test/good", 1)
    good = good_sources(tmp_path / "data", tmp_path / "other")  # of a data set its good training images
    assert (good.training, good.held_out, good.held_out_root) == (training, other, tmp_path / "other")
    assert good.is_found_again
    good = good_sources(tmp_path / "data", tested)
    assert (good.training, good.held_out, good.is_found_again) == (training, tested, False)
    array = np.zeros((4, 4, 3), np.uint8)
    good = good_sources([array, array], array)
    assert (len(good.training), len(good.held_out or ()), good.is_found_again) == (2, 1, False)


def test_nothing_to_hold_out_is_one_line(tmp_path: Path) -> None:
    paths(tmp_path, "train/good", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"^no images were given$"):
        good_sources(tmp_path, [])
    with pytest.raises(DataError, match=r"^no images found in .*empty: "):
        good_sources(tmp_path, tmp_path / "empty")
    with pytest.raises(DataError, match=r"^no such folder: .*nowhere$"):
        good_sources(tmp_path, tmp_path / "nowhere")
