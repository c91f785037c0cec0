import hashlib
import os
from pathlib import Path
from typing import NoReturn

import pytest

from adtr.data.folder import Dataset, Sample, content_hash, list_images, open_dataset
from adtr.errors import DataError, ImageError


def touch(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def names(paths: list[Path], root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in paths]


def described(samples: list[Sample], root: Path) -> list[tuple[str, str, str | None]]:
    """(path, type, mask), relative to the root."""
    return [
        (
            sample.path.relative_to(root).as_posix(),
            sample.defect_type,
            sample.mask.relative_to(root).as_posix() if sample.mask else None,
        )
        for sample in samples
    ]


def link(path: Path, target: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:
        pytest.skip("no links here")


class TestListImages:
    def test_suffixes_in_any_case_sorted(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.PNG", "a.jpeg", "c.Tif", "10.webp", "9.bmp", "x.tiff", "B.jpg", "notes.txt", "a.gif", "png")
        expected = ["10.webp", "9.bmp", "B.jpg", "a.jpeg", "b.PNG", "c.Tif", "x.tiff"]
        assert names(list_images(tmp_path), tmp_path) == expected
        assert list_images(str(tmp_path)) == list_images(tmp_path)

    def test_hidden_files_and_folders_are_left_out(self, tmp_path: Path) -> None:
        touch(tmp_path, "a.png", ".b.png", "._a.png", ".cache/c.png", "d/e.png", "d/._e.png")
        assert names(list_images(tmp_path, recursive=True), tmp_path) == ["a.png", "d/e.png"]

    def test_recursive(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.png", "a/z.png", "a/b/c.png", "a.png", "c.png/inner.png")
        assert names(list_images(tmp_path), tmp_path) == ["a.png", "b.png"]
        everything = ["a.png", "a/b/c.png", "a/z.png", "b.png", "c.png/inner.png"]
        assert names(list_images(tmp_path, recursive=True), tmp_path) == everything

    def test_links(self, tmp_path: Path) -> None:
        touch(tmp_path, "in/a.png", "out/secret.png")
        link(tmp_path / "in/loop", tmp_path / "in")
        link(tmp_path / "in/out", tmp_path / "out")
        link(tmp_path / "in/out.png", tmp_path / "out")
        link(tmp_path / "in/b.png", tmp_path / "out/secret.png")
        link(tmp_path / "in/broken.png", tmp_path / "nowhere.png")
        link(tmp_path / "in/self.png", tmp_path / "in/self.png")
        found = list_images(tmp_path / "in", recursive=True)
        assert names(found, tmp_path / "in") == ["a.png", "b.png", "broken.png", "self.png"]

    def test_the_folder_itself_may_be_a_link(self, tmp_path: Path) -> None:
        touch(tmp_path, "real/a.png")
        link(tmp_path / "linked", tmp_path / "real")
        assert names(list_images(tmp_path / "linked"), tmp_path) == ["linked/a.png"]

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
    def test_pipes_are_left_out(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe.png")
        link(tmp_path / "linked.png", tmp_path / "pipe.png")
        assert list_images(tmp_path) == []

    def test_errors(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        touch(tmp_path, "a.png")
        for function in (list_images, open_dataset):
            with pytest.raises(DataError, match=r"^no such folder: .*/missing$"):
                function(tmp_path / "missing")
            with pytest.raises(DataError, match=r"a\.png is a file"):
                function(tmp_path / "a.png")

        def refuse(_folder: Path) -> NoReturn:
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr(os, "scandir", refuse)
        for function in (list_images, open_dataset):
            with pytest.raises(DataError, match="Permission denied"):
                function(tmp_path)


class TestMvtec:
    def test_layout(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/good/1.png", "train/good/0.png", "train/good/sub/x.png", "license.txt", "stray.png")
        touch(tmp_path, "test/crack/0.png", "test/crack/1.png", "test/good/0.png", "test/bent/0.png", "test/stray.png")
        touch(tmp_path, "ground_truth/crack/0_mask.png", "ground_truth/bent/0.PNG", "ground_truth/good/0_mask.png")
        dataset = open_dataset(str(tmp_path))
        assert dataset.layout == "mvtec"
        assert dataset.root == tmp_path
        assert dataset.note is None
        assert described(dataset.train, tmp_path) == [
            ("train/good/0.png", "good", None),
            ("train/good/1.png", "good", None),
        ]
        assert described(dataset.test, tmp_path) == [
            ("test/good/0.png", "good", None),
            ("test/bent/0.png", "bent", "ground_truth/bent/0.PNG"),
            ("test/crack/0.png", "crack", "ground_truth/crack/0_mask.png"),
            ("test/crack/1.png", "crack", None),
        ]
        assert dataset.defect_types == ["bent", "crack"]
        assert [sample.is_anomalous for sample in dataset.test] == [False, True, True, True]
        assert open_dataset(tmp_path, reserve=False) == dataset

    def test_either_part_may_be_absent(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/train/good/0.png", "b/test/crack/0.png")
        only_train, only_test = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b")
        assert (only_train.layout, len(only_train.train), only_train.test) == ("mvtec", 1, [])
        assert (only_test.layout, only_test.train, len(only_test.test)) == ("mvtec", [], 1)
        assert only_train.defect_types == []

    def test_comes_before_the_other_layouts(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/good/0.png", "good/0.png", "crack/0.png", "0.png")
        assert open_dataset(tmp_path).layout == "mvtec"


class TestValidation:
    @pytest.mark.parametrize("good", ["train/good", "good", "."])
    def test_good_images_of_ones_own_choice_are_held_out_in_every_layout(self, tmp_path: Path, good: str) -> None:
        touch(tmp_path, f"{good}/0.png", f"{good}/1.png", "validation/good/b.png", "validation/good/a.png")
        touch(tmp_path, "validation/good/notes.txt", "validation/good/sub/x.png", "validation/bad/x.png")
        for reserve in (True, False) if good != "good" else (True,):
            dataset = open_dataset(tmp_path, reserve=reserve)
            assert names([s.path for s in dataset.train], tmp_path / good) == ["0.png", "1.png"]
            assert described(dataset.validation, tmp_path) == [
                ("validation/good/a.png", "good", None),
                ("validation/good/b.png", "good", None),
            ]
            assert dataset.test == []

    def test_without_the_folder_nothing_is_chosen(self, tmp_path: Path) -> None:
        touch(tmp_path, "train/good/0.png", "validation/bad/0.png")
        assert open_dataset(tmp_path).validation == []

    def test_alone_it_is_nothing_to_learn_from_or_to_test(self, tmp_path: Path) -> None:
        touch(tmp_path, "a/validation/good/0.png", "b/validation/good/0.png", "b/test/crack/0.png")
        with pytest.raises(DataError, match=r"^no images found in .*: expected train/good/ or test/, "):
            open_dataset(tmp_path / "a")
        assert (open_dataset(tmp_path / "b").train, len(open_dataset(tmp_path / "b").test)) == ([], 1)
        assert len(open_dataset(tmp_path / "a/validation").train) == 1


class TestGoodFolder:
    def test_without_defects_all_are_trained_on(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"good/{i}.png" for i in range(20)), "empty/notes.txt")
        dataset = open_dataset(tmp_path)
        assert (dataset.layout, len(dataset.train), dataset.test, dataset.note) == ("good-folder", 20, [], None)

    def test_a_fixed_share_is_reserved(self, tmp_path: Path) -> None:
        touch(
            tmp_path, *(f"good/{i}.png" for i in range(23)), "scratch/0.png", "dent/0.png", "dent/1.png", ".git/x.png"
        )
        dataset = open_dataset(tmp_path)
        trained, tested = {s.path for s in dataset.train}, {s.path for s in dataset.test}
        assert not trained & tested
        good = [f"{i}.png" for i in range(23)]
        by_hash = sorted(good, key=lambda name: hashlib.sha256(name.encode()).hexdigest())
        assert {path.name for path in tested if path.parent.name == "good"} == set(by_hash[4::5])
        assert trained | tested == set(list_images(tmp_path, recursive=True))
        assert [s.defect_type for s in dataset.test] == ["good"] * 4 + ["dent"] * 2 + ["scratch"]
        assert dataset.defect_types == ["dent", "scratch"]
        assert dataset.note == "4 of 23 good images are reserved for testing and not trained on."
        assert dataset.train == sorted(dataset.train, key=lambda s: s.path.as_posix())
        assert open_dataset(tmp_path) == dataset

    def test_the_split_does_not_depend_on_the_place(self, tmp_path: Path) -> None:
        for root in ("a", "b/c"):
            touch(tmp_path / root, *(f"good/{i}.png" for i in range(30)), "dent/0.png")
        first, second = open_dataset(tmp_path / "a"), open_dataset(tmp_path / "b/c")
        assert names([s.path for s in first.train], tmp_path / "a") == names(
            [s.path for s in second.train], tmp_path / "b/c"
        )

    def test_few_good_images_are_all_trained_on(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"good/{i}.png" for i in range(4)), "dent/0.png")
        dataset = open_dataset(tmp_path)
        assert len(dataset.train) == 4
        assert dataset.note is not None
        assert dataset.note.startswith("0 of 4 good images")

    def test_only_for_evaluation(self, tmp_path: Path) -> None:
        touch(tmp_path, *(f"good/{i}.png" for i in range(10)), "dent/0.png")
        dataset = open_dataset(tmp_path, reserve=False)
        assert dataset.train == []
        assert [s.defect_type for s in dataset.test] == ["good"] * 10 + ["dent"]
        assert dataset.note is None
        touch(tmp_path, "other/good/0.png")
        assert len(open_dataset(tmp_path / "other", reserve=False).test) == 1

    @pytest.mark.parametrize("name", ["good", "Good", "ok", "OK", "Normal"])
    def test_names(self, tmp_path: Path, name: str) -> None:
        touch(tmp_path, f"{name}/0.png")
        assert described(open_dataset(tmp_path).train, tmp_path) == [(f"{name}/0.png", "good", None)]

    def test_good_comes_before_ok(self, tmp_path: Path) -> None:
        touch(tmp_path, "normal/0.png", "ok/0.png", "Good/0.png")
        dataset = open_dataset(tmp_path, reserve=False)
        assert [s.defect_type for s in dataset.test] == ["good", "normal", "ok"]
        assert dataset.test[0].path.parent.name == "Good"

    def test_defects_without_good_images(self, tmp_path: Path) -> None:
        touch(tmp_path, "good/notes.txt", "dent/0.png")
        dataset = open_dataset(tmp_path)
        assert (dataset.train, len(dataset.test)) == ([], 1)

    def test_masks(self, tmp_path: Path) -> None:
        touch(tmp_path, "good/0.png", "good/0_mask.png", "good/face_mask.png")
        touch(tmp_path, *(f"dent/{name}" for name in ("0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", "a_mask.png")))
        touch(tmp_path, "dent/2_mask.PNG", "dent/1_mask.png", "ground_truth/dent/0_mask.bmp", "ground_truth/dent/0.png")
        touch(
            tmp_path, "ground_truth/dent/0_mask.TIF", "masks/dent/1.png", "masks/dent/0_mask.png", "masks/other/3.png"
        )
        dataset = open_dataset(tmp_path)
        assert described(dataset.test, tmp_path) == [
            ("dent/0.jpg", "dent", "ground_truth/dent/0_mask.TIF"),
            ("dent/1.jpg", "dent", "masks/dent/1.png"),
            ("dent/2.jpg", "dent", "dent/2_mask.PNG"),
            ("dent/3.jpg", "dent", None),
            ("dent/4.jpg", "dent", None),
            ("dent/a_mask.png", "dent", None),
        ]
        assert [s.path.name for s in dataset.train] == ["0.png", "face_mask.png"]


class TestPlain:
    def test_layout(self, tmp_path: Path) -> None:
        touch(tmp_path, "b.png", "a.jpg", "sub/c.png", "test/notes.txt")
        dataset = open_dataset(tmp_path)
        expected = [Sample(path=tmp_path / "a.jpg"), Sample(path=tmp_path / "b.png")]
        assert dataset == Dataset(root=tmp_path, layout="plain", train=expected, test=[])

    def test_nothing_found(self, tmp_path: Path) -> None:
        touch(tmp_path, "sub/c.png", "train/good/notes.txt")
        with pytest.raises(DataError) as caught:
            open_dataset(tmp_path)
        message = str(caught.value)
        assert message.startswith(f"no images found in {tmp_path}: expected train/good/")
        assert "jpg" in message
        assert "\n" not in message


def test_content_hash(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"abc")
    assert content_hash(tmp_path / "a.png") == content_hash(str(tmp_path / "a.png")) == "ba7816bf8f01cfea"
    with pytest.raises(ImageError, match=r"cannot read image .*b\.png: No such file"):
        content_hash(tmp_path / "b.png")


def test_real_data_sets() -> None:
    root = Path(os.environ.get("ADTR_DATA", "nowhere")) / "mvtec" / "transistor"
    if not root.is_dir():
        pytest.skip("ADTR_DATA does not name a folder with mvtec/transistor")
    dataset = open_dataset(root)
    assert (dataset.layout, len(dataset.train), len(dataset.test)) == ("mvtec", 213, 100)
    assert all((sample.mask is not None) == sample.is_anomalous for sample in dataset.test)
    trained = {content_hash(sample.path) for sample in dataset.train}
    assert not trained & {content_hash(sample.path) for sample in dataset.test}
