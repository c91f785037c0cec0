"""Pictures and pages for people."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from adtr.data.folder import Dataset
    from adtr.errors import OnError
    from adtr.predictor import Predictor
    from adtr.progress import Progress
    from adtr.report.gather import Findings


def write_report(
    detector: Predictor,
    data: Dataset | str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    model: str | os.PathLike[str] | None = None,
    panels: int = 12,
    on_error: OnError = "raise",
    progress: Progress | None = None,
) -> Findings:
    """Test a detector on a data set, and write what that shows as one HTML file that needs nothing else.

    Args:
        detector: fitted; it decides by its own rates, see `set_rates`.
        data: a data set or its folder, as for `evaluate`.
        path: the file; an older one is replaced.
        model: the folder that the detector was loaded from, whose name and files' hashes the report then tells.
        panels: of the false alarms, and of the misses, that are shown at most; 0 shows no image at all.
        on_error: "raise" stops at an unreadable image; "skip" names it in the report and goes on.
        progress: is told of every image.

    Returns:
        The numbers of the report.

    Raises:
        ConfigError: matplotlib, which draws the charts, is not installed.
        DataError: no test images, an unreadable image, or a mask of another size than its image.
        ModelError: `model` is no model folder.
        AdtrError: the file cannot be written.
    """
    from adtr.files import replace_file
    from adtr.report.charts import require_matplotlib
    from adtr.report.gather import gather
    from adtr.report.page import render
    from adtr.store import read_metadata

    require_matplotlib()
    files = read_metadata(Path(model))[2]["files"] if model is not None else {}
    name = Path(model).resolve().name if model is not None else "adtr"
    findings = gather(detector, data, panels=panels, on_error=on_error, progress=progress)
    replace_file(Path(path), render(findings, model=name, files=files))
    return findings
