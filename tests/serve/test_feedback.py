"""Marked images are kept where `adtr improve` reads them."""

from __future__ import annotations

from pathlib import Path

import pytest

from adtr.data.anomalies import open_anomalies
from adtr.serve import feedback
from conftest import Serve

MARK = "/v1/models/discs/feedback"
PNG = {"Content-Type": "image/png"}


def test_marked_images_are_what_improve_reads(serve: Serve, tmp_path: Path, good_png: bytes, bad_png: bytes) -> None:
    with serve(feedback=tmp_path / "kept") as client:
        for label, data in (("good", good_png), ("anomalous", bad_png), ("anomalous&defect=scratch", good_png)):
            response = client.post(f"{MARK}?label={label}", content=data, headers=PNG)
            assert response.status_code == 200
            assert (tmp_path / "kept" / response.json()["kept"]).read_bytes() == data
    found = open_anomalies(tmp_path / "kept/discs")
    assert [(sample.defect_type, sample.path.read_bytes()) for sample in found.samples] == [
        ("anomaly", bad_png),
        ("scratch", good_png),  # its last label counts
    ]
    assert found.good == []


@pytest.mark.parametrize(
    ("query", "status"),
    [("", 422), ("?label=maybe", 422), ("?label=anomalous&defect=../x", 422), ("?label=anomalous&defect=good", 422),
     ("?label=anomalous&defect=Masks", 422), ("?label=anomalous&defect=", 422)],
)  # fmt: skip
def test_labels_never_lead_elsewhere(query: str, status: int, serve: Serve, tmp_path: Path, bad_png: bytes) -> None:
    with serve(feedback=tmp_path / "kept") as client:
        response = client.post(MARK + query, content=bad_png, headers=PNG)
        assert response.status_code == status
        assert "\n" not in response.json()["error"]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_only_images_are_kept_and_not_without_end(
    serve: Serve, tmp_path: Path, good_png: bytes, bad_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feedback, "MAX_BYTES", len(good_png) + 10)
    with serve(feedback=tmp_path / "kept") as client:
        assert client.post(f"{MARK}?label=good", content=b"text", headers=PNG).status_code == 400
        assert client.post(f"{MARK}?label=good", content=good_png, headers=PNG).status_code == 200
        assert client.post(f"{MARK}?label=good", content=bad_png, headers=PNG).status_code == 507
    assert sum(path.is_file() for path in tmp_path.rglob("*")) == 1


def test_without_a_folder_there_is_no_such_route(serve: Serve, good_png: bytes) -> None:
    with serve() as client:
        assert client.post(f"{MARK}?label=good", content=good_png, headers=PNG).status_code == 404
        assert "feedback" not in str(client.get("/openapi.json").json()["paths"])
