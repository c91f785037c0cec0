"""Finds labelled anomalies in a folder: their defect types, and the masks or annotations that mark their pixels."""

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import numpy.typing as npt

from adtr.data.annotations import Annotation, is_coco, parse_coco, parse_labelme, read_json
from adtr.data.folder import (
    GOOD_NAMES,
    MASK_FOLDERS,
    content_hash,
    find_mask,
    index_by_stem,
    list_images,
    mask_index,
    split_off_masks,
    subfolders,
)
from adtr.data.images import IMAGE_SUFFIXES, read_mask
from adtr.data.shapes import Shapes
from adtr.errors import DataError

UNNAMED = "anomaly"
_NAMES_IN_A_NOTE = 5
_MOST_OF_AN_IMAGE = 0.8


@dataclass(frozen=True, kw_only=True)
class Anomaly:
    """One image that shows a defect.

    Attributes:
        path: The image's file.
        defect_type: The name of its defect; "anomaly" if nobody named it.
        mask: The file that marks its anomalous pixels, or what somebody drew; None if nobody marked them.
    """

    path: Path
    defect_type: str
    mask: Path | Shapes | None = None

    def read_mask(self, size: tuple[int, int]) -> npt.NDArray[np.bool_] | None:
        """Reads which pixels are anomalous.

        Args:
            size: Height and width of the upright image, in pixels. A mask of another size, but of the same aspect
                ratio within 2 %, is brought to it.

        Returns:
            An array (height, width), true where anomalous, never all false; None if nobody marked any pixel.

        Raises:
            ImageError: The mask cannot be decoded, or has another aspect ratio.
        """
        if self.mask is None:
            return None
        marked = self.mask.draw(size) if isinstance(self.mask, Shapes) else read_mask(self.mask, size, fit=True)
        return marked if marked.any() else None


@dataclass(frozen=True, kw_only=True)
class Anomalies:
    """The labelled anomalies of a folder.

    Attributes:
        root: The folder.
        samples: The anomalies, at least one, sorted by defect type, then path.
        good: Images that are known to be good, sorted.
        notes: Remarks for people, of one sentence each.
    """

    root: Path
    samples: list[Anomaly]
    good: list[Path]
    notes: list[str]

    @property
    def defect_types(self) -> list[str]:
        """The names of the defects, sorted."""
        return sorted({sample.defect_type for sample in self.samples})


def open_anomalies(root: str | os.PathLike[str], *, annotations: Path | None = None) -> Anomalies:
    """Finds the labelled anomalies of a folder. The first layout that fits is taken.

    1. COCO: the file `annotations`, or else the only COCO file among `*.json` and `annotations/*.json`. It names its
       images relative to itself, to the folder, or to `images/` in it; the others are left aside. The defect type of
       an image is its category with the largest area; images without annotations are good.
    2. MVTec: `test/<type>/`, masks in `ground_truth/<type>/`.
    3. Folders: `<type>/`, masks in `ground_truth/<type>/`, in `masks/<type>/` or beside the images; images directly
       inside are of the type "anomaly", their masks in `ground_truth/`, in `masks/` or beside them.

    In 2 and 3 the folders `good/`, `ok/` and `normal/` hold good images, masks are named as for
    `adtr.data.folder.open_dataset`, and `x.json` beside `x.png` is taken as what LabelMe drew on it, unless it has a
    mask. It also names the defect type of images directly inside, which are good if nothing is drawn on them.

    An image that is also among the good ones, byte for byte, is an anomaly.

    Args:
        root: The folder.
        annotations: The COCO file, wherever it lies; its images must lie in the folder.

    Raises:
        DataError: No such folder, no anomalies in it, or an annotation file that is broken, ambiguous, or names an
            image that is not inside the folder.
        ImageError: An image cannot be read to be compared with the others.
    """
    root = Path(root)
    images = list_images(root)  # fails with the right message if this is no readable folder
    content: object = None
    notes: list[str] = []
    if annotations is None:
        annotations, content, notes = _find_coco(root, images)
    else:
        content = read_json(Path(annotations))
    if annotations is not None:
        samples, good = _from_coco(root, Path(annotations), content)
    else:
        samples, good, more = _from_folders(root / "test" if _has_types(root / "test") else root, root)
        notes += more
    if not samples:
        raise DataError(
            f"no anomalies found in {root}: expected a folder of images per defect type, test/<type>/ as in MVTec, "
            "images directly inside, or a COCO file that lists them "
            f"({', '.join(sorted(suffix[1:] for suffix in IMAGE_SUFFIXES))})"
        )
    good, more = _without_contradictions(samples, good)
    return Anomalies(
        root=root,
        samples=sorted(samples, key=lambda sample: (sample.defect_type, sample.path.as_posix())),
        good=sorted(good),
        notes=notes + more + _good_notes(good),
    )


def mask_notes(fractions: Mapping[Path, float]) -> list[str]:
    """Remarks on masks that may be a mistake.

    Args:
        fractions: The share, 0..1, of marked pixels in each image that has a mask, by the image's path. For an empty
            one, of which `Anomaly.read_mask` returns None, it is 0.

    Returns:
        Sentences that name the images whose mask is empty, and those of which more than 80 % are marked.
    """
    notes = []
    empty = [_short(path) for path, fraction in fractions.items() if fraction == 0]
    if empty:
        text = "has an empty mask; only its label is" if len(empty) == 1 else "have empty masks; only their labels are"
        notes.append(f"{_listed(empty)} {text} used")
    full = [(_short(path), f"{100 * share:.0f} %") for path, share in fractions.items() if share > _MOST_OF_AN_IMAGE]
    if full:
        text = f"the mask of {full[0][0]} marks {full[0][1]} of the image"
        if len(full) > 1:
            text = f"the masks of {_listed([f'{name} ({share})' for name, share in full])} mark most of their images"
        notes.append(f"{text}; if white means good in your masks, invert them")
    return notes


def _find_coco(root: Path, images: list[Path]) -> tuple[Path | None, object, list[str]]:
    """The folder's COCO file and its content, if there is one, and remarks on files that are none."""
    stems = {path.stem for path in images}  # files of these names are LabelMe's
    candidates = [path for path in sorted(root.glob("*.json")) if path.stem not in stems]
    candidates += sorted(root.glob("annotations/*.json"))
    contents = {path: read_json(path) for path in candidates if path.is_file() and not path.name.startswith(".")}
    found = [path for path, content in contents.items() if is_coco(content)]
    if len(found) > 1:
        raise DataError(
            f"several COCO files in {root}: {_listed([path.name for path in found])}; say which one to take"
        )
    if found:
        return found[0], contents[found[0]], []
    others = [path.name for path in contents]
    return None, None, [f"no COCO file, and beside no image, so left aside: {_listed(others)}"] if others else []


def _from_coco(root: Path, path: Path, content: object) -> tuple[list[Anomaly], list[Path]]:
    found: dict[Path, Annotation | None] = {}
    for name, annotation in parse_coco(content, path).items():
        image = _inside(root, path.parent, name)
        if image is None or image in found:
            reason = "is listed twice" if image else f"does not exist; it must be relative and stay inside {root}"
            raise DataError(f"cannot use annotations {path}: image {name!r} {reason}")
        found[image] = annotation
    samples = [Anomaly(path=image, defect_type=told[0], mask=told[1]) for image, told in found.items() if told]
    return samples, [image for image, told in found.items() if not told]


def _inside(root: Path, folder: Path, name: str) -> Path | None:
    """The image that a COCO file in some folder names; None if there is none in the root."""
    relative = PurePosixPath(name.replace("\\", "/"))  # some tools write Windows paths
    if relative.is_absolute() or PureWindowsPath(name).drive:
        return None
    try:
        inside = root.resolve()
        for base in (folder, root, root / "images"):
            parent = (base / relative).parent.resolve()
            if parent.is_relative_to(inside) and (parent / relative.name).is_file():
                return root / parent.relative_to(inside) / relative.name
    except (OSError, ValueError, RuntimeError):  # a name that no file can have, or a loop of links
        pass
    return None


def _has_types(folder: Path) -> bool:
    return folder.is_dir() and any(list_images(subfolder) for subfolder in subfolders(folder))


def _from_folders(folder: Path, root: Path) -> tuple[list[Anomaly], list[Path], list[str]]:
    """The anomalies and the good images of a folder and of those in it; masks may also lie in folders of the root."""
    samples: list[Anomaly] = []
    good: list[Path] = []
    notes: list[str] = []
    for subfolder in [folder, *(path for path in subfolders(folder) if path.name not in MASK_FOLDERS)]:
        images, beside = split_off_masks(list_images(subfolder))
        type_name = "" if subfolder == folder else subfolder.name
        if type_name.lower() in GOOD_NAMES:
            good += images
            continue
        indexes = [*(mask_index(root / name / type_name) for name in MASK_FOLDERS), index_by_stem(beside)]
        masks = {path: find_mask(path.stem, indexes) for path in images}
        drawn = _read_labelme(images)
        for path, mask in masks.items():
            annotation = drawn.get(path)
            if not (type_name or mask or annotation) and path in drawn:
                good.append(path)
                continue
            label, shapes = annotation or (UNNAMED, None)
            samples.append(Anomaly(path=path, defect_type=type_name or label, mask=mask or shapes))
        if drawn and (bare := [_short(path) for path in images if not masks[path] and path not in drawn]):
            notes.append(f"without a LabelMe file or a mask, but taken as anomalies: {_listed(bare)}")
    return samples, good, notes


def _read_labelme(images: list[Path]) -> dict[Path, Annotation | None]:
    """What is drawn on those images that have a JSON file beside them."""
    files = {path: path.with_suffix(".json") for path in images}
    return {path: parse_labelme(read_json(file), file) for path, file in files.items() if file.is_file()}


def _without_contradictions(samples: list[Anomaly], good: list[Path]) -> tuple[list[Path], list[str]]:
    """The good images that are not byte for byte anomalies as well, and remarks on contradictory labels."""
    types = {sample.path: sample.defect_type for sample in samples}
    both: list[str] = []
    ambiguous: list[str] = []
    for same in _same_bytes([*types, *good]):
        names = " = ".join(_short(path) for path in same)
        if len({types[path] for path in same if path in types}) > 1:
            ambiguous.append(names)
        if any(path in types for path in same) and not all(path in types for path in same):
            both.append(names)
            good = [path for path in good if path not in same]
    notes = []
    if both:
        text = "the same image is among the good ones and the anomalies, and counts as an anomaly"
        notes.append(f"{text}: {_listed(both)}")
    if ambiguous:
        notes.append(f"the same image has several defect types: {_listed(ambiguous)}")
    return good, notes


def _same_bytes(paths: list[Path]) -> list[list[Path]]:
    """Groups of byte-identical files; only files of equal size are read."""
    same_size = _groups(paths, lambda path: path.stat().st_size if path.is_file() else None)
    return [same for group in same_size for same in _groups(group, content_hash)]


def _groups(paths: list[Path], key: Callable[[Path], Hashable]) -> list[list[Path]]:
    """Those that share their key with others."""
    groups: defaultdict[Hashable, list[Path]] = defaultdict(list)
    for path in paths:
        groups[key(path)].append(path)
    return [group for group in groups.values() if len(group) > 1]


def _good_notes(good: list[Path]) -> list[str]:
    counts = sorted(Counter(path.parent for path in good).items())
    one, more = "image in {} is a good one and was", "images in {} are good ones and were"
    return [f"{n} {(one if n == 1 else more).format(folder)} left out of the anomalies" for folder, n in counts]


def _short(path: Path) -> str:
    return f"{path.parent.name}/{path.name}"


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMES_IN_A_NOTE
    return ", ".join(names[:_NAMES_IN_A_NOTE]) + (f" and {more} more" if more > 0 else "")
