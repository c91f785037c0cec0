"""Disks that are full, read-only or gone, and memory that does not suffice: one line, exit code 2, nothing lost."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adtr.cli import main
from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError
from adtr.store import FEATURES
from adtr.training import loop
from adtr.watching import RESULTS, FolderWatch
from conftest import SMALL

FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """Mounts a disk of a size, such as "2m"; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, timeout=10).returncode:
            pytest.skip("a small file system cannot be mounted here")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True, timeout=10)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def failure(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The only line that a command says, which fails."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    out, err = capsys.readouterr()
    assert (stop.value.code, out) == (2, "")
    assert err.startswith("adtr: error: ")
    assert err.count("\n") == 1
    return err


def test_features_for_which_there_is_no_room_keep_the_older_model(
    disk: Disk, model: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = disk("5m")
    shutil.copytree(model, root / "model")
    before = contents(root)
    arguments = [*FLAGS, "--epochs", "1", "--keep-features", "-q"]
    said = failure(capsys, "fit", dataset, "-o", root / "model", *arguments)
    assert FEATURES in said
    assert "No space left on device" in said
    assert contents(root) == before


def test_a_disk_that_turns_read_only_keeps_checkpoint_and_model(
    disk: Disk, model: Path, dataset: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = disk("20m")
    shutil.copytree(model, root / "model")
    saved = 0

    def save(*arguments: object) -> None:
        nonlocal saved
        saved += 1
        if saved == 2:
            subprocess.run(["mount", "-o", "remount,ro", str(root)], check=True, timeout=10)
        loop_save(*arguments)

    loop_save = loop.save_checkpoint
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    said = failure(capsys, "fit", dataset, "-o", root / "model", *FLAGS, "-q")
    assert "Read-only file system; choose another output" in said
    assert contents(root).keys() == {
        *(f"model/{name}" for name in contents(model)),
        "model.unfinished/checkpoint.safetensors",
    }
    assert contents(root / "model") == contents(model)
    for command in (
        ("fit", dataset, "-o", root / "new", *FLAGS),
        ("improve", model, "--synthetic", "scar", "-o", root / "new"),
        ("watch", dataset, "-m", model, "-o", root / "new"),
        ("experiment", "mvtec", "--data", dataset, "-o", root / "new"),
        ("export", model, "-o", root / "new.onnx"),
        ("predict", model, dataset, "-o", root / "new.csv"),
    ):
        assert "Read-only file system" in failure(capsys, *command)

    subprocess.run(["mount", "-o", "remount,rw", str(root)], check=True, timeout=10)
    with pytest.raises(SystemExit) as stop:  # where it was, with what was kept
        main(["fit", str(dataset), "-o", str(root / "model"), *FLAGS, "-q", "--resume"])
    assert stop.value.code == 0
    assert AnomalyDetector.load(root / "model").metadata_["training"]["resumed_at"] == 1
    assert [path.name for path in root.iterdir()] == ["model"]


def test_a_work_folder_that_vanishes_costs_the_checkpoint_alone(
    dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(folder: Path, *arguments: object) -> None:
        shutil.rmtree(folder)
        loop_save(folder, *arguments)

    loop_save = loop.save_checkpoint
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    with pytest.raises(SystemExit) as stop:
        main(["fit", str(dataset), "-o", str(tmp_path / "model"), *FLAGS, "--epochs", "2", "-q"])
    assert stop.value.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_images_that_vanish_are_one_line(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = Path(shutil.copytree(dataset, tmp_path / "data"))
    place = AnomalyDetector.fit

    def vanish(self: AnomalyDetector, *arguments: object, **options: object) -> AnomalyDetector:
        shutil.rmtree(data)
        return place(self, *arguments, **options)

    monkeypatch.setattr(AnomalyDetector, "fit", vanish)
    assert "No such file" in failure(capsys, "fit", data, "-o", tmp_path / "model", *FLAGS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("sort", ["copy", "link", None])
def test_a_watch_whose_output_vanishes_does_not_begin_anew(
    sort: str | None, detector: AnomalyDetector, good_png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    watch = FolderWatch(tmp_path / "in", tmp_path / "out", sort=sort)  # type: ignore[arg-type]
    (tmp_path / "in/a.png").write_bytes(good_png)
    list(watch.look(detector))
    shutil.rmtree(tmp_path / "out")
    with pytest.raises(
        AdtrError, match=f"^cannot write .*{RESULTS}: No such file or directory; choose another output$"
    ):
        list(watch.look(detector))
    assert not (tmp_path / "out" / RESULTS).exists()


def test_a_watch_on_a_full_disk_loses_no_row(
    disk: Disk, detector: AnomalyDetector, good_png: bytes, tmp_path: Path
) -> None:
    root = disk("64k")
    (tmp_path / "in").mkdir()
    for i in range(60):
        (tmp_path / f"in/{i:02}.png").write_bytes(good_png)
    filler = root / "filler"
    filler.write_bytes(bytes(48 << 10))
    seen: list[str] = []
    watch = FolderWatch(tmp_path / "in", root / "out")

    def look(watch: FolderWatch) -> None:
        for _ in range(2):
            seen.extend(row["path"] for row in watch.look(detector))

    with pytest.raises(AdtrError, match="No space left on device; choose another output or make room"):
        look(watch)
    assert 0 < len(seen) < 60
    filler.unlink()
    look(FolderWatch(tmp_path / "in", root / "out"))
    lines = (root / "out" / RESULTS).read_text().splitlines()
    assert [line.split('"')[3] for line in lines] == sorted(seen) == [f"{i:02}.png" for i in range(60)]


@pytest.mark.parametrize(
    ("place", "lower"),
    [
        ("adtr.training.loop.create_optimizers", "not enough memory for training: take a smaller --batch-size"),
        ("adtr.training.features.to_tensor", "not enough memory for the features: take a smaller --grid-size"),
    ],
)
@pytest.mark.parametrize(
    "problem", [MemoryError(), RuntimeError("can't allocate memory"), RuntimeError("std::bad_alloc")]
)
def test_what_to_lower_where_memory_does_not_suffice(
    place: str, lower: str, problem: Exception, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr(place, fail)
    with pytest.raises(AdtrError, match=f"^{lower}"):
        AnomalyDetector(**SMALL).fit(dataset)


def test_what_to_lower_where_memory_does_not_suffice_to_predict(
    detector: AnomalyDetector, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(AnomalyDetector, "_compare", fail)
    with pytest.raises(AdtrError, match=r"^not enough memory for 16 images at a time: take a smaller --batch-size"):
        detector.predict(dataset / "test/good")


@pytest.mark.parametrize("code", [errno.EROFS, errno.EDQUOT, errno.EIO])
def test_what_the_system_refuses_is_no_bug(
    code: int, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code), "somewhere")

    monkeypatch.setattr(AnomalyDetector, "fit", fail)
    said = failure(capsys, "fit", dataset, "-o", tmp_path / "model")
    assert said == f"adtr: error: cannot use somewhere: {os.strerror(code)}\n"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space")
@pytest.mark.parametrize("mebibytes", [1500, 2000, 2500, 3500])
def test_a_limit_of_the_address_space_is_one_line(mebibytes: int, dataset: Path, tmp_path: Path) -> None:
    code = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_AS, ({mebibytes << 20},) * 2)\n"
        "import sys\nfrom adtr.cli import main\nmain(sys.argv[1:])"
    )
    arguments = ["fit", dataset, "-o", tmp_path / "model", *FLAGS, "-q"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(tmp_path / "model")
    if done.returncode:
        assert (done.returncode, done.stdout) == (2, "")
        assert "not enough memory" in done.stderr
        assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("default::adtr.errors.AdtrWarning")
def test_damaged_features_are_one_line_of_warning(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    AnomalyDetector(**{**SMALL, "epochs": 1}).fit(dataset, keep_features=True).save(tmp_path / "model")
    features = tmp_path / "model" / FEATURES
    features.write_bytes(features.read_bytes()[:-1])
    command = ["improve", tmp_path / "model", "--synthetic", "scar", "-o", tmp_path / "better", "-q"]
    with pytest.raises(SystemExit) as stop:
        main([*map(str, command), "--improve-epochs", "1"])
    said = capsys.readouterr().err
    assert stop.value.code == 0
    assert said.startswith(f"adtr: warning: {features} cannot be read: ")
    assert said.endswith("; the good images are read again where they are needed\n")
    assert said.count("\n") == 1
    assert AnomalyDetector.load(tmp_path / "better").features_ is not None
