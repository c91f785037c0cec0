"""Progress of long work, on a terminal or nowhere."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import TaskID
    from typing_extensions import Self


class Progress(Protocol):
    """What long work tells of itself."""

    def start(self, description: str, *, total: int | None, done: int = 0) -> None:
        """Begin a stage of `total` units, of which `done` are done already."""

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """`amount` more units are done."""

    def finish(self) -> None:
        """The stage is over."""


class Silent:
    """Tells nobody."""

    def start(self, description: str, *, total: int | None, done: int = 0) -> None:
        """Ignore."""

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Ignore."""

    def finish(self) -> None:
        """Ignore."""


class Bars:
    """Progress bars with rate and time left on stderr; stdout stays free for results."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress

        self._bars = RichProgress(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def start(self, description: str, *, total: int | None, done: int = 0) -> None:
        """Show a new bar."""
        self._task = self._bars.add_task(description, total=total, completed=done, note="")

    def advance(self, amount: int = 1, *, note: str = "") -> None:
        """Move the current bar."""
        if self._task is not None:
            self._bars.update(self._task, advance=amount, note=note)

    def finish(self) -> None:
        """Leave the bar as it stands."""
        if self._task is not None:
            self._bars.update(self._task, total=self._bars.tasks[self._task].completed)
            self._task = None
