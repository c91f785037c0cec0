"""Many products: one that fails stops no other, what is done is not done again, Ray and processes say the same."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from adtr.cli import main
from adtr.detector import AnomalyDetector
from adtr.scaling import products
from adtr.scaling.products import Order, fit_product
from conftest import SMALL, write_dataset

FAST = {**SMALL, "epochs": 2, "holdout_min": 4}
FLAGS = [text for name, value in FAST.items() for text in (f"--{name.replace('_', '-')}", str(value))]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A product with labelled defects, one with good images alone, one that is broken, and one with nothing inside."""
    folder = tmp_path / "products"
    write_dataset(folder / "disc", train=10, test=3)
    shutil.copytree(folder / "disc/train/good", folder / "plain")
    shutil.copytree(folder / "plain", folder / "broken")
    (folder / "broken/003.png").write_bytes(b"no image")
    (folder / "empty").mkdir()
    return folder


def fit_many(*arguments: object) -> object:
    with pytest.raises(SystemExit) as stop:
        main(["fit-many", *FLAGS, *map(str, arguments)])
    return stop.value.code


def summary(output: Path) -> dict[str, dict[str, Any]]:
    records = [json.loads(line) for line in (output / "summary.jsonl").read_text().splitlines()]
    assert [record["product"] for record in records] == sorted({record["product"] for record in records})
    return {record["product"]: record for record in records}


def test_what_can_be_fitted_is_fitted_and_only_what_changed_again(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert fit_many(root, "-o", output, "--jobs", 1) == 2
    out, err = capsys.readouterr()
    assert "plain: fitted in " in err
    last = err.splitlines()[-1]
    assert last.startswith("adtr: error: 2 of 4 products have no new model: broken, empty; ")
    assert out == (output / "summary.md").read_text()
    first = summary(output)
    assert "cannot read image" in first["broken"]["error"]
    assert "003.png" in first["broken"]["error"]
    assert "no images found in" in first["empty"]["error"]
    assert f"|  |  | {first['broken']['error']} |\n" in out
    detector = AnomalyDetector.load(output / "models/disc")
    assert first["disc"]["threshold"] == detector.thresholds_.image
    assert first["disc"]["promised_rate"] == detector.thresholds_.promised_rate == pytest.approx(0.2)
    metrics = detector.evaluate(root / "disc")
    assert first["disc"]["image_auroc"] == pytest.approx(metrics.image_auroc)
    assert (first["disc"]["images"], first["disc"]["test_images"]) == (10, 6)
    assert f"{metrics.image_auroc:.4f} |  |" in out
    assert "image_auroc" not in first["plain"]
    assert not any((output / "unfinished").glob("disc*"))

    fitted: list[str] = []
    real = products.fit_product
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "fit_product", lambda order, name: fitted.append(name) or real(order, name))
        assert fit_many(root, "-o", output, "--jobs", 1, "--on-error", "skip") == 2
        assert fitted == ["broken", "empty"]
        assert summary(output)["broken"]["skipped"] == 1
        shutil.rmtree(root / "empty")
        assert fit_many(root, "-o", output, "--jobs", 1, "-q") == 0
        Image.fromarray(np.zeros((96, 96, 3), np.uint8)).save(root / "plain/new.png")
        assert fit_many(root, "-o", output, "--jobs", 1, "-q") == 0
        assert fitted == ["broken", "empty", "plain"]
        assert summary(output)["plain"]["images"] == 11
        again = ("--on-error", "skip", "--epochs", 1)
        assert fit_many(root, "-o", output, "--jobs", 1, "-q", *again) == 0
        assert fitted == ["broken", "empty", "plain", "broken", "disc", "plain"]
    assert AnomalyDetector.load(output / "models/disc").config.training.epochs == 1


def test_a_product_may_choose_what_is_held_out(root: Path, tmp_path: Path) -> None:
    order = Order(root=root, output=tmp_path / "out", overrides={**FAST, "epochs": 1})
    (root / "disc/validation/good").mkdir(parents=True)
    for i in (0, 1, 2):
        shutil.move(root / f"disc/train/good/00{i}.png", root / f"disc/validation/good/00{i}.png")
    first = fit_product(order, "disc")
    assert (first["error"], first["images"], first["test_images"]) == (None, 10, 6)
    assert first["promised_rate"] == pytest.approx(1 / 4)
    shutil.move(root / "disc/validation/good/002.png", root / "disc/train/good/002.png")
    second = fit_product(order, "disc")
    assert second["stamp"] != first["stamp"]
    assert (second["images"], second["promised_rate"]) == (10, pytest.approx(1 / 3))


def test_a_product_that_was_cut_goes_on_from_its_checkpoint(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(root=root, output=tmp_path / "out", overrides=FAST)
    given: list[Path] = []
    real = AnomalyDetector.fit

    def cut(self: AnomalyDetector, images: object, **options: Any) -> AnomalyDetector:  # noqa: ANN401
        given.append(options["work_folder"])
        assert options["resume"]
        if len(given) == 1:
            raise KeyboardInterrupt
        return real(self, images, **options)

    monkeypatch.setattr(AnomalyDetector, "fit", cut)
    with pytest.raises(KeyboardInterrupt):
        fit_product(order, "plain")
    assert fit_product(order, "plain")["error"] is None
    other = Order(root=root, output=tmp_path / "out", overrides={**FAST, "epochs": 1})
    assert fit_product(other, "plain")["error"] is None
    assert given[0] == given[1] != given[2]  # of another configuration no checkpoint is taken


def test_a_bug_in_one_product_is_told_and_stops_no_other(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(AnomalyDetector, "fit", lambda *_, **__: {}["gone"])
    record = fit_product(Order(root=root, output=tmp_path / "out", overrides=FAST), "plain")
    assert record["error"] == "KeyError: 'gone'"
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--epochs", "0"), "epochs must be at least 1"),
        (("--preset", "no"), "unknown preset 'no'"),
    ],
)
def test_mistakes_are_one_line(
    root: Path, tmp_path: Path, arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_many(root, "-o", tmp_path / "out", *arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_folder_without_products_and_a_foreign_summary(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit_many(root / "plain", "-o", tmp_path / "out") == 2
    assert "no products in" in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out/summary.jsonl").write_text("{}\n")
    assert fit_many(root, "-o", tmp_path / "out") == 2
    assert "is no summary of products" in capsys.readouterr().err


def test_without_the_extra_it_is_named(root: Path, tmp_path: Path) -> None:
    code = "import sys\nsys.modules['ray'] = None\nfrom adtr.cli import main\nmain(sys.argv[1:])"
    for command in (("fit-many", root), ("predict", "model", root)):
        arguments = [*map(str, command), "-o", str(tmp_path / "out"), "--engine", "ray"]
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (
            2,
            "adtr: error: --engine ray needs ray: pip install 'adtr[ray]'\n",
        )


def dying(order: Order, product: str) -> dict[str, Any]:
    """Stands for `fit_product` where the system kills one process."""
    if product == "disc":
        os.kill(os.getpid(), 9)
    return {"product": product, "stamp": "s", "error": None, "root": str(order.root)}


@pytest.mark.slow
def test_a_process_that_dies_takes_no_other_with_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "fit_product", dying)
    order = Order(root=root, output=tmp_path / "out", overrides=FAST)
    records = products.fit_many(order, jobs=2, told=lambda *_: None)
    errors = {record["product"]: record["error"] for record in records}
    assert errors.pop("disc") == "its process died (out of memory?)"
    assert errors == {"plain": None, "broken": None, "empty": None}


@pytest.mark.slow
def test_ray_fits_what_processes_fit(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    pytest.importorskip("ray", reason="needs the extra ray")
    request.getfixturevalue("cluster")
    monkeypatch.chdir(root)
    shutil.rmtree(root / "empty")
    assert fit_many(".", "-o", tmp_path / "ray", "--engine", "ray", "--jobs", 1) == 2
    assert fit_many(root, "-o", tmp_path / "local", "--jobs", 2) == 2
    by_ray, local = summary(tmp_path / "ray"), summary(tmp_path / "local")
    assert set(by_ray) == {"disc", "plain", "broken"}
    assert "cannot read image" in by_ray["broken"]["error"]
    for product in ("disc", "plain"):
        assert by_ray[product]["threshold"] == pytest.approx(local[product]["threshold"], rel=0.05)
        assert (tmp_path / "ray/models" / product / "model.safetensors").is_file()
    assert by_ray["disc"]["image_auroc"] == pytest.approx(local["disc"]["image_auroc"], abs=0.05)
