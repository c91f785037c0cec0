"""The API does what its own description says, whatever is sent."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext, suppress
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable

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
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    for kind in ("image/png", "image/jpeg", "image/bmp", "image/tiff", "image/webp", "application/octet-stream"):
        schemathesis.openapi.media_type(kind, st.just(good_png))
    config = Settings(token=token, feedback=tmp_path / "kept", max_upload=100_000)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    answers: Counter[tuple[str, int]] = Counter()
    with listening(create_app(Models({"discs": model}, AnomalyDetector.load), config)) as base:
        schema = schemathesis.openapi.from_url(f"{base}/openapi.json")
        for found in schema.get_all_operations():
            operation = found.ok()
            fixed = {"path_parameters": {"name": "discs"}} if "{name}" in operation.label else {}
            for mode, values in product(GenerationMode, [{}, fixed] if fixed else [{}]):

                @given(case=operation.as_strategy(mode, **values))
                @settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
                def check(case: schemathesis.Case) -> None:
                    # That a file of a form is an image is more than a schema can ask for.
                    is_form = case.media_type == "multipart/form-data"
                    excluded = [positive_data_acceptance] if is_form else []
                    response = case.call_and_validate(headers=headers, excluded_checks=excluded)
                    answers[case.operation.label, response.status_code] += 1

                with suppress(Unsatisfiable) if mode is GenerationMode.NEGATIVE else nullcontext():
                    check()  # nothing that could be wrong is sent to some routes
    assert len({label for label, status in answers if status == 200}) == 7
    assert {422, 404} <= {status for _, status in answers}
