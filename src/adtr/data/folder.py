"""Finds the images of a folder, and tells from its layout which are good, which are defective, and where masks lie."""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from adtr.data.images import IMAGE_SUFFIXES
from adtr.errors import DataError, ImageError
from adtr.files import file_sha256

GOOD = "good"
GOOD_NAMES = ("good", "ok", "normal")
MASK_FOLDERS = ("ground_truth", "masks")
VALIDATION = "validation"
_RESERVE_EVERY = 5


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image of a data set.

    Attributes:
        path: The image's file.
        defect_type: The name of its defect, or "good".
        mask: The file that marks its anomalous pixels; None if it is good or nobody marked them.
    """

    path: Path
    defect_type: str = GOOD
    mask: Path | None = None

    @property
    def is_anomalous(self) -> bool:
        """Whether the image shows a defect."""
        return self.defect_type != GOOD


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """The images of one product; no file is in two of the lists.

    Attributes:
        root: The folder.
        layout: "mvtec", "good-folder" or "plain"; see `open_dataset`.
        train: Good images to learn from; may be empty.
        test: Images to evaluate on, the good ones first, then by defect type; may be empty.
        validation: Good images that are held out of training to set the thresholds; empty where nobody chose them.
        note: One sentence on how many good images were reserved for testing, if that was decided here.
    """

    root: Path
    layout: str
    train: list[Sample]
    test: list[Sample]
    validation: list[Sample] = field(default_factory=list)
    note: str | None = None

    @property
    def defect_types(self) -> list[str]:
        """The names of the defects in the test images, sorted, without "good"."""
        return sorted({sample.defect_type for sample in self.test if sample.is_anomalous})


def open_dataset(root: str | os.PathLike[str], *, reserve: bool = True) -> Dataset:
    """Recognises how a folder is laid out. The first layout that holds any image is taken.

    1. "mvtec": `train/good/` and `test/<type>/`, masks in `ground_truth/<type>/`. Either part may be absent.
    2. "good-folder": `good/` (or `ok/` or `normal/`, in any case) beside zero or more folders of defects, masks in
       `ground_truth/<type>/`, in `masks/<type>/` or beside the images. If there are defects, every fifth good image,
       in the order of the SHA-256 of its file name, is reserved for testing; the same files always give the same split.
    3. "plain": images directly inside, all good.

    In any of them `validation/good/` may hold good images that set the thresholds, as in MVTec LOCO AD and MVTec AD 2.

    The mask of `x.png` is `x_mask.*` or else `x.*`, with any image suffix; beside the images only `x_mask.*`, which is
    then no sample itself. Where several match, the first in sorted order is taken.

    Args:
        root: The folder.
        reserve: Whether a good-folder is split into training and test images. If false, nothing is to be trained:
            all its good images are test images. The other layouts are not affected.

    Raises:
        DataError: No such folder, a file, not readable, or no images found in any of the layouts.
    """
    root = Path(root)
    _scan(root)  # fails with the right message if this is no readable folder
    for dataset in (_open_mvtec(root), _open_good_folder(root, reserve=reserve), _open_plain(root)):
        if dataset.train or dataset.test:
            return replace(dataset, validation=_good_in(root / VALIDATION))
    raise DataError(
        f"no images found in {root}: expected train/good/ or test/, good/ (or ok/, normal/), or images directly inside "
        f"({', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))})"
    )


def list_images(folder: str | os.PathLike[str], *, recursive: bool = False) -> list[Path]:
    """Lists the image files of a folder, sorted by their path relative to it.

    Files are recognised by suffix; hidden ones are left out. A broken link is listed, so that reading it fails by name.

    Args:
        folder: The folder.
        recursive: Whether to descend into subfolders, except hidden ones and links to folders: nothing outside the
            folder is reached, and no loop.

    Raises:
        DataError: No such folder, a file, or not readable.
    """
    folder = Path(folder)
    found = []
    pending = [folder]
    while pending:
        for entry in _scan(pending.pop()):
            if entry.is_dir(follow_symlinks=False):
                if recursive:
                    pending.append(Path(entry))
            elif Path(entry.name).suffix.lower() in IMAGE_SUFFIXES and _is_file_or_broken(entry):
                found.append(Path(entry))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def content_hash(path: str | os.PathLike[str]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of a file's bytes: equal for byte-identical files.

    Raises:
        ImageError: The file cannot be read.
    """
    try:
        return file_sha256(Path(path))[:16]
    except OSError as error:
        raise ImageError(f"cannot read image {path}: {error.strerror or error}") from error


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """The entries of a folder that are not hidden (macOS leaves `._x.png` beside `x.png` on foreign disks)."""
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except FileNotFoundError as error:
        raise DataError(f"no such folder: {folder}") from error
    except NotADirectoryError as error:
        raise DataError(f"{folder} is a file; a folder of images is expected") from error
    except OSError as error:
        raise DataError(f"cannot list folder {folder}: {error.strerror or error}") from error


def _is_file_or_broken(entry: os.DirEntry[str]) -> bool:
    if not entry.is_symlink():
        return entry.is_file()  # known from the listing: no further call, which counts on network drives
    try:
        return Path(entry).is_file() or not Path(entry).exists()
    except OSError:  # a target out of reach is as good as none
        return True


def subfolders(folder: Path) -> list[Path]:
    """The folders directly inside, sorted; hidden ones are left out."""
    return sorted(path for entry in _scan(folder) if (path := Path(entry)).is_dir())


def _open_mvtec(root: Path) -> Dataset:
    test: list[Sample] = []
    if (root / "test").is_dir():
        for folder in sorted(subfolders(root / "test"), key=lambda folder: (folder.name != GOOD, folder.name)):
            masks = [mask_index(root / "ground_truth" / folder.name)]
            test += _samples(list_images(folder), folder.name, masks)
    return Dataset(
        root=root,
        layout="mvtec",
        train=_good_in(root / "train"),
        test=test,
    )


def _open_good_folder(root: Path, *, reserve: bool) -> Dataset:
    folders = subfolders(root)
    good_folders = [folder for name in GOOD_NAMES for folder in folders if folder.name.lower() == name]
    if not good_folders:
        return Dataset(root=root, layout="good-folder", train=[], test=[])
    good = _samples(split_off_masks(list_images(good_folders[0]))[0], GOOD)
    defects: list[Sample] = []
    for folder in folders:
        if folder != good_folders[0] and folder.name not in MASK_FOLDERS:
            images, beside = split_off_masks(list_images(folder))
            masks = [mask_index(root / name / folder.name) for name in MASK_FOLDERS]
            defects += _samples(images, folder.name, [*masks, index_by_stem(beside)])
    note = None
    if not reserve:
        train, test = [], good
    elif not defects:
        train, test = good, []
    else:
        by_hash = sorted(good, key=lambda sample: hashlib.sha256(os.fsencode(sample.path.name)).digest())
        reserved = set(by_hash[_RESERVE_EVERY - 1 :: _RESERVE_EVERY])
        train = [sample for sample in good if sample not in reserved]
        test = [sample for sample in good if sample in reserved]
        note = f"{len(test)} of {len(good)} good images are reserved for testing and not trained on."
    return Dataset(root=root, layout="good-folder", train=train, test=test + defects, note=note)


def _open_plain(root: Path) -> Dataset:
    return Dataset(root=root, layout="plain", train=_samples(list_images(root), GOOD), test=[])


def _good_in(folder: Path) -> list[Sample]:
    """The images of its `good/`; none where there is no such folder."""
    good = folder / GOOD
    return _samples(list_images(good), GOOD) if good.is_dir() else []


def _samples(images: Iterable[Path], defect_type: str, masks: Iterable[dict[str, Path]] = ()) -> list[Sample]:
    """Pairs images with the first mask found for them; good images have none."""
    indexes = [] if defect_type == GOOD else list(masks)
    return [Sample(path=path, defect_type=defect_type, mask=find_mask(path.stem, indexes)) for path in images]


def find_mask(stem: str, indexes: list[dict[str, Path]]) -> Path | None:
    """The mask of the image of that stem in the first index that has it."""
    candidates = (index.get(key) for index in indexes for key in (f"{stem}_mask", stem))
    return next((mask for mask in candidates if mask is not None), None)


def mask_index(folder: Path) -> dict[str, Path]:
    """The images of a folder of masks by stem; empty where there is no folder."""
    return index_by_stem(list_images(folder)) if folder.is_dir() else {}


def index_by_stem(paths: list[Path]) -> dict[str, Path]:
    """Files by stem; of several suffixes the first in sorted order."""
    return {path.stem: path for path in reversed(paths)}


def split_off_masks(paths: list[Path]) -> tuple[list[Path], list[Path]]:
    """Images, and the `x_mask.*` that lie beside some `x.*`."""
    stems = {path.stem for path in paths}
    images: list[Path] = []
    masks: list[Path] = []
    for path in paths:
        is_mask = path.stem.endswith("_mask") and path.stem.removesuffix("_mask") in stems
        (masks if is_mask else images).append(path)
    return images, masks
