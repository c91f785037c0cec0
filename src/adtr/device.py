"""Which device to use and what it does well."""

from __future__ import annotations

import torch

from adtr.errors import ConfigError


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
