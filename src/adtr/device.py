"""Which device to use and what it does well."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

import torch

from adtr.errors import ConfigError

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def choose_device(name: str = "auto") -> torch.device:
    """`auto`: CUDA, else MPS, else the CPU; or a device by its torch name ("cpu", "cuda:1").

    Raises:
        ConfigError: unknown or absent device.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r} (known: auto, cpu, cuda, cuda:N, mps)") from error
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not present.get(device.type, False):
        raise ConfigError(f"this machine, or this build of torch, has no {name} device; use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"there is no {name}: this machine has {torch.cuda.device_count()} CUDA device(s)")
    return device


def check_devices(name: str, devices: int) -> None:
    """Fail before the work where a machine has not so many devices of a kind.

    Raises:
        ConfigError: it has not, or one of them is named.
    """
    chosen = choose_device(name)
    if devices > 1 and chosen.index is not None:
        raise ConfigError(f"--device {name} is one device; give --device {chosen.type} with --devices {devices}")
    present = {"cuda": torch.cuda.device_count(), "mps": 1}.get(chosen.type, devices)  # a CPU is shared by any number
    if devices > present:
        raise ConfigError(f"--devices {devices}: this machine has {present} {chosen.type.upper()} device(s)")


def choose_precision(name: str, device: torch.device) -> str:
    """`auto` becomes "bf16" where the device multiplies bfloat16 matrices in hardware, else "fp32"."""
    if name != "auto":
        return name
    return "bf16" if has_fast_bf16(device) else "fp32"


def has_fast_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return False
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))


@cache
def keep_freed_memory() -> None:
    """Let the C library keep what tensors free, up to 512 MiB, in place of giving it back and asking for it again.

    The activations of a step are larger than what glibc keeps by default: each is mapped, zeroed by the kernel, used
    once and unmapped, at a fifth of the time of a training step. Does nothing where there is no glibc.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_THRESHOLD, 128 << 20)
    mallopt(_M_TRIM_THRESHOLD, 512 << 20)
