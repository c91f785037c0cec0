"""The API does what its own description says, whatever is sent."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from adtr.detector import AnomalyDetector
from adtr.serve.app import create_app
from adtr.serve.models import Models
from adtr.serve.service import Settings
from conftest import listening


@pytest.mark.slow
@pytest.mark.parametrize("token", [None, "a-secret-token"])
def test_random_requests_find_nothing(token: str | None, model: Path, good_png: bytes, tmp_path: Path) -> None:
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import strategies as st
    from schemathesis import GenerationMode

    for kind in ("image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, st.just(good_png))
    config = Settings(token=token, feedback=tmp_path / "kept", max_upload=100_000)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    operations = 0
    with listening(create_app(Models({"discs": model}, AnomalyDetector.load), config)) as base:
        schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in GenerationMode:

                @given(case=operation.as_strategy(mode))
                @settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
                def check(case: schemathesis.Case) -> None:
                    case.call_and_validate(headers=headers)

                check()
            operations += 1
    assert operations == 7
