"""`adtr improve`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, Literal

import click

from adtr.cli.devices import devices_options, is_one_of_several, join, launch
from adtr.cli.options import (
    SectionedCommand,
    configuration_flags,
    device_option,
    on_error_option,
    progress_on_stderr,
    quiet_option,
    report_skipped,
    say,
    track_option,
    weights_option,
    work_folder,
    work_folder_of_others,
)
from adtr.errors import AdtrError, ModelError, OnError


@click.command(cls=SectionedCommand)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), metavar="MODEL2", help="Model folder.")
@click.option(
    "--anomalies",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Labelled images: a folder per defect type, or images directly inside; masks beside or in ground_truth/.",
)
@click.option("--annotations", type=click.Path(path_type=Path), metavar="FILE", help="A COCO file for --anomalies.")
@click.option(
    "--labels",
    type=click.Choice(["auto", "pixel", "image"]),
    default="auto",
    show_default=True,
    help="pixel: every anomaly must have a mask; image: masks are ignored; auto: those that exist are used.",
)
@click.option(
    "--synthetic",
    multiple=True,
    type=click.Choice(["confetti", "scar", "blend"]),
    help="Anomalies made on good images; may be given several times.",
)
@click.option(
    "--external",
    type=click.Path(path_type=Path),
    metavar="DIR|FILE.parquet",
    help="An irrelevant data set, whose images all count as anomalies.",
)
@click.option(
    "--good",
    type=click.Path(path_type=Path),
    metavar="DATA",
    help="The good images.  [default: the features that fit kept, or the folder that it read]",
)
@click.option("--keep-if-better", is_flag=True, help="Write nothing unless the guard finds the new model better.")
@weights_option
@device_option
@devices_options
@on_error_option
@click.option("--resume", is_flag=True, help="Go on where a run with this output was cut.")
@track_option
@quiet_option
@partial(configuration_flags, sections=("training", "improvement", "calibration"))
def command(
    model: Path,
    output: Path,
    anomalies: Path | None,
    annotations: Path | None,
    labels: Literal["auto", "pixel", "image"],
    synthetic: tuple[str, ...],
    external: Path | None,
    good: Path | None,
    keep_if_better: bool,
    backbone_weights: str | None,
    device: str,
    devices: int,
    nodes: int,
    on_error: OnError,
    resume: bool,
    track: str | None,
    quiet: bool,
    **flags: Any,  # noqa: ANN401 - the configuration's fields
) -> None:
    """Go on learning from anomalies (ADTR+).

    MODEL is a model folder. The new model is judged beside the old one on good images and anomalies held out.
    """
    from adtr.store import is_exported, read_metadata
    from adtr.tracking import tracked

    if annotations is not None and anomalies is None:
        raise AdtrError("--annotations describes the images of --anomalies; give that too")
    if is_exported(model):
        raise ModelError(f"{model} is an exported file, which cannot learn; improve the model folder it was made of")
    config = read_metadata(model)[0]
    changes = {name: value for name, value in flags.items() if value is not None}
    if devices * nodes > 1 and not is_one_of_several():
        with work_folder_of_others(output):
            launch(device, devices, nodes)
        return
    fabric = join(device, config.override(**changes).training.precision)
    first = fabric is None or fabric.is_global_zero
    with work_folder(output, fabric) as work, tracked(track if first else None, output.name) as tracker:
        from adtr.detector import AnomalyDetector

        here = device if fabric is None else str(fabric.device)
        detector = AnomalyDetector.load(model, device=here, backbone_weights=backbone_weights)
        with progress_on_stderr(quiet or not first) as progress:
            better = detector.improve(
                anomalies,
                labels=labels,
                synthetic=synthetic,
                external=external,
                good=good,
                annotations=annotations,
                on_error=on_error,
                work_folder=work,
                resume=resume,
                progress=progress,
                fabric=fabric,
                tracker=tracker,
                **changes,
            )
        improvement = better.improvement_
        assert improvement is not None
        refused = keep_if_better and not improvement.is_better
        if first and not refused:
            better.save(output)
            if tracker is not None:
                tracker.log_model(output)
    if not first:
        return

    report_skipped(better.skipped_)
    for note in improvement.notes:
        say(f"note: {note}", quiet=quiet)
    learned = [f"{count} {name}" for name, count in improvement.learned.items()]
    masks = [f"{improvement.with_mask} with masks"] if learned else []
    others = [f"{improvement.external} external images" if s == "external" else s for s in improvement.sources]
    sources = [*learned, *masks, *(s for s in others if s != "labelled")]
    say(f"learned from {', '.join(sources)} in {improvement.seconds:.0f} s", quiet=quiet)
    for line in improvement.describe():
        say(line, quiet=quiet)
    say(better.thresholds_.describe(), quiet=quiet)
    if refused:
        raise AdtrError(f"the new model is not better on what was held out: {output} is not written (--keep-if-better)")
    if tracker is not None:
        say(f"told {tracker.where}", quiet=quiet)
    say(f"saved {output}; next: adtr predict {output} IMAGES...", quiet=quiet)
