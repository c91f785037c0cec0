import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adtr.cli import main
from adtr.data.loading import load_images
from adtr.detector import AnomalyDetector
from adtr.errors import DataError
from adtr.experiments import runs
from adtr.experiments.features import SharedReader
from adtr.experiments.identity import Trace, reproduced
from adtr.experiments.plans import PLANS
from adtr.experiments.records import FILE, Records
from adtr.experiments.runs import Request, run
from adtr.experiments.subjects import InCifarSize, Subjects
from adtr.learning import learned
from adtr.progress import Silent
from conftest import SMALL, write_dataset

FAST = {**SMALL, "epochs": 2, "improve_epochs": 1, "learning_rate": 1e-3}
FLAGS = [text for name, value in FAST.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories."""
    folder = tmp_path_factory.mktemp("categories")
    for seed, name in enumerate(("zebra", "carpet")):
        write_dataset(folder / name, train=10, test=4, seed=seed)
    return folder


def experiment(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main(["experiment", "--preset", "quick", *FLAGS, *map(str, arguments)])
    return stop.value.code


def lines(output: Path) -> list[dict]:
    return [json.loads(line) for line in (output / FILE).read_text().splitlines()]


def test_mvtec_runs_reports_and_goes_on_where_it_was_cut(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    command = ("mvtec", "--data", root, "-o", output, "--jobs", 1)
    assert experiment(*command) == 0
    done = lines(output)
    assert [(r["category"], r["row"]) for r in done] == [
        ("carpet", "ADTR"), ("carpet", "ADTR+"), ("zebra", "ADTR"), ("zebra", "ADTR+")
    ]  # fmt: skip
    assert "1 left, about" in capsys.readouterr().err
    assert not any((output / runs.UNFINISHED).iterdir())
    first = done[0]
    assert first["config"]["epochs"] == 2
    assert first["metrics"]["pixel_auroc"] > 0
    assert (first["train"], first["test"], first["steps"]) == (10, 8, 2)
    assert first["seconds"] > 0
    assert first["processor_seconds"] > 0
    assert first["peak_memory_mib"] > 50
    assert first["versions"]["torch"]

    report = (output / "report.md").read_text()
    assert "| ADTR, measured |" in report
    assert "not run" in report
    page = (output / "report.html").read_text()
    assert "data:image/png;base64," in page
    assert "figures/" not in page
    assert {path.name for path in (output / "figures").iterdir()} == {
        "table-1.png", "table-1.pdf", "table-2.png", "table-2.pdf"
    }  # fmt: skip

    with (output / FILE).open("w") as file:  # a machine that went down, in the middle of the last line
        file.write("".join(json.dumps(r) + "\n" for r in done[:-1]) + json.dumps(done[-1])[:100])
    capsys.readouterr()
    assert experiment(*command) == 0
    assert "zebra seed 0 ADTR+" in capsys.readouterr().err
    again = lines(output)
    assert again[:-1] == done[:-1]
    assert again[-1]["metrics"] == done[-1]["metrics"]
    assert experiment(*command) == 0
    assert lines(output) == again


def test_an_output_holds_one_experiment_with_one_configuration(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    shared = ("--data", root / "zebra", "-o", output)
    assert experiment("ablation-levels", *shared) == 0
    assert {(r["category"], r["row"]) for r in lines(output)} == {("zebra", "Last-layer"), ("zebra", "Multi-scale")}
    capsys.readouterr()
    assert experiment("ablation-levels", *shared, "--alpha", "0.1") == 2
    assert "with alpha 0.01, not 0.1; choose another --output" in capsys.readouterr().err
    assert experiment("mvtec", *shared) == 2
    assert "holds results of ablation-levels" in capsys.readouterr().err


def test_numbers_are_those_of_the_detector_itself(root: Path, tmp_path: Path) -> None:
    request = Request(plan=PLANS["mvtec"], data=root, output=tmp_path, categories=["zebra"], preset="quick", given=FAST)
    records = Records(tmp_path, "mvtec")
    run(request, records, jobs=1, progress=Silent(), told=lambda *_: None)
    detector = AnomalyDetector.from_config(request.config(request.plan.rows[0], 0)).fit(root / "zebra")
    expected = detector.evaluate(root / "zebra").to_dict()
    found = records.records[0]["metrics"]
    assert found["images"] == expected["images"]
    for name in ("image_auroc", "pixel_auroc", "aupro"):
        assert found[name] == pytest.approx(expected[name], abs=2e-3)
    better = detector.improve(synthetic=["confetti"])
    assert records.records[1]["metrics"]["pixel_auroc"] == pytest.approx(
        better.evaluate(root / "zebra").pixel_auroc, abs=2e-3
    )


def test_reconstructors_and_seeds_share_one_pass_of_the_backbone(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    embed = learned.embed_images
    monkeypatch.setattr(learned, "embed_images", lambda n, s, **k: passes.append(len(s)) or embed(n, s, **k))
    plan = PLANS["ablation-attention"]
    request = Request(
        plan=plan, data=root / "zebra", output=tmp_path, seeds=(0, 1), preset="quick", given={**FAST, "epochs": 1}
    )
    records = Records(tmp_path, plan.name)
    run(request, records, jobs=1, progress=Silent(), told=lambda *_: None)
    assert passes == [10, 8]
    assert len(records.records) == 8
    assert {r["row"] for r in records.records} == {"CNN", "w/o Attn", "w/o Query", "Attn+Query"}
    assert len({r["metrics"]["pixel_auroc"] for r in records.records}) == 8


def test_rows_that_cannot_run_are_named_and_the_others_run(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("ablation-backbone", "--data", root / "zebra", "-o", tmp_path / "out")
    assert experiment(*command, "--backbone", "no_such_net,tf_efficientnet_lite0") == 0
    assert "not run: no_such_net: unknown backbone" in capsys.readouterr().err
    assert [r["row"] for r in lines(tmp_path / "out")] == ["tf_efficientnet_lite0"]
    assert "Not run: no_such_net" in (tmp_path / "out" / "report.md").read_text()
    assert experiment("mvtec", "--data", root, "-o", tmp_path / "other", "--backbone", "no_such_net") == 2
    assert "unknown backbone" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mvtec", "--seed", "1"), "takes --seeds"),
        (("mvtec", "--seeds", "a"), "--seeds takes whole numbers"),
        (("mvtec", "--categories", "zebr"), "did you mean zebra?"),
        (("cifar10",), "no CIFAR-10 in"),
        (("cifar10", "--peers"), "--peers belongs to the experiment mvtec"),
        (("mvtec", "--backbone", "a,b"), "takes one backbone, not 2"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment(*arguments, "--data", root, "-o", tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.fixture(scope="module")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny official batches: each class a colour."""
    folder = tmp_path_factory.mktemp("cifar") / "cifar-10-batches-bin"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        rows = b""
        for i in range(40):
            pixels = np.full((3, 32, 32), 20 * (i % 10), np.int64) + rng.integers(0, 40, (3, 1, 1))
            rows += bytes([i % 10]) + pixels.clip(0, 255).astype(np.uint8).tobytes()
        (folder / name).write_bytes(rows)
    return folder.parent


def test_cifar10_is_judged_by_both_protocols(cifar: Path, root: Path, tmp_path: Path) -> None:
    external = root / "zebra" / "train"
    command = ("cifar10", "--data", cifar, "-o", tmp_path / "out", "--categories", "bird", "--external", external)
    assert experiment(*command, "--image-size", 32, "--grid-size", 4) == 0
    adtr, plus = lines(tmp_path / "out")
    assert (adtr["row"], plus["row"]) == ("ADTR", "ADTR+")
    for record in (adtr, plus):
        assert (record["train"], record["test"], record["metrics"]["images"]) == (20, 40, 8)
        assert record["metrics"]["pixel_auroc"] is None
        assert 0 <= record["image_auroc_all"] <= 1
    assert adtr["metrics"]["image_auroc"] != plus["metrics"]["image_auroc"] or adtr["losses"] != plus["losses"]
    assert "Both test protocols" in (tmp_path / "out" / "report.md").read_text()


def test_external_images_come_in_the_size_of_cifar10(root: Path, tmp_path: Path) -> None:
    folder = root / "zebra" / "train"
    images = InCifarSize(folder)
    assert len(images) == 10
    assert [image.shape for image in images] == [(32, 32, 3)] * 10
    literal = Image.open(sorted(folder.rglob("*.png"))[3]).convert("RGB").resize((32, 32), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(images[3], literal)
    np.testing.assert_array_equal(images[2:4][1], literal)
    with pytest.raises(DataError, match="no images"):
        InCifarSize(tmp_path)


def test_classes_share_the_features_of_the_test_images(
    cifar: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes: list[int] = []
    embed = learned.embed_images
    monkeypatch.setattr(learned, "embed_images", lambda n, s, **k: passes.append(len(s)) or embed(n, s, **k))
    settings = tmp_path / "settings.yaml"
    settings.write_text("pool_size: 0.5\n")
    command = ("cifar10", "--data", cifar, "-o", tmp_path / "out", "--categories", "bird,cat", "--config", settings)
    assert experiment(*command, "--image-size", 32, "--grid-size", 4, "--jobs", 1) == 0
    assert passes == [20, 40, 20]
    assert [record["category"] for record in lines(tmp_path / "out")] == ["bird", "cat"]
    assert all(record["config"]["pool_size"] == 0.5 for record in lines(tmp_path / "out"))


def test_the_balanced_protocol_draws_as_many_from_the_others(cifar: Path) -> None:
    subject = Subjects("cifar10", cifar).open("cat")
    drawn = subject.balanced(0)
    kinds = [subject.types[i] for i in drawn]
    assert kinds.count("good") == 4
    assert len(drawn) == len(set(drawn)) == 8
    assert subject.balanced(0) == drawn
    assert any(subject.balanced(seed) != drawn for seed in range(1, 5))


def test_reproduced_is_one_for_a_copy_and_nothing_for_the_mean() -> None:
    features = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    mean = features.mean(dim=0)
    assert reproduced(features, torch.zeros(7, 3), mean) == 1
    assert reproduced(features, features - mean, mean) == pytest.approx(0, abs=1e-6)
    assert reproduced(features, 0.5 * (features - mean), mean) == pytest.approx(0.75)


def test_the_identity_is_traced_from_the_first_step_to_the_last(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert experiment("identity-shortcut", "--data", root / "zebra", "-o", output, "--epochs", 7) == 0
    for record in lines(output):
        steps = [point["step"] for point in record["curve"]]
        assert (steps[0], steps[-1]) == (0, 7)
        assert steps == sorted(set(steps))
        assert all(point["normal"] <= 1 and point["anomalous"] <= 1 for point in record["curve"])
    assert (output / "figures" / "identity-shortcut.pdf").is_file()
    report = (output / "report.md").read_text()
    assert "At the last step CNN reproduces" in report
    assert "A copy loses nothing" in report


def test_watching_does_not_change_the_training(root: Path, tmp_path: Path) -> None:
    def result(name: str, output: Path) -> list[float]:
        given = {**FAST, "epochs": 1}
        request = Request(plan=PLANS[name], data=root / "zebra", output=output, preset="quick", given=given)
        records = Records(output, name)
        run(request, records, jobs=1, progress=Silent(), told=lambda *_: None)
        return [r["metrics"]["pixel_auroc"] for r in records.records]

    assert result("identity-shortcut", tmp_path / "a") == result("ablation-attention", tmp_path / "b")


def test_a_trace_measures_good_anomalous_and_shuffled_positions(root: Path) -> None:
    detector = AnomalyDetector(**{**FAST, "holdout_min": 2}).fit(root / "zebra")
    subject, network = Subjects("mvtec", root).open("zebra"), detector.network_
    trace = Trace(subject, SharedReader(), detector.config)
    trace(network, 0)
    trace.finish(network, 5)
    first, last = trace.points
    assert {**first, "step": 5} == last

    good = [path for path, kind in zip(subject.test, subject.types, strict=True) if kind == "good"]
    pixels = torch.from_numpy(np.stack([image.pixels for image in load_images(good, (64, 64))]))
    with torch.no_grad():
        features = network.target(network.embedding(pixels))
        difference = features - network.reconstruction(features)
        turned = features.flip(1) - network.reconstruction(features.flip(1))
    mean = features.mean(dim=(0, 1))
    assert first["normal"] == pytest.approx(reproduced(features, difference, mean), abs=1e-4)
    assert first["shuffled"] != first["normal"]
    assert first["shuffled"] == pytest.approx(reproduced(features.flip(1), turned, mean), abs=0.3)
    assert first["anomalous"] not in (first["normal"], None)
    assert 0.5 < first["pixel_auroc"] < 1


@pytest.mark.slow
def test_categories_in_processes_give_the_same(root: Path, tmp_path: Path) -> None:
    outputs = [tmp_path / "one", tmp_path / "two"]
    for jobs, output in enumerate(outputs, 1):
        assert experiment("mvtec", "--data", root, "-o", output, "--jobs", jobs) == 0
    one, two = ({(r["category"], r["row"]): r["metrics"] for r in lines(output)} for output in outputs)
    assert set(one) == set(two)
    for key, metrics in one.items():  # as many threads as cores for each process, and rounding depends on them
        for name in ("image_auroc", "pixel_auroc", "aupro"):
            assert metrics[name] == pytest.approx(two[key][name], abs=1e-4)


def test_figures_are_drawn_once_the_detectors_are_there(root: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert experiment("figures", "--data", root, "-o", output) == 0
    drawn = {path.name for path in (output / "figures").iterdir()}
    expected = {"figure-3", "figure-4", "figure-5", "figure-A1-carpet", "figure-A-zebra"}
    assert drawn == {f"{name}.{kind}" for name in expected for kind in ("png", "pdf")}
    weights = output / "models" / "zebra" / "model.safetensors"
    made = weights.stat().st_mtime_ns
    assert experiment("figures", "--data", root, "-o", output) == 0
    assert weights.stat().st_mtime_ns == made
