"""`adtr predict`."""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import click

from adtr.cli.options import (
    check_output_file,
    device_option,
    extra_for,
    false_alarm_rate_option,
    on_error_option,
    progress_on_stderr,
    quiet_option,
    report_skipped,
    say,
    to_json,
    unsure_rate_option,
    weights_option,
)
from adtr.errors import AdtrError, ConfigError, DataError, OnError

FIELDS = (
    "path",
    "score",
    "p_value",
    "severity",
    "threshold",
    "verdict",
    "is_anomalous",
    "regions",
    "brightness",
    "sharpness",
)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="scores.jsonl or scores.csv; with --engine ray: .jsonl, .parquet or a folder.",
)
@click.option("--maps", type=click.Path(path_type=Path), metavar="DIR", help="Anomaly maps as 32-bit float TIFF.")
@click.option("--overlays", type=click.Path(path_type=Path), metavar="DIR", help="Heat maps over the images as JPEG.")
@click.option("--coco", type=click.Path(path_type=Path), metavar="FILE", help="Marked regions as COCO JSON.")
@false_alarm_rate_option
@unsure_rate_option
@click.option("--batch-size", default=16, show_default=True, type=click.IntRange(1, 4096), help="Images at a time.")
@click.option(
    "--engine",
    type=click.Choice(["local", "ray"]),
    default="local",
    show_default=True,
    help="local: this process; ray: workers on this machine, or on the cluster that RAY_ADDRESS names.",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 100_000),
    metavar="N",
    help="ray: that hold the model.  [default: one for each GPU, or for each core]",
)
@weights_option
@device_option
@on_error_option
@quiet_option
def command(
    model: Path,
    paths: tuple[str, ...],
    output: Path | None,
    maps: Path | None,
    overlays: Path | None,
    coco: Path | None,
    false_alarm_rate: float | None,
    unsure_rate: float | None,
    batch_size: int,
    engine: Literal["local", "ray"],
    workers: int | None,
    backbone_weights: str | None,
    device: str,
    on_error: OnError,
    quiet: bool,
) -> None:
    """Score images: a JSON line for each, as they come, on stdout or in a file.

    PATH... are images, or folders that are searched through. A CSV file holds the number of marked regions, JSON lines
    hold their boxes [left, top, width, height], areas and peaks.

    With --engine ray they may also be parquet files with encoded images, and URLs that fsspec knows, such as
    s3://bucket/images. A run that was cut goes on where it was when it is given again.
    """
    if engine == "ray":
        if output is None or maps or overlays or coco:
            raise ConfigError("--engine ray needs --output, and makes no maps, overlays or COCO files")
        with extra_for("--engine ray", "ray"):
            from adtr.scaling.prediction import predict
        with progress_on_stderr(quiet) as progress:
            answers = predict(
                model,
                paths,
                output,
                false_alarm_rate=false_alarm_rate,
                unsure_rate=unsure_rate,
                batch_size=batch_size,
                backbone_weights=backbone_weights,
                device=device,
                on_error=on_error,
                workers=workers,
                progress=progress,
            )
        report_skipped(answers.skipped)
        say(_summary(answers.counts, unsure="unsure" in answers.counts), quiet=quiet)
        return
    if workers is not None:
        raise ConfigError("--workers belongs to --engine ray")

    from adtr.files import check_writable, replace_file
    from adtr.report.coco import CocoRegions
    from adtr.report.sinks import output_paths, save_map, save_overlay
    from adtr.store import read_metadata

    if output is not None and output.suffix not in (".jsonl", ".csv"):
        raise ConfigError(f"--output must end in .jsonl or .csv, not {output.name!r}")
    read_metadata(model)
    found = find_images(tuple(map(Path, paths)))
    images, names = [path for path, _ in found], [name for _, name in found]
    map_paths = output_paths(images, names, maps, ".tiff") if maps is not None else None
    overlay_paths = output_paths(images, names, overlays, ".jpg") if overlays is not None else None
    for file in (output, coco):
        if file is not None:
            check_output_file(file)
    for folder in (maps, overlays):
        if folder is not None:
            check_writable(folder)

    from adtr.detector import AnomalyDetector

    detector = AnomalyDetector.load(model, device=device, backbone_weights=backbone_weights)
    if false_alarm_rate is not None or unsure_rate is not None:
        say(detector.set_rates(false_alarm_rate, unsure_rate).describe(), quiet=quiet)
    verdicts: Counter[str] = Counter()
    regions = CocoRegions()
    with (
        open_rows(output, maps=maps is not None, overlays=overlays is not None) as write,
        progress_on_stderr(quiet or output is None) as progress,
        contextlib.closing(
            detector.stream(
                images,
                on_error=on_error,
                batch_size=batch_size,
                keep_images=overlays is not None,
                progress=progress,
            )
        ) as stream,
    ):
        progress.start("predicting", total=len(images))
        for prediction, loaded in stream:
            row = {
                "path": str(images[loaded.index]),
                **prediction.to_dict(),
                "brightness": loaded.brightness,
                "sharpness": loaded.sharpness,
            }
            if coco is not None:
                regions.add(names[loaded.index], prediction)
            if map_paths is not None:
                row["map"] = str(save_map(prediction, map_paths[loaded.index]))
            if overlay_paths is not None and loaded.image is not None:
                row["overlay"] = str(save_overlay(prediction, loaded.image, overlay_paths[loaded.index]))
            write(row)
            verdicts[prediction.verdict] += 1
        progress.finish()
    report_skipped(detector.skipped_)
    if coco is not None:
        replace_file(coco, to_json(regions.to_dict()))
    say(_summary(verdicts, unsure=detector.thresholds_.unsure is not None), quiet=quiet)


def _summary(counts: Counter[str], *, unsure: bool) -> str:
    judged = sum(counts[verdict] for verdict in ("good", "unsure", "anomalous"))
    more = f", {counts['unsure']} unsure" if unsure else ""
    return f"{counts['anomalous']} of {judged} images are anomalous{more}"


def find_images(paths: tuple[Path, ...]) -> list[tuple[Path, Path]]:
    """Images with the names under which their maps are saved: relative to the folder that was given.

    Raises:
        DataError: a path that does not exist, or no images at all.
    """
    from adtr.data.folder import list_images

    found: list[tuple[Path, Path]] = []
    for path in paths:
        if path.is_dir():
            found += [(image, image.relative_to(path)) for image in list_images(path, recursive=True)]
        elif path.is_file():
            found.append((path, Path(path.name)))
        elif path.exists():
            raise DataError(f"{path} is neither a file nor a folder; a pipe or a device cannot be read as an image")
        else:
            raise DataError(f"no such file or folder: {path}")
    if not found:
        raise DataError(f"no images in {', '.join(map(str, paths))}")
    return found


@contextlib.contextmanager
def open_rows(output: Path | None, *, maps: bool, overlays: bool) -> Iterator[Callable[[dict[str, Any]], None]]:
    """Where results go, row by row: stdout, or a file that bears its name only once it is complete.

    Until then it is called `FILE.partial`; what was written before a failure stays there.

    Raises:
        AdtrError: the file cannot be written.
    """
    if output is None:
        yield lambda row: click.echo(json.dumps(row, ensure_ascii=False))
        return
    fields = [*FIELDS, *(["map"] if maps else []), *(["overlay"] if overlays else [])]
    partial = output.with_name(f"{output.name}.partial")
    rows = 0
    try:
        with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            if output.suffix == ".csv":
                file.write(_csv_line(fields))

            def write(row: dict[str, Any]) -> None:
                nonlocal rows
                line = json.dumps(row, ensure_ascii=False) + "\n" if output.suffix == ".jsonl" else None
                file.write(line or _csv_line([_cell(row[name]) for name in fields]))
                file.flush()
                rows += 1

            yield write
        partial.replace(output)
    except BaseException as error:
        if not rows:
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise AdtrError(f"cannot write {output}: {error.strerror or error}") from error
        raise


def _cell(value: Any) -> Any:  # noqa: ANN401
    return len(value) if isinstance(value, list) else value


def _csv_line(values: list[Any]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(values)
    return buffer.getvalue()
