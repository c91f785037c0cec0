"""`adtr monitor`: scores in, exit code 0 or 3 out."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adtr.cli import main
from adtr.cli.monitor import held_out_scores
from adtr.data.folder import content_hash
from adtr.detector import AnomalyDetector


def adtr(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments)])
    return stop.value.code


def write(path: Path, scores: np.ndarray) -> Path:
    rows = [{"path": f"{i}.png", "score": float(score)} for i, score in enumerate(scores)]
    if path.suffix == ".csv":
        path.write_text("path,score\n" + "".join(f'"{row["path"]}",{row["score"]}\n' for row in rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def scores(*parts: tuple[float, int], seed: int = 0) -> np.ndarray:
    """Normal scores: means and how many."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.normal(mean, 1, count) for mean, count in parts])


def test_in_control(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "scores.jsonl", scores((10, 400)))
    assert adtr("monitor", file, "-o", tmp_path / "report.json") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("in control after 400 images; score at 0.")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["images"], report["cause"]) == (400, None)
    assert (report["false_alarm_rate"], report["horizon"]) == (0.01, 10_000)
    assert list(report["fields"]) == ["score"]
    score = report["fields"]["score"]
    assert (score["images"], score["reference_images"], score["threshold"], score["alarm"]) == (300, 100, 2e6, None)
    assert adtr("monitor", file, "-q") == 0
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_an_alarm_is_told_twice_and_is_exit_code_3(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / f"scores{suffix}", scores((10, 300), (16, 80)))
    assert adtr("monitor", file, "--reference", 150, "-o", tmp_path / "report.json") == 3
    out, err = capsys.readouterr()
    first, settled = out.splitlines()
    assert err == ""
    assert first.startswith("alarm at image 15")
    assert "the conditions changed" in settled
    assert "100% of 3" in settled
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["cause"] == "conditions"
    alarm = report["fields"]["score"]["alarm"]
    assert alarm["text"] == settled
    assert alarm["since"] == 151
    assert alarm["kind"] == "conditions"


def test_the_held_out_images_of_a_model_are_the_reference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = scores((10, 60), seed=1).tolist()
    monkeypatch.setattr("adtr.cli.monitor.held_out_scores", lambda _: held_out)
    file = write(tmp_path / "scores.jsonl", scores((10, 50)))
    assert adtr("monitor", file, "--model", "m") == 0
    assert "in control after 50 images; score at " in capsys.readouterr().err
    assert adtr("monitor", write(file, scores((16, 8))), "--model", "m") == 3
    assert "alarm at image " in capsys.readouterr().out


def test_a_stream_is_watched_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values, state = scores((10, 250), (16, 60)), tmp_path / "state.json"
    whole = write(tmp_path / "whole.jsonl", values)
    assert adtr("monitor", whole) == 3
    expected = capsys.readouterr().out.splitlines()[-1]
    parts = (values[:200], values[200:240], values[240:270], values[270:])
    codes = [adtr("monitor", write(tmp_path / "part.jsonl", part), "--state", state) for part in parts]
    assert codes == [0, 0, 3, 3]
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert adtr("monitor", whole, "--state", state, "--horizon", 500) == 2
    assert "was made with false_alarm_rate 0.01, horizon 10000" in capsys.readouterr().err


def test_brightness_is_watched_too_and_shares_the_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    light = scores((120, 150), (100, 60), seed=2)
    rows = [{"score": a, "brightness": b} for a, b in zip(scores((10, 210)), light, strict=True)]
    file = tmp_path / "scores.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert adtr("monitor", file, "-o", tmp_path / "report.json") == 3
    assert "since about image 51 the brightness moved, median brightness 120 -> 100" in capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["cause"] == "conditions"
    assert [field["threshold"] for field in report["fields"].values()] == [4e6, 4e6]
    assert report["fields"]["score"]["alarm"] is None
    assert adtr("monitor", file, "--field", "score") == 0


def test_the_model_keeps_the_scores_that_predict_finds(
    model: Path, detector: AnomalyDetector, dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    held = set(detector.metadata_["data"]["held_out_hashes"])
    images = [path for path in sorted((dataset / "train/good").iterdir()) if content_hash(path) in held]
    assert sorted(p.score for p in detector.predict(images)) == pytest.approx(sorted(held_out_scores(model)), rel=1e-3)
    output = tmp_path / "scores.jsonl"
    assert adtr("predict", model, dataset / "test/good", "-o", output) == 0
    assert adtr("monitor", output, "--model", model) == 0
    err = capsys.readouterr().err
    assert "in control after 8 images; score at " in err
    assert err.endswith("brightness still gathers its reference, sharpness still gathers its reference\n")


def test_only_the_score_has_a_reference_in_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held_out = scores((10, 60), seed=1).tolist()
    monkeypatch.setattr("adtr.cli.monitor.held_out_scores", lambda _: held_out)
    file, state = tmp_path / "scores.csv", tmp_path / "state.json"
    for light, code in ((120, 0), (120, 0), (90, 3)):
        values = zip(scores((10, 70)), scores((light, 70)), strict=True)
        file.write_text("score,brightness\n" + "".join(f"{a},{b}\n" for a, b in values))
        assert adtr("monitor", file, "--model", "m", "--state", state) == code
    out, err = capsys.readouterr()
    assert "in control after 70 images; score at 0." in err
    assert "brightness still gathers its reference" in err
    assert "image 4" in out
    assert "the brightness moved" in out


def test_a_mistake_leaves_the_state_as_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, state = write(tmp_path / "scores.jsonl", scores((10, 150))), tmp_path / "state.json"
    assert adtr("monitor", file, "--state", state) == 0
    before = state.read_bytes()
    file.write_text(file.read_text() + "{\n")
    assert adtr("monitor", file, "--state", state) == 2
    assert "line 151" in capsys.readouterr().err
    assert state.read_bytes() == before


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 3: no JSON"),
        ("[1]", "line 3: a row of `adtr predict` is needed, not [1]"),
        ('{"path": "a"}', "line 3: it has no score; a finite number is needed"),
        ('{"score": "high"}', "line 3: its score is 'high'"),
        ('{"score": NaN}', "line 3: its score is nan"),
        ('{"score": null}', "line 3: its score is None"),
        ('{"score": true}', "line 3: its score is True"),
        ('{"score": [1]}', "line 3: its score is [1]"),
    ],
)
def test_a_malformed_row_is_named_by_its_line(
    line: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "scores.jsonl"
    file.write_text('{"score": 1}\n\n' + line + "\n")
    assert adtr("monitor", file) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("adtr: error: ")
    assert f"{file}, {words}" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.jsonl"], "cannot read nowhere.jsonl"),
        (["SCORES"], "has 20 rows, but --reference takes the first 100"),
        (["SCORES", "--reference", "5"], "'--reference'"),
        (["SCORES", "--false-alarm-rate", "0"], "false_alarm_rate must be above 0"),
        (["SCORES", "--horizon", "0"], "horizon must be at least 1"),
        (["SCORES", "--expected-anomalies", "0.5"], "expected_anomalies must be from 0 to 0.1"),
        (["SCORES", "--model", "nowhere"], "the model nowhere does not exist"),
        (["SCORES", "-o", "."], "is a folder, not a file"),
        (["SCORES", "--field", "size"], "line 1: it has no size"),
        (["SCORES", "--state", "SCORES"], "is not the state of a monitor; remove it"),
    ],
)
def test_mistakes(
    arguments: list[str],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "scores.jsonl", scores((10, 20)))
    assert adtr("monitor", *[str(file) if a == "SCORES" else a for a in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_stdin_is_taken_as_it_comes() -> None:
    command = [sys.executable, "-m", "adtr", "monitor", "-", "--reference", "100"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for score in scores((10, 200), (16, 20)):
            process.stdin.write(f'{{"score": {score}}}\n')
        process.stdin.flush()
        assert process.stdout.readline().startswith("alarm at image 10")  # while the stream goes on
        process.stdin.close()
        assert process.wait(timeout=60) == 3


def test_neither_torch_nor_pillow_is_imported(tmp_path: Path) -> None:
    file = write(tmp_path / "scores.jsonl", scores((10, 200)))
    code = (
        "import sys\nfrom adtr.cli import main\ntry:\n    main(sys.argv[1:])\n"
        "finally:\n    print(*{name.split('.')[0] for name in sys.modules}, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, "monitor", str(file)], capture_output=True, text=True)
    assert done.returncode == 0
    assert not {"torch", "timm", "sklearn", "scipy", "PIL"} & set(done.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("name", "line", "words"),
    [
        ("s.jsonl", b"\xff\xfe", "no UTF-8 text"),
        ("s.jsonl", b"[" * 100_000, "nested too deeply"),
        ("s.jsonl", b'{"score": 1' + b"0" * 400 + b"}", "its score is 1000"),
        ("s.jsonl", b'{"score": "' + b"9" * 100_000 + b'"}', "its score is '9999"),
        ("s.csv", b'"' + b"x" * 200_000 + b'",1', "no CSV (field larger than field limit"),
        ("s.csv", b"a,\xff", "no UTF-8 text"),
    ],
)
def test_hostile_rows_are_one_line(
    name: str, line: bytes, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / name, scores((10, 40)))
    file.write_bytes(file.read_bytes() + line + b"\n")
    assert adtr("monitor", file, "--reference", 10) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"adtr: error: {file}, ")
    assert words in err
    assert err.count("\n") == 1
    assert len(err) < 2000


def test_a_line_without_end_is_not_read_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("adtr.cli.monitor.MAX_LINE", 1000)
    file = tmp_path / "s.jsonl"
    file.write_text('{"score": ' + "1" * 10_000)
    assert adtr("monitor", file) == 2
    assert "line 1: it is longer than 1000 characters" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state["monitors"]["score"]["gains"].pop(),
        lambda state: state["monitors"]["score"].update(images=10**6),
        lambda state: state["monitors"]["score"].update(images=float("inf")),
        lambda state: state["monitors"]["score"].update(raised=[5, 900]),
        lambda state: state["monitors"]["score"]["evidence"].__setitem__(0, float("nan")),
        lambda state: state["monitors"]["score"]["config"].update(seed=0.5),
        lambda state: state["monitors"]["score"]["config"].update(horizon=float("inf")),
        lambda state: state["monitors"]["score"]["scores"].append(10**400),
        lambda state: state.update(images=float("inf")),
    ],
)
def test_a_state_whose_numbers_do_not_belong_together_is_refused(
    change: Callable[[dict[str, Any]], object], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, state = write(tmp_path / "s.jsonl", scores((10, 40))), tmp_path / "state.json"
    arguments = ("monitor", file, "--reference", 10, "--state", state, "-q")
    assert adtr(*arguments) == 0
    assert adtr(*arguments) == 0  # as it was written
    values = json.loads(state.read_text())
    change(values)
    state.write_text(json.dumps(values))
    assert adtr(*arguments) == 2
    assert "begin anew" in capsys.readouterr().err
