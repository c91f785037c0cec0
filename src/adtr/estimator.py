"""Scikit-learn's habits of a detector: parameters, clones, tags, pickles."""

from __future__ import annotations

import os
from functools import cache
from typing import TYPE_CHECKING, Any

from adtr.config import Config, load_preset
from adtr.errors import AdtrError

if TYPE_CHECKING:
    from sklearn.utils import Tags
    from typing_extensions import Self


class Estimator:
    """What scikit-learn asks of an estimator.

    It is not scikit-learn's BaseEstimator, which reads the parameters from the constructor's signature; here every
    field of the configuration is one.
    """

    preset: str
    device: str
    backbone_weights: str | os.PathLike[str] | None
    config: Config
    _overrides: dict[str, Any]

    def get_params(self, deep: bool = True) -> dict[str, Any]:  # noqa: ARG002 - scikit-learn's signature
        """The constructor's arguments, every field of the configuration among them."""
        own = {"preset": self.preset, "device": self.device, "backbone_weights": self.backbone_weights}
        return {**own, **self.config.flat(), **self._overrides}

    def set_params(self, **params: Any) -> Self:  # noqa: ANN401
        """Change some of the constructor's arguments; a new preset keeps the fields that were given by name.

        Raises:
            ConfigError: unknown preset or field, or a value out of range.
        """
        preset = params.pop("preset", self.preset)
        device = params.pop("device", self.device)
        weights = params.pop("backbone_weights", self.backbone_weights)
        # One after the other: `epochs` given now lifts a `max_steps` that was given, or copied, before.
        config = load_preset(preset).override(**self._overrides).override(**params)
        overrides = {**self._overrides, **params}
        # What is given now is handed back as the very object, for scikit-learn compares by identity.
        for limit in ({"max_steps", "improve_max_steps"} & overrides.keys()) - params.keys():
            overrides[limit] = config.flat()[limit]
        self.config = config
        self.preset, self.device, self.backbone_weights, self._overrides = preset, device, weights, overrides
        return self

    def __repr__(self) -> str:
        state = "fitted" if self.is_fitted else "not fitted"
        return f"AnomalyDetector(preset={self.preset!r}, backbone={self.config.embedding.backbone!r}, {state})"

    @property
    def is_fitted(self) -> bool:
        """Whether the detector has learned or loaded something."""
        return hasattr(self, "network_")

    def __sklearn_is_fitted__(self) -> bool:
        return self.is_fitted

    def __sklearn_tags__(self) -> Tags:
        from sklearn.utils import InputTags, Tags, TargetTags

        return Tags(
            estimator_type="outlier_detector",  # so that scorers take `decision_function`
            target_tags=TargetTags(required=False),
            input_tags=InputTags(one_d_array=True, two_d_array=False, string=True),
        )

    def __getstate__(self) -> dict[str, Any]:
        if self.is_fitted:
            raise AdtrError(
                "a fitted detector is not pickled, for whoever reads a pickle runs what is in it: write it with "
                "save(folder), read it with AnomalyDetector.load(folder), and pass the folder around"
            )
        return self.get_params()

    def __setstate__(self, params: dict[str, Any]) -> None:
        self.__init__(**params)  # type: ignore[misc]

    def _require_fitted(self) -> None:
        if not self.is_fitted:
            raise _not_fitted()("this detector has learned nothing yet; call fit(), or AnomalyDetector.load(folder)")


@cache
def _not_fitted() -> type[AdtrError]:
    """scikit-learn's error and ours; made when it is raised, for scikit-learn takes long to import."""
    from sklearn.exceptions import NotFittedError

    class NotFittedDetectorError(AdtrError, NotFittedError):  # type: ignore[misc]
        """The detector has learned nothing yet."""

    return NotFittedDetectorError
