"""`adtr fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from adtr.cli.devices import devices_options, is_one_of_several, join, launch
from adtr.cli.options import (
    SectionedCommand,
    config_option,
    configuration_flags,
    device_option,
    on_error_option,
    progress_on_stderr,
    quiet_option,
    report_skipped,
    resolve,
    say,
    track_option,
    weights_option,
    work_folder,
    work_folder_of_others,
)
from adtr.errors import AdtrError, OnError

if TYPE_CHECKING:
    from adtr.data.folder import Dataset
    from adtr.detector import AnomalyDetector
    from adtr.learning.repetition import Repetition


@click.command(cls=SectionedCommand)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), metavar="MODEL", help="Model folder.")
@click.option("--preset", metavar="NAME", help="A named configuration; `adtr presets` lists them.  [default: quick]")
@config_option
@weights_option
@click.option(
    "--held-out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Good images that set the thresholds; all of DATA then trains.  [default: validation/good/, or part of DATA]",
)
@click.option("--store-backbone", is_flag=True, help="Put the backbone's weights into the model folder.")
@click.option("--keep-features", is_flag=True, help="Put the good images' features into the model, for `adtr improve`.")
@device_option
@devices_options
@on_error_option
@click.option("--resume", is_flag=True, help="Go on where a run with this output was cut.")
@click.option(
    "--verify",
    is_flag=True,
    help="First train twice for a few steps, each in a process of its own, and go on only if both agree to the bit.",
)
@track_option
@quiet_option
@configuration_flags
def command(
    data: Path,
    output: Path,
    preset: str | None,
    config_file: Path | None,
    backbone_weights: str | None,
    held_out: Path | None,
    store_backbone: bool,
    keep_features: bool,
    device: str,
    devices: int,
    nodes: int,
    on_error: OnError,
    resume: bool,
    verify: bool,
    track: str | None,
    quiet: bool,
    **flags: Any,  # noqa: ANN401 - the configuration's fields
) -> None:
    """Learn what good looks like.

    DATA holds good images: a folder with train/good/ (MVTec's layout), a folder with good/ beside defect folders, or
    good images directly inside. A part of them is held out of training to set the thresholds, unless --held-out, or
    validation/good/ beside them, holds other good images for that.

    The same images, configuration, seed, machine and number of threads give the same model to the bit. --verify proves
    it for yours, in about the time of twenty steps and two starts, stops where it does not hold, and is remembered in
    the model's metadata.
    """
    from adtr.config import load_preset
    from adtr.data.folder import open_dataset
    from adtr.tracking import tracked

    preset, overrides = resolve(preset, config_file, flags)
    config = load_preset(preset).override(**overrides)
    dataset = open_dataset(data)
    if verify and devices * nodes > 1:
        raise AdtrError("--verify compares single processes; take it without --devices and --nodes")
    if devices * nodes > 1 and not is_one_of_several():
        with work_folder_of_others(output):
            launch(device, devices, nodes)
        return
    fabric = join(device, config.training.precision)
    first = fabric is None or fabric.is_global_zero
    with work_folder(output, fabric) as work, tracked(track if first else None, output.name) as tracker:
        from adtr.detector import AnomalyDetector

        detector = AnomalyDetector(preset, device=device, backbone_weights=backbone_weights, **overrides)
        verified = _verify(detector, dataset, held_out, on_error, quiet=quiet) if verify else None
        with progress_on_stderr(quiet or not first) as progress:
            detector.fit(
                dataset,
                held_out=held_out,
                on_error=on_error,
                keep_features=keep_features,
                work_folder=work,
                resume=resume,
                progress=progress,
                fabric=fabric,
                tracker=tracker,
            )
        if verified is not None:
            detector.metadata_["verified"] = verified.to_dict()
        if first:
            detector.save(output, store_backbone=store_backbone)
            if tracker is not None:
                tracker.log_model(output)
    if not first:
        return

    report_skipped(detector.skipped_)
    training = detector.metadata_["training"]
    if dataset.note:
        say(dataset.note, quiet=quiet)
    say(
        f"trained on {training['images']} images for {len(training['losses'])} epochs in "
        f"{training['total_seconds']:.0f} s (loss {training['losses'][0]:.4g} -> {training['losses'][-1]:.4g})",
        quiet=quiet,
    )
    say(detector.thresholds_.describe(), quiet=quiet)
    if tracker is not None:
        say(f"told {tracker.where}", quiet=quiet)
    say(f"saved {output}; next: adtr predict {output} IMAGES...", quiet=quiet)


def _verify(
    detector: AnomalyDetector, dataset: Dataset, held_out: Path | None, on_error: OnError, *, quiet: bool
) -> Repetition:
    from adtr.data.sources import good_sources
    from adtr.learning.repetition import repeat

    good = good_sources(dataset, held_out)
    weights = detector.backbone_weights
    found = repeat(detector.config, good, device=detector.device, backbone_weights=weights, on_error=on_error)
    if found.different:
        raise AdtrError(f"{found.describe()}; nothing was trained; without --verify it would be")
    say(found.describe(), quiet=quiet)
    return found
