"""adtr: visual anomaly detection by feature reconstruction with a transformer.

>>> from adtr import AnomalyDetector
>>> detector = AnomalyDetector().fit("bottles/train/good")  # doctest: +SKIP
>>> detector.predict("bottle.png")[0].score  # doctest: +SKIP
"""

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from adtr.config import Config, list_presets, load_preset
    from adtr.detector import AnomalyDetector
    from adtr.errors import AdtrError
    from adtr.learning.audit import Audit, audit
    from adtr.metrics import Metrics
    from adtr.prediction import Prediction

__all__ = [
    "AdtrError",
    "AnomalyDetector",
    "Audit",
    "Config",
    "Metrics",
    "Prediction",
    "__version__",
    "audit",
    "list_presets",
    "load_preset",
]

_HOMES = {
    "AdtrError": "adtr.errors",
    "AnomalyDetector": "adtr.detector",
    "Audit": "adtr.learning.audit",
    "Config": "adtr.config",
    "Metrics": "adtr.metrics",
    "Prediction": "adtr.prediction",
    "audit": "adtr.learning.audit",
    "list_presets": "adtr.config",
    "load_preset": "adtr.config",
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - PEP 562: importing adtr must not import torch
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'adtr' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
