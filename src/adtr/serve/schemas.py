"""What the API answers, as its OpenAPI description tells it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from adtr.calibration import Thresholds, Verdict
from adtr.serve.models import LoadedModel

MapFormat = Literal["png", "float", "grid"]


class Problem(BaseModel):
    """Why a request was not answered as asked."""

    error: str = Field(description="One sentence.")
    request_id: str


class ThresholdValues(BaseModel):
    """What decides: see `adtr.calibration.Thresholds`."""

    image: float
    pixel: float
    unsure: float | None
    false_alarm_rate: float
    unsure_rate: float
    promised_rate: float
    images: int
    description: str

    @classmethod
    def of(cls, thresholds: Thresholds) -> ThresholdValues:
        """Plain values."""
        values = {name: getattr(thresholds, name) for name in cls.model_fields if name != "description"}
        return cls(**values, description=thresholds.describe())


class ModelSummary(BaseModel):
    """A model that answers."""

    name: str
    version: str = Field(description="Changes when the model is replaced.")
    loaded_at: float = Field(description="Seconds since 1970.")
    backbone: str
    image_size: tuple[int, int] = Field(description="Height and width to which images are brought.")
    thresholds: ThresholdValues

    @classmethod
    def of(cls, model: LoadedModel) -> ModelSummary:
        """Plain values."""
        embedding = model.detector.fitted_config_.embedding
        return cls(
            name=model.name,
            version=model.version,
            loaded_at=model.loaded_at,
            backbone=embedding.backbone,
            image_size=embedding.image_size,
            thresholds=ThresholdValues.of(model.detector.thresholds_),
        )


class ModelList(BaseModel):
    """All models."""

    models: list[ModelSummary]


class CalibrationValues(BaseModel):
    """Scores of good images, ascending, from which thresholds at any rate follow."""

    image_scores: tuple[float, ...]
    pixel_maxima: tuple[float, ...]


class ModelDetails(ModelSummary):
    """A model and its calibration."""

    calibration: CalibrationValues


class RegionValues(BaseModel):
    """Marked pixels that touch each other."""

    box: tuple[int, int, int, int] = Field(description="Left, top, width, height, pixels.")
    area: int = Field(description="Marked pixels.")
    peak: float = Field(description="Highest value of the anomaly map inside.")


class MapValues(BaseModel):
    """An anomaly map."""

    encoding: Literal["png", "float32"] = Field(
        description="png: 8-bit gray, 0 is `low` and 255 is `high`, values outside clipped. "
        "float32: little-endian values, row by row."
    )
    height: int
    width: int
    low: float | None = None
    high: float | None = None
    data: str = Field(description="Base64.")


class ImageVerdict(BaseModel):
    """What the detector says of one image; see `adtr.Prediction`."""

    name: str = Field(description="The file's name as it was sent, without folders; empty of a raw body.")
    height: int
    width: int
    score: float
    p_value: float
    severity: float
    threshold: float
    verdict: Verdict
    is_anomalous: bool
    regions: list[RegionValues]
    map: MapValues | None = None


class Verdicts(BaseModel):
    """The verdicts on all images of a request, in its order."""

    model: str
    version: str
    request_id: str
    thresholds: ThresholdValues
    predictions: list[ImageVerdict]


class Health(BaseModel):
    """Whether the server lives, or is ready."""

    status: Literal["ok", "stopping"]


class Marked(BaseModel):
    """Where a marked image was kept, relative to the feedback folder."""

    kept: str
