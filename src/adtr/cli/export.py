"""`adtr export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from adtr.cli.options import check_output_file, progress_on_stderr, quiet_option, say, weights_option


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "-f",
    "file_format",
    type=click.Choice(["onnx", "openvino", "torch"]),
    default="onnx",
    show_default=True,
    help="ONNX, OpenVINO, or a program of torch.export.",
)
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Ends in .onnx, .xml (OpenVINO), or .pt2 (torch).",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "fp16", "int8"]),
    default="fp32",
    show_default=True,
    help="fp16: weights in half the space; int8: the backbone in 8 bit.",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Images to measure parity on.  [default: good images of the fit]",
)
@click.option(
    "--data", type=click.Path(path_type=Path), metavar="DIR", help="A labelled data set, for the change of AUROC."
)
@click.option(
    "--tolerance",
    type=click.FloatRange(0),
    metavar="X",
    help="Largest difference of a score or map, as a share of the threshold.  [default: by precision]",
)
@weights_option
@quiet_option
def command(
    model: Path,
    file_format: str,
    output: Path,
    precision: Literal["fp32", "fp16", "int8"],
    images: Path | None,
    data: Path | None,
    tolerance: float | None,
    backbone_weights: str | None,
    quiet: bool,
) -> None:
    """Write a model as one file that runs without PyTorch.

    The file takes raw images and gives scores, decisions and maps; `adtr predict FILE IMAGES...` works with it. Before
    it is written, its differences from the model are measured on real images.
    """
    from adtr.errors import ModelError
    from adtr.store import is_exported, read_metadata

    if is_exported(model):
        raise ModelError(f"{model} is an exported file already; export the model folder that it was made of")
    read_metadata(model)
    check_output_file(output)

    from adtr.deploy.export import check_format, export
    from adtr.detector import AnomalyDetector

    check_format(output, file_format, precision)
    detector = AnomalyDetector.load(model, device="cpu", backbone_weights=backbone_weights)
    with progress_on_stderr(quiet) as progress:
        exported = export(
            detector,
            output,
            format=file_format,
            precision=precision,
            images=images,
            data=data,
            tolerance=tolerance,
            progress=progress,
        )
    for name, parity in exported.parity.items():
        say(f"against {name}: {parity.describe()}", quiet=quiet)
    how = "measured with this file" if exported.recalibrated else "the model's own"
    say(f"{exported.thresholds.describe()} ({how})", quiet=quiet)
    if file_format == "torch":
        say(f"saved {output}; next: torch.export.load({str(output)!r})", quiet=quiet)
    else:
        say(f"saved {output}; next: adtr predict {output} IMAGES...", quiet=quiet)
