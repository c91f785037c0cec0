import platform
import subprocess
import sys

import pytest
import torch

from adtr.device import choose_device, has_fast_bf16
from adtr.errors import ConfigError


def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_auto_takes_cuda_then_mps_then_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    no_accelerator(monkeypatch)
    assert choose_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device("auto") == torch.device("cuda")


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose_device("cpu") == torch.device("cpu")
    two_gpus(monkeypatch)
    assert choose_device("cuda:1") == torch.device("cuda:1")
    assert choose_device("cuda") == torch.device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "cuda:x", "cpu cpu"])
def test_unknown_devices_are_one_line(name: str) -> None:
    with pytest.raises(ConfigError, match=r"^unknown device .* \(known: auto, cpu, cuda, cuda:N, mps\)$"):
        choose_device(name)


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps", "meta", "xpu"])
def test_absent_devices_are_one_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    no_accelerator(monkeypatch)
    with pytest.raises(ConfigError, match=rf"has no {name} device; use --device cpu$"):
        choose_device(name)


def test_a_gpu_beyond_the_last_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    two_gpus(monkeypatch)
    with pytest.raises(ConfigError, match=r"^there is no cuda:2: this machine has 2 CUDA device\(s\)$"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("capabilities", "fast"),
    [({}, False), ({"avx512": True}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_bf16_on_the_cpu_is_fast_where_the_processor_has_it(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, bool], fast: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bf16(torch.device("cpu")) is fast


def test_bf16_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert has_fast_bf16(torch.device("mps")) is False
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: not including_emulation)
    assert has_fast_bf16(torch.device("cuda")) is True


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's allocator")
def test_freed_memory_is_kept() -> None:
    """What a step frees serves the next one: without it, each large tensor is mapped and zeroed anew."""
    code = """
import resource, sys
import torch
from adtr.device import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
for i in range(16):
    if i == 11:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(10 << 20)  # 40 MiB
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    give_back, keep = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("give back", "keep")
    )
    assert give_back > 10_000
    assert keep < give_back / 3
