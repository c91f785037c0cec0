"""All targets by name."""

from fuzzing.exports import Onnx, OpenVino
from fuzzing.images import Images, Masks
from fuzzing.models import Checkpoints, Info, Models, Weights
from fuzzing.server import Server
from fuzzing.tables import Cifar, Parquet
from fuzzing.target import Target
from fuzzing.texts import Coco, Configurations, LabelMe, Results, Rows, State

CHEAP: tuple[type[Target], ...] = (
    Images,
    Masks,
    Coco,
    LabelMe,
    Configurations,
    Rows,
    State,
    Results,
    Cifar,
    Parquet,
    Info,
)
DEAR: tuple[type[Target], ...] = (Weights, Checkpoints, Models, Onnx, OpenVino, Server)
"""What needs torch or another runtime, or seconds to start."""
TARGETS: dict[str, type[Target]] = {target.name: target for target in (*CHEAP, *DEAR)}
