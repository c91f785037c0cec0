"""The API: verdicts, maps, limits, tokens, what every answer carries."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import struct
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from adtr.calibration import Thresholds
from adtr.detector import AnomalyDetector
from adtr.report.pictures import scale_map, shown_range
from adtr.serve import answers
from adtr.serve.app import create_app
from adtr.serve.models import Models
from adtr.serve.service import Settings
from adtr.serve.uploads import MAX_IMAGES
from conftest import Serve, good_image, png

PREDICT = "/v1/models/discs/predict"
PNG = {"Content-Type": "image/png"}
HALF = png(good_image(np.random.default_rng(5)))[:5000]


@pytest.fixture(scope="module")
def client(serve: Serve) -> Iterator[TestClient]:
    """One that all tests share which change nothing."""
    with serve() as shared:
        yield shared


def problem(response: httpx.Response) -> str:
    """The one sentence of a refusal."""
    values = response.json()
    assert set(values) == {"error", "request_id"}
    assert values["request_id"] == response.headers["x-request-id"]
    assert values["error"]
    assert "\n" not in values["error"]
    assert "Traceback" not in values["error"]
    return values["error"]


def decoded(values: dict[str, Any]) -> np.ndarray:
    data = base64.b64decode(values["data"])
    if values["encoding"] == "png":
        with Image.open(io.BytesIO(data)) as image:
            return np.asarray(image)
    return np.frombuffer(data, "<f4").reshape(values["height"], values["width"])


def test_a_raw_body_gets_the_detector_s_verdict(
    client: TestClient, detector: AnomalyDetector, good_png: bytes, bad_png: bytes
) -> None:
    for data in (good_png, bad_png):
        answer = client.post(PREDICT, content=data, headers=PNG).json()
        expected = detector.predict([data])[0]
        (row,) = answer["predictions"]
        assert row["score"] == pytest.approx(expected.score, rel=1e-5)
        assert row["p_value"] == expected.p_value
        assert row["severity"] == pytest.approx(expected.severity, rel=1e-3)
        assert row["threshold"] == expected.thresholds.image
        assert row["verdict"] == expected.verdict
        assert row["is_anomalous"] is expected.is_anomalous
        assert (row["height"], row["width"]) == expected.size
        assert [region["box"] for region in row["regions"]] == [list(region.box) for region in expected.regions]
        assert row["map"] is None
        assert answer["model"] == "discs"
        assert answer["thresholds"]["description"] == expected.thresholds.describe()
    assert row["is_anomalous"]


def test_a_form_holds_several_images_in_order(client: TestClient, good_png: bytes, bad_png: bytes) -> None:
    files = [("images", ("a.png", good_png)), ("x", ("../../etc/<b>b.png", bad_png)), ("images", ("c", good_png))]
    answer = client.post(PREDICT, files=files).json()
    assert [row["name"] for row in answer["predictions"]] == ["a.png", "<b>b.png", "c"]
    assert [row["is_anomalous"] for row in answer["predictions"]] == [False, True, False]


def test_maps_come_as_asked(client: TestClient, detector: AnomalyDetector, bad_png: bytes) -> None:
    expected = detector.predict([bad_png])[0]
    maps = {
        kind: client.post(f"{PREDICT}?map={kind}", content=bad_png, headers=PNG).json()["predictions"][0]["map"]
        for kind in ("float", "grid", "png")
    }
    np.testing.assert_allclose(decoded(maps["float"]), expected.anomaly_map, rtol=1e-4)
    np.testing.assert_allclose(decoded(maps["grid"]), expected.score_map, rtol=1e-4)
    low, high = shown_range(expected.thresholds.pixel)
    assert (maps["png"]["low"], maps["png"]["high"]) == (low, high)
    gray = scale_map(expected.anomaly_map, low=low, high=high) * 255
    np.testing.assert_allclose(decoded(maps["png"]), gray, atol=0.6)


def test_maps_of_too_many_pixels_are_refused(
    client: TestClient, good_png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MAX_MAP_PIXELS", 96 * 96)
    assert client.post(f"{PREDICT}?map=png", content=good_png, headers=PNG).status_code == 200
    files = [("images", good_png)] * 2
    refused = client.post(f"{PREDICT}?map=png", files=files)
    assert refused.status_code == 413
    assert "map=grid" in problem(refused)
    assert client.post(f"{PREDICT}?map=grid", files=files).status_code == 200


def test_models_are_described_with_what_the_page_needs(client: TestClient, detector: AnomalyDetector) -> None:
    (summary,) = client.get("/v1/models").json()["models"]
    assert summary["name"] == "discs"
    assert summary["thresholds"]["image"] == detector.thresholds_.image
    details = client.get("/v1/models/discs").json()
    assert {name: details[name] for name in summary} == summary
    assert tuple(details["calibration"]["image_scores"]) == detector.calibration_.image_scores
    assert tuple(details["calibration"]["pixel_maxima"]) == detector.calibration_.pixel_maxima


def huge_png(side: int) -> bytes:
    """A valid head of an image that would fill the memory."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def gif(frames: int) -> bytes:
    buffer = io.BytesIO()
    pictures = [Image.new("P", (8, 8), i % 256) for i in range(frames)]
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:])
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"hello", "not an image"),
        (b"", "not an image"),
        (HALF, "truncated"),
        (huge_png(50_000), "exceed"),
        (gif(1000), "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        (huge_png(0), ""),
    ],
    ids=["text", "nothing", "truncated", "huge", "many frames", "postscript", "no pixels"],
)
def test_what_is_no_image_is_refused_and_the_server_lives_on(
    data: bytes, words: str, client: TestClient, good_png: bytes
) -> None:
    for request in ({"content": data, "headers": PNG}, {"files": {"images": ("x.png", data)}}):
        refused = client.post(PREDICT, **request)
        assert refused.status_code == 400
        assert words in problem(refused)
    assert "x.png" in problem(refused)
    assert client.post(PREDICT, content=good_png, headers=PNG).status_code == 200
    assert client.app.state.service.batcher.reserved == 0  # type: ignore[attr-defined]
    assert client.app.state.service.uploads.held == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/json", "", "application/x-www-form-urlencoded", "video/mp4"]
)
def test_other_content_types_are_refused(kind: str, client: TestClient, good_png: bytes) -> None:
    refused = client.post(PREDICT, content=good_png, headers={"Content-Type": kind})
    assert refused.status_code == 415
    assert "image/png" in problem(refused)


@pytest.mark.parametrize(
    ("content", "boundary"),
    [(b"", "; boundary=x"), (b"--x\r\nrubbish", "; boundary=x"), (b"--x--\r\n", "; boundary=x"), (b"abc", "")],
)
def test_broken_forms_are_refused(content: bytes, boundary: str, client: TestClient) -> None:
    refused = client.post(PREDICT, content=content, headers={"Content-Type": f"multipart/form-data{boundary}"})
    assert refused.status_code == 400
    assert "form" in problem(refused)


def test_too_many_files_are_refused(client: TestClient) -> None:
    refused = client.post(PREDICT, files=[("images", b"x")] * (MAX_IMAGES + 1))
    assert refused.status_code == 400
    assert str(MAX_IMAGES) in problem(refused)


def call(client: TestClient, kind: str, messages: Iterable[dict[str, Any]]) -> tuple[int, dict[str, Any]]:
    """The status and the JSON of a request whose body comes in pieces, each made when it is asked for."""
    body, sent = iter(messages), []

    async def receive() -> dict[str, Any]:
        message = next(body, None)
        return message if message is not None else await asyncio.sleep(60, {"type": "http.disconnect"})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"content-type", kind.encode())]
    scope = {"type": "http", "method": "POST", "path": PREDICT, "query_string": b"", "headers": headers}
    asyncio.run(client.app(scope, receive, send))  # type: ignore[arg-type]
    assert client.app.state.service.uploads.held == 0  # type: ignore[attr-defined]
    if not sent:
        return 0, {}
    return sent[0]["status"], json.loads(b"".join(message.get("body", b"") for message in sent[1:]))


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=x"])
def test_a_large_upload_is_refused_before_it_is_read(kind: str, client: TestClient) -> None:
    """By its Content-Length, or where there is none when the limit is reached."""
    refused = client.post(PREDICT, content=b"x", headers={"Content-Type": kind, "Content-Length": "1000000000"})
    assert refused.status_code == 413
    assert "20000000 bytes" in problem(refused)
    sent = 0

    def gigabyte() -> Iterator[dict[str, Any]]:
        nonlocal sent
        head = b'--x\r\nContent-Disposition: form-data; name="a"; filename="a"\r\n\r\n'
        yield {"type": "http.request", "body": head, "more_body": True}
        for _ in range(1000):
            sent += 1
            yield {"type": "http.request", "body": bytes(1_000_000), "more_body": True}

    status, answer = call(client, kind, gigabyte())
    assert (status, answer["error"]) == (413, "the upload exceeds the limit of 20000000 bytes")
    assert sent == 20


@pytest.mark.parametrize("kind", ["image/png", "multipart/form-data; boundary=x"])
def test_a_client_that_stalls_is_told_and_one_that_goes_is_no_failure(kind: str, serve: Serve) -> None:
    with serve(stall_seconds=0.1) as client:
        start = {"type": "http.request", "body": b"--x\r\n", "more_body": True}
        status, answer = call(client, kind, [start])
        assert (status, answer["error"]) == (408, "nothing was sent for 0.1 s")
        assert call(client, kind, [start, {"type": "http.disconnect"}]) == (0, {})
        assert 'status="499"' in client.get("/metrics").text


def test_uploads_share_a_bounded_memory(serve: Serve) -> None:
    with serve(max_upload=1000) as client:
        uploads = client.app.state.service.uploads  # type: ignore[attr-defined]
        uploads.held = 16 * 1000
        refused = client.post(PREDICT, content=b"x", headers=PNG)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        problem(refused)
        uploads.held = 0
        assert client.post(PREDICT, content=b"x", headers=PNG).status_code == 400


def test_unknown_things_are_told_in_one_form(client: TestClient, good_png: bytes) -> None:
    for response, status in (
        (client.get("/nowhere"), 404),
        (client.get("/v1/models/other"), 404),
        (client.post("/v1/models/other/predict", content=good_png, headers=PNG), 404),
        (client.get(PREDICT), 405),
        (client.post(f"{PREDICT}?map=gif", content=good_png, headers=PNG), 422),
        (client.get("/page/../../pyproject.toml"), 404),
        (client.get("/docs"), 404),
    ):
        assert response.status_code == status
        problem(response)


def test_a_token_is_needed_where_there_is_one(serve: Serve, good_png: bytes) -> None:
    with serve(token="secret-token") as client:
        for path in ("/", "/page.js", "/page.css", "/healthz", "/readyz", "/openapi.json"):
            assert client.get(path).status_code == 200
        for given in (None, "Bearer wrong", "Bearer ", "Basic secret-token", "secret-token", "Bearer sécret"):
            headers = {} if given is None else {"Authorization": given.encode("utf-8")}
            for response in (
                client.get("/v1/models", headers=headers),
                client.get("/metrics", headers=headers),
                client.post(PREDICT, content=good_png, headers={**PNG, **headers}),
                client.post(PREDICT, content=b"x", headers={**headers, "Content-Length": "1000000000"}),
            ):
                assert response.status_code == 401
                assert response.headers["www-authenticate"] == "Bearer"
                assert "token" in problem(response)
        headers = {"Authorization": "Bearer secret-token"}
        assert client.get("/v1/models", headers=headers).status_code == 200
        assert client.post(PREDICT, content=good_png, headers={**PNG, **headers}).status_code == 200
        assert 'adtr_rejected_total{reason="token"} 24.0' in client.get("/metrics", headers=headers).text


def test_the_token_is_compared_in_constant_time(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    monkeypatch.setattr("hmac.compare_digest", lambda a, b: calls.append((a, b)) or a == b)
    with serve(token="secret-token") as client:
        client.get("/v1/models", headers={"Authorization": "Bearer secret-tokem"})
    assert calls == [(b"secret-tokem", b"secret-token")]


def test_without_a_token_no_other_site_s_page_gets_in(serve: Serve, client: TestClient) -> None:
    for host in ("localhost", "localhost:8000", "127.0.0.1:8000", "[::1]:8000", "192.168.1.7"):
        assert client.get("/v1/models", headers={"Host": host}).status_code == 200
        assert client.get("/v1/models", headers={"Host": host, "Origin": f"http://{host}"}).status_code == 200
    for headers in (
        {"Host": "rebound.example"},
        {"Host": "[::"},
        {"Host": ""},
        {"Origin": "https://other.example"},
        {"Origin": "null"},
    ):
        refused = client.get("/v1/models", headers=headers)
        assert refused.status_code == 403
        problem(refused)
    with serve(local=False) as open_to_all:
        assert open_to_all.get("/v1/models", headers={"Host": "inspection.example"}).status_code == 200


def test_answers_carry_an_id_and_protective_headers(client: TestClient) -> None:
    given = client.get("/healthz", headers={"X-Request-Id": "line-7/part.42"})
    assert given.headers["x-request-id"] == "line-7/part.42"
    made = [client.get("/healthz", headers={"X-Request-Id": "x" * 129}).headers["x-request-id"] for _ in range(2)]
    assert len(set(made)) == 2
    assert len(made[0]) == 32
    page = client.get("/")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"
    assert "access-control-allow-origin" not in page.headers


def test_nothing_on_the_page_comes_from_elsewhere(client: TestClient) -> None:
    texts = {path: client.get(path).text for path in ("/", "/page.js", "/page.css")}
    assert all("//" not in line.replace("// ", "") for text in texts.values() for line in text.splitlines())
    assert "{{" not in texts["/"]
    assert "innerHTML" not in texts["/page.js"]
    assert " style=" not in texts["/"]
    assert " on" + "click" not in texts["/"]


def test_metrics_count_what_was_done(serve: Serve, good_png: bytes, bad_png: bytes) -> None:
    with serve() as client:
        client.post(PREDICT, files=[("images", good_png), ("images", bad_png)])
        client.post(PREDICT, content=b"x", headers=PNG)
        client.get("/secret/path")
        client.request("SECRET", PREDICT)
        text = client.get("/metrics").text
    for line in (
        'adtr_images_total{model="discs",verdict="good"} 1.0',
        'adtr_images_total{model="discs",verdict="anomalous"} 1.0',
        'adtr_requests_total{method="POST",route="/v1/models/{name}/predict",status="200"} 1.0',
        'adtr_requests_total{method="any",route="other",status="404"} 1.0',
        'adtr_requests_total{method="any",route="/v1/models/{name}/predict",status="405"} 1.0',
        'adtr_rejected_total{reason="upload"} 1.0',
        'adtr_p_value_count{model="discs"} 2.0',
        "adtr_queue_images 0.0",
        'adtr_request_seconds_count{route="/v1/models/{name}/predict"} 3.0',
    ):
        assert line in text.splitlines()
    assert "secret" not in text.lower()


def test_requests_are_logged_as_json(client: TestClient, good_png: bytes, caplog: pytest.LogCaptureFixture) -> None:
    from adtr.serve.log import JsonLines

    with caplog.at_level(logging.INFO, "adtr.serve"):
        client.post(PREDICT, content=good_png, headers={**PNG, "X-Request-Id": "abc"})
        client.get("/healthz")
    (record,) = caplog.records
    line = json.loads(JsonLines().format(record))
    assert line["event"] == "request"
    assert (line["request_id"], line["status"], line["path"]) == ("abc", 200, PREDICT)
    assert (line["model"], line["images"], line["verdicts"]) == ("discs", 1, ["good"])


def test_a_bug_is_a_500_with_an_id_and_a_traceback_in_the_log_alone(
    serve: Serve, good_png: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serve() as client:
        detector = client.app.state.service.model("discs").detector
        monkeypatch.setattr(detector, "judge", lambda _: 1 / 0)
        failed = client.post(PREDICT, content=good_png, headers=PNG)
        assert failed.status_code == 500
        assert "ZeroDivisionError" not in problem(failed)
        assert "ZeroDivisionError" in caplog.text
        monkeypatch.undo()
        assert client.post(PREDICT, content=good_png, headers=PNG).status_code == 200


def test_the_queue_is_bounded(serve: Serve, good_png: bytes) -> None:
    with serve(queue=2) as client:
        batcher = client.app.state.service.batcher
        refused = client.post(PREDICT, files=[("images", good_png)] * 3)
        assert refused.status_code == 413  # never possible
        with batcher.reserve(1):
            assert client.post(PREDICT, content=good_png, headers=PNG).status_code == 200
            refused = client.post(PREDICT, files=[("images", good_png)] * 2)
            assert refused.status_code == 503
            assert int(refused.headers["retry-after"]) >= 1
            problem(refused)
        with batcher.reserve(2):
            assert client.post(PREDICT, content=good_png, headers=PNG).status_code == 503
        assert client.post(PREDICT, files=[("images", good_png)] * 2).status_code == 200
        assert 'adtr_rejected_total{reason="queue"} 2.0' in client.get("/metrics").text


def test_ready_ends_before_the_server_does(serve: Serve) -> None:
    with serve() as client:
        assert client.get("/readyz").json() == {"status": "ok"}
        client.app.state.service.batcher.close()
        response = client.get("/readyz")
        assert (response.status_code, response.json()) == (503, {"status": "stopping"})
        assert client.get("/healthz").status_code == 200


def test_a_replaced_model_answers_the_next_request(
    model: Path, detector: AnomalyDetector, tmp_path: Path, good_png: bytes
) -> None:
    folder = tmp_path / "line.adtr"
    detector.save(folder)
    models = Models({"line": folder}, AnomalyDetector.load)
    with TestClient(create_app(models, Settings()), base_url="http://localhost") as client:
        before = client.post("/v1/models/line/predict", content=good_png, headers=PNG).json()
        other = AnomalyDetector.load(model)
        other.set_rates(0.4)
        other.save(folder)
        end = time.monotonic() + 20
        while (after := client.get("/v1/models/line").json())["version"] == before["version"]:
            assert time.monotonic() < end
            assert client.post("/v1/models/line/predict", content=good_png, headers=PNG).status_code == 200
        assert after["thresholds"]["image"] == other.thresholds_.image < before["thresholds"]["image"]
        answer = client.post("/v1/models/line/predict", content=good_png, headers=PNG).json()
        assert answer["version"] == after["version"]


def test_thresholds_are_told_whole(client: TestClient, detector: AnomalyDetector) -> None:
    told = client.get("/v1/models/discs").json()["thresholds"]
    own = detector.thresholds_
    assert isinstance(own, Thresholds)
    assert told == {name: getattr(own, name) for name in told if name != "description"} | {
        "description": own.describe()
    }
