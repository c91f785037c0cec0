import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from adtr.errors import AdtrError
from adtr.training import feature_cache
from adtr.training.feature_cache import FeatureCache

IMAGES, TOKENS, CHANNELS = 150, 6, 5


def features(offset: float = 3.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    scale = torch.logspace(-2, 2, CHANNELS)
    return torch.randn(IMAGES, TOKENS, CHANNELS, generator=generator) * scale + offset * scale


def filled(rows: Tensor, **options: object) -> FeatureCache:
    cache = FeatureCache(*rows.shape, **options)
    for batch in rows.split(16):
        cache.append(batch)
    return cache


INDEX = torch.tensor([3, 0, 149, 77, 3])


@pytest.mark.parametrize("options", [{}, {"memory_limit": 0}], ids=["memory", "file"])
def test_float32_keeps_the_numbers(tmp_path: Path, options: dict[str, int]) -> None:
    rows = features()
    cache = filled(rows, dtype=torch.float32, folder=tmp_path, **options)
    assert len(cache) == IMAGES
    assert torch.equal(cache[INDEX], rows[INDEX])
    assert cache[INDEX].dtype == torch.float32


@pytest.mark.parametrize("options", [{}, {"memory_limit": 0}], ids=["memory", "file"])
def test_float16_halves_the_memory_and_keeps_three_digits(tmp_path: Path, options: dict[str, int]) -> None:
    rows = features()
    cache = filled(rows, folder=tmp_path, **options)
    assert cache.features.dtype == torch.float16
    assert cache[INDEX].dtype == torch.float32
    assert torch.equal(cache.on(torch.device("cpu"), INDEX), cache[INDEX])
    torch.testing.assert_close(cache[INDEX], rows[INDEX], rtol=1e-3, atol=1e-4)


def test_memory_and_file_agree_to_the_bit(tmp_path: Path) -> None:
    rows = features()
    in_memory, in_file = filled(rows), filled(rows, memory_limit=0, folder=tmp_path)
    assert torch.equal(in_memory[torch.arange(IMAGES)], in_file[torch.arange(IMAGES)])
    for a, b in zip(in_memory.statistics(INDEX), in_file.statistics(INDEX), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("limit", "in_file"), [(IMAGES * TOKENS * CHANNELS * 2, False), (IMAGES * TOKENS * CHANNELS * 2 - 1, True)]
)
def test_a_file_is_used_only_above_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int, in_file: bool
) -> None:
    made = []
    original = feature_cache.tempfile.mkstemp
    monkeypatch.setattr(feature_cache.tempfile, "mkstemp", lambda **options: made.append(1) or original(**options))
    FeatureCache(IMAGES, TOKENS, CHANNELS, memory_limit=limit, folder=tmp_path)
    assert bool(made) is in_file


def test_no_file_stays_behind(tmp_path: Path) -> None:
    cache = filled(features(), memory_limit=0, folder=tmp_path)
    if os.name == "posix":
        assert not list(tmp_path.iterdir())  # nothing to clean up, however the process ends
    cache.close()
    assert not list(tmp_path.iterdir())
    assert len(cache) == 0


def test_no_room_for_the_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_handle: int, _size: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(feature_cache, "_allocate", full)
    with pytest.raises(AdtrError, match=r"^no room for .* GB of features in .*TMPDIR.*$") as error:
        FeatureCache(IMAGES, TOKENS, CHANNELS, memory_limit=0, folder=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert os.strerror(errno.ENOSPC) in str(error.value)
    assert not list(tmp_path.iterdir())


def test_what_float16_cannot_hold_is_clamped() -> None:
    rows = torch.tensor([1e6, -1e6, 3.0, 0.0, 65504.0]).expand(2, TOKENS, CHANNELS)
    cache = filled(rows)
    assert cache[torch.tensor([0])][0, 0].tolist() == [65504.0, -65504.0, 3.0, 0.0, 65504.0]


@pytest.mark.parametrize("offset", [0.0, 3.0, 1000.0])
def test_statistics_are_numpys(offset: float) -> None:
    rows = features(offset)
    index = torch.arange(0, IMAGES, 2)
    mean, std = filled(rows, dtype=torch.float32).statistics(index)
    literal = rows.double().numpy()[::2].reshape(-1, CHANNELS)
    assert mean.dtype == std.dtype == torch.float32
    np.testing.assert_allclose(mean.numpy(), literal.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(std.numpy(), literal.std(axis=0), rtol=1e-3 if offset == 1000 else 1e-5)


def test_statistics_see_only_the_images_asked_for() -> None:
    rows = features()
    rows[100:] = 1e4
    index = torch.arange(100)
    for got, expected in zip(
        filled(rows, dtype=torch.float32).statistics(index),
        filled(rows[:100], dtype=torch.float32).statistics(index),
        strict=True,
    ):
        assert torch.equal(got, expected)


@pytest.mark.parametrize("value", [0.0, 0.1, 3.3, 1234.567])
def test_a_channel_that_never_varies_has_deviation_1(value: float) -> None:
    rows = features()
    rows[:, :, 2] = value
    mean, std = filled(rows, dtype=torch.float32).statistics(torch.arange(IMAGES))
    assert float(std[2]) == 1
    assert float(mean[2]) == pytest.approx(value)
    assert not (std[[0, 1, 3, 4]] == 1).any()
