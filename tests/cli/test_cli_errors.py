"""A user's mistake is one line that says what is wrong and what to do, exit code 2, and nothing half-written."""

import errno
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adtr.cli import main
from adtr.store import seal
from conftest import SMALL, Run

FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
Error = Callable[..., str]


@pytest.fixture
def error(capsys: pytest.CaptureFixture[str]) -> Error:
    """What a command that must fail says, after `adtr: error: `."""

    def call(*arguments: object) -> str:
        with pytest.raises(SystemExit) as stop:
            main([*map(str, arguments)])
        out, err = capsys.readouterr()
        assert stop.value.code == 2
        assert out == ""
        assert err.startswith("adtr: error: ")
        assert err.count("\n") == 1
        return err.removeprefix("adtr: error: ").strip()

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("fitt", "unknown command 'fitt'; did you mean fit?"),
        ("fit", "Missing argument 'DATA' (see `adtr fit --help`)"),
        ("fit DATA", "Missing option '--output'"),
        ("fit DATA -o m --epoch 3", "'--epochs'"),
        ("predict MODEL", "Missing argument 'PATH...'"),
        ("predict MODEL x --overlay y", "'--overlays'"),
        ("predict MODEL DATA --batch-size 0", "'--batch-size': 0 is not in the range"),
        ("predict MODEL DATA --on-error ignore", "'raise', 'skip'"),
        ("info MODEL MODEL", "unexpected extra argument"),
        ("info MODEL --jsn", "'--json'"),
        ("presets quik", "unknown preset 'quik'; did you mean quick?"),
        ("demo --texture wood", "'brick', 'gravel', 'grass'"),
        ("demo --seed -1", "0<=x<=2147483647"),
        ("demo --seed 2147483648", "0<=x<=2147483647"),
    ],
)
def test_mistyped_commands_and_options(
    arguments: str, words: str, error: Error, model: Path, dataset: Path, place: Path
) -> None:
    values = {"MODEL": str(model), "DATA": str(dataset)}
    assert words in error(*(values.get(word, word) for word in arguments.split()))
    assert list(place.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--epochs 0", "epochs must be at least 1, not 0"),
        ("--epochs many", "epochs takes a whole number, not 'many'"),
        ("--epochs 2.5", "epochs takes a whole number, not '2.5'"),
        ("--batch-size 0", "batch_size must be at least 1, not 0"),
        ("--width 30", "width 30 is not a multiple of heads 4"),
        ("--grid-size 1000", "grid_size must be from 1 to 512, not 1000"),
        ("--grid-size 4x4x4", "grid_size takes a number of pixels or tokens, or HEIGHTxWIDTH"),
        ("--learning-rate nan", "learning_rate takes a number, not 'nan'"),
        ("--standardize maybe", "standardize takes true or false, not 'maybe'"),
        ("--optimizer sgd", "unknown optimizer 'sgd' (known: adamw, muon)"),
        ("--preset quik", "unknown preset 'quik'; did you mean quick?"),
        ("--levels 9", "levels takes all, last, or numbers from 1 to 5 such as 2,3, not '9'"),
        ("--levels 0", "numbers from 1 to 5"),
        ("--levels some", "not 'some'"),
        ("--backbone tf_effcientnet_lite2", "did you mean tf_efficientnet_lite2?"),
        ("--backbone-weights nowhere.pt", "no such backbone weights file: nowhere.pt"),
        ("--device warp", "unknown device 'warp' (known: auto, cpu, cuda, cuda:N, mps)"),
        ("--device cuda:0;reboot", "unknown device 'cuda:0;reboot'"),
        ("--device meta", "no meta device; use --device cpu"),
        ("--holdout-min 23", "24 good images are too few"),
    ],
)
def test_values_that_cannot_be(flags: str, words: str, error: Error, dataset: Path, place: Path) -> None:
    assert words in error("fit", dataset, "-o", "model", *FLAGS, *flags.split())
    assert list(place.iterdir()) == []


def test_a_device_that_is_not_there(error: Error, model: Path, dataset: Path) -> None:
    import torch

    if torch.cuda.is_available():
        assert "CUDA device(s)" in error("predict", model, dataset, "--device", "cuda:99")
    else:
        assert "no cuda device; use --device cpu" in error("predict", model, dataset, "--device", "cuda")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("c.yaml", "epochs: 5\nepoch: 6\n", "unknown configuration field 'epoch'; did you mean epochs?"),
        ("c.yaml", "- epochs\n", "must hold names and values, not a list"),
        ("c.yaml", "epochs: [1\n", "cannot parse c.yaml"),
        ("c.yaml", "epochs: soon\n", "epochs takes a whole number, not 'soon'"),
        ("c.yaml", "epochs:\n", "epochs takes a whole number, not None"),
        ("c.yaml", "preset: quik\n", "unknown preset 'quik'; did you mean quick?"),
        ("c.yaml", "training: 5\n", "training"),
        ("c.toml", "[training]\nwidth = 64\n", "width belongs to [reconstruction], not [training]"),
        ("c.toml", "epochs = \n", "cannot parse c.toml"),
        ("c.toml", "epochs = true\n", "epochs takes a whole number, not True"),
        ("c.txt", "epochs: 5\n", "c.txt must end in .toml, .yaml or .yml"),
        ("c.yaml", None, "cannot read the configuration file c.yaml"),
    ],
)
def test_configuration_files(name: str, text: str | None, words: str, error: Error, dataset: Path, place: Path) -> None:
    if text is not None:
        (place / name).write_text(text)
    assert words in error("fit", dataset, "-o", "model", "--config", name)
    assert not (place / "model").exists()
    assert not (place / "model.unfinished").exists()


def test_a_configuration_file_that_is_a_folder_or_no_text(error: Error, dataset: Path, place: Path) -> None:
    (place / "c.yaml").mkdir()
    assert "cannot read the configuration file c.yaml" in error("fit", dataset, "-o", "m", "--config", "c.yaml")
    (place / "d.toml").write_bytes(b"\xff\xfe\x00")
    assert "cannot read the configuration file d.toml" in error("fit", dataset, "-o", "m", "--config", "d.toml")


def test_folders_without_good_images(error: Error, dataset: Path, place: Path) -> None:
    (place / "empty").mkdir()
    (place / "file").write_text("text")
    shutil.copytree(dataset / "test/dark", place / "defects/test/dark")
    assert "no images found in empty: expected train/good/" in error("fit", "empty", "-o", "model")
    assert "no such folder: nowhere" in error("fit", "nowhere", "-o", "model")
    assert "file is a file; a folder of images is expected" in error("fit", "file", "-o", "model")
    assert "no good images to learn from in defects" in error("fit", "defects", "-o", "model")
    assert not list(place.glob("model*"))


def test_images_that_are_none(error: Error, dataset: Path, place: Path) -> None:
    shutil.copytree(dataset / "train/good", place / "images")
    image = place / "images/000.png"
    whole = image.read_bytes()
    for content, words in {
        whole[:500]: "truncated",
        b"text": "not an image, empty or damaged (expected JPEG, PNG, BMP, TIFF or WebP)",
        b"": "not an image, empty or damaged",
    }.items():
        image.write_bytes(content)
        message = error("fit", "images", "-o", "model", *FLAGS)
        assert message.startswith("cannot read image images/000.png: ")
        assert words in message
    for path in (place / "images").iterdir():
        path.write_bytes(b"text")
    assert "none of the images could be read" in error("fit", "images", "-o", "model", *FLAGS, "--on-error", "skip")
    assert not list(place.glob("model*"))


def test_paths_to_predict(error: Error, model: Path, place: Path) -> None:
    (place / "empty").mkdir()
    (place / "notes.txt").write_text("text")
    Image.fromarray(np.zeros((4, 4), np.float32)).save(place / "map.tiff")
    assert error("predict", model, "nowhere") == "no such file or folder: nowhere"
    assert error("predict", model, "empty") == "no images in empty"
    assert "cannot read image notes.txt: not an image" in error("predict", model, "notes.txt")
    assert "it has 32-bit float pixels; convert it to 8 or 16 bit" in error("predict", model, "map.tiff")


def test_places_that_cannot_be_written(error: Error, model: Path, dataset: Path, place: Path) -> None:
    """Places below a file cannot be written by anybody; permissions do not stop root."""
    (place / "file").write_text("text")
    (place / "folder.csv").mkdir()
    image = dataset / "test/good/000.png"
    assert error("fit", dataset, "-o", "file") == "file is a file; choose another output"
    assert "cannot write file/model.unfinished: Not a directory" in error("fit", dataset, "-o", "file/model")
    assert "file is a file, not a folder" in error("predict", model, image, "-o", "file/scores.csv")
    assert "folder.csv is a folder, not a file" in error("predict", model, image, "-o", "folder.csv")
    assert "must end in .jsonl or .csv, not 's.txt'" in error("predict", model, image, "-o", "s.txt", "--maps", "maps")
    assert "file is a file, not a folder" in error("predict", model, image, "--maps", "file")
    assert "cannot write file/maps" in error("predict", model, image, "--maps", "file/maps")
    assert "cannot write file/x" in error("predict", model, image, "--overlays", "file/x", "-o", "scores.csv")
    assert "folder.csv is a folder, not a file" in error("evaluate", model, dataset, "-o", "folder.csv")
    assert "file is a file, not a folder" in error("evaluate", model, dataset, "--panels", "file")
    assert "file is a file" in error("demo", "-o", "file")
    assert sorted(path.name for path in place.iterdir()) == ["file", "folder.csv"]


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs /proc, which nobody can write")
def test_a_file_system_that_is_read_only(error: Error, model: Path, dataset: Path) -> None:
    assert "cannot write /proc/model.unfinished" in error("fit", dataset, "-o", "/proc/model")
    assert "cannot write /proc" in error("predict", model, dataset, "-o", "/proc/scores.csv")
    assert "cannot write /proc" in error("evaluate", model, dataset, "-o", "/proc/report.json")
    assert "cannot write /proc/demo" in error("demo", "-o", "/proc/demo")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not stop root")
def test_permissions(error: Error, model: Path, dataset: Path, place: Path) -> None:
    copy = Path(shutil.copytree(model, place / "model"))
    (copy / "model.safetensors").chmod(0)
    assert "Permission denied" in error("info", copy)
    (place / "locked").mkdir(mode=0o500)
    assert "Permission denied" in error("fit", dataset, "-o", place / "locked/model")


def test_outputs_that_adtr_has_not_written_are_not_replaced(error: Error, dataset: Path, place: Path) -> None:
    (place / "mine").mkdir()
    (place / "mine/metadata.json").write_text("{}")
    (place / "mine/index.html").write_text("")
    (place / "mine/data").mkdir()
    assert "mine holds data, which is no part of a model folder" in error("fit", dataset, "-o", "mine")
    assert "mine exists and is not an earlier demo" in error("demo", "-o", "mine")
    assert "exists and is not a model folder" in error("fit", dataset, "-o", place.parent)
    assert sorted(path.name for path in (place / "mine").iterdir()) == ["data", "index.html", "metadata.json"]
    os.chdir(place / "mine/data")
    for command in (("fit", dataset), ("demo",)):
        assert ". is the current folder, which cannot be replaced" in error(*command, "-o", ".")


def _edit_metadata(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    path = folder / "metadata.json"
    values = json.loads(path.read_text())
    change(values)
    values.pop("sha256")
    path.write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda m: (m / "model.safetensors").unlink(), "lacks model.safetensors; copy the whole folder again"),
        (lambda m: (m / "config.json").unlink(), "lacks config.json; copy the whole folder again"),
        (lambda m: (m / "metadata.json").unlink(), "is not a model folder: it has no metadata.json"),
        (lambda m: (m / "metadata.json").write_text("{"), "metadata.json cannot be read"),
        (lambda m: (m / "metadata.json").write_text("[]"), "metadata.json holds no JSON object"),
        (lambda m: (m / "config.json").write_text("{}"), "config.json is not what was saved (its SHA-256 differs)"),
        (lambda m: (m / "model.safetensors").write_bytes(b""), "model.safetensors is not what was saved"),
        (lambda m: _edit_metadata(m, lambda v: v.update(format=99)), "newer adtr (format 99); update adtr"),
        (lambda m: _edit_metadata(m, lambda v: v.pop("calibration")), "lacks what a model needs"),
        (lambda m: _edit_metadata(m, lambda v: v.update(format=1)), "an older adtr (format 1); fit it anew"),
        (lambda m: _edit_metadata(m, lambda v: v.pop("backbone")), "lacks what a model needs"),
        (lambda m: _edit_metadata(m, lambda v: v.pop("files")), "lacks what a model needs"),
    ],
)
def test_spoiled_models(
    spoil: Callable[[Path], object], words: str, error: Error, model: Path, dataset: Path, place: Path
) -> None:
    copy = Path(shutil.copytree(model, place / "copy"))
    spoil(copy)
    assert words in error("info", copy)
    assert words in error("predict", copy, dataset, "-o", "scores.csv", "--maps", "maps")
    assert words in error("evaluate", copy, dataset, "--panels", "panels")
    assert [path.name for path in place.iterdir()] == ["copy"]


def test_things_that_are_no_model(error: Error, dataset: Path, place: Path) -> None:
    (place / "file").write_text("text")
    assert error("info", "nowhere") == "the model nowhere does not exist; `adtr fit DATA --output MODEL` makes one"
    assert "file" in error("info", "file")
    assert "is not a model folder: it has no metadata.json" in error("predict", dataset, dataset)
    assert error("info", "a" * 300).endswith("File name too long")


def test_a_further_file_in_a_model_is_no_mistake(model: Path, dataset: Path, place: Path) -> None:
    copy = Path(shutil.copytree(model, place / "copy"))
    (copy / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit) as stop:
        main(["predict", str(copy), str(dataset / "test"), "-q"])
    assert stop.value.code == 0


def test_a_full_disk_while_saving_leaves_nothing(
    error: Error, dataset: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("adtr.files.os.fsync", full)
    message = error("fit", dataset, "-o", "model", *FLAGS, "--epochs", "1")
    assert "No space left on device; choose another output or make room" in message
    assert list(place.iterdir()) == []


def test_a_full_disk_keeps_the_older_model(error: Error, model: Path, dataset: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, timeout=10).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    try:
        shutil.copytree(model, disk / "model")
        before = {path.name: path.read_bytes() for path in (disk / "model").iterdir()}
        arguments = [*FLAGS, "--epochs", "1", "--width", "64", "--store-backbone"]
        assert "No space left on device" in error("fit", dataset, "-o", disk / "model", *arguments)
        assert {path.name: path.read_bytes() for path in (disk / "model").iterdir()} == before
        assert [path.name for path in disk.iterdir()] == ["model"]
        assert "is a mount point, which cannot be replaced" in error("fit", dataset, "-o", disk)
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=10)


@pytest.mark.parametrize(
    ("problem", "words"),
    [
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "--grid-size"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), "--batch-size"),
        (MemoryError(), "not enough memory"),
        (PermissionError(errno.EACCES, "Permission denied", "secret"), "cannot use secret: Permission denied"),
    ],
)
def test_what_the_machine_cannot_give(
    problem: Exception, words: str, error: Error, dataset: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise problem

    monkeypatch.setattr("adtr.detector.AnomalyDetector.fit", fail)
    assert words in error("fit", dataset, "-o", "model")
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("bug", [RuntimeError("unsupported memory format"), KeyError("x"), FileNotFoundError("page")])
def test_a_bug_is_no_user_s_mistake(
    bug: Exception, dataset: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise bug

    monkeypatch.setattr("adtr.detector.AnomalyDetector.fit", fail)
    with pytest.raises(type(bug)) as raised:
        main(["fit", str(dataset), "-o", "model"])
    assert raised.value is bug
    assert list(place.iterdir()) == []


def test_a_bug_ends_a_process_with_a_traceback_and_code_1(place: Path) -> None:
    code = "import adtr.config\nadtr.config.list_presets = None\nfrom adtr.cli import main\nmain(['presets'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=place)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_what_a_name_or_a_file_holds_is_shown_and_not_done(error: Error, model: Path, place: Path) -> None:
    assert "\\x1b[31mred" in error("predict", model, "\x1b[31mred\u202e.png")
    (place / "c.yaml").write_text('preset: "\\e]0;title\\a"')
    assert "\x1b" not in error("fit", place, "-o", "m", "--config", "c.yaml")


def test_a_line_has_an_end(error: Error, model: Path, place: Path) -> None:  # noqa: ARG001
    assert error("predict", model, "x" * 5000 + ".png").endswith("xxx...")


@pytest.mark.slow
def test_remarks_of_the_decoder_are_not_passed_on(run: Run, model: Path, place: Path) -> None:
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(place / "image.tif")
    data = bytearray((place / "image.tif").read_bytes())
    at = data.index(b"\x17\x01\x04\x00") + 4  # the count of the strips' sizes
    data[at : at + 4] = b"\xff\xff\xff\x00"
    (place / "image.tif").write_bytes(data)
    done = run("predict", model, "image.tif", "--quiet", cwd=place)
    assert "Warning" not in done.stderr
    assert done.stderr.count("\n") <= 1


def test_metadata_that_info_cannot_show_are_one_line(error: Error, model: Path, place: Path) -> None:
    copy = shutil.copytree(model, place / "copy")
    metadata = json.loads((copy / "metadata.json").read_text())
    trained = metadata["training"]
    for training in ({}, {**trained, "losses": []}, {**trained, "total_seconds": "long"}):
        metadata["training"] = training
        (copy / "metadata.json").write_text(json.dumps({**metadata, "sha256": seal(metadata)}))
        assert "are not what adtr writes" in error("info", copy)


def test_a_pipe_is_not_waited_for(error: Error, model: Path, place: Path) -> None:
    os.mkfifo(place / "image.png")
    assert "neither a file nor a folder" in error("predict", model, "image.png")
