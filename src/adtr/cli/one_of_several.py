"""One process of several, started by `adtr.cli.devices`, to which it leaves what goes wrong: only one speaks."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import NoReturn

from adtr.cli import main
from adtr.cli.devices import BUG, LOST, MISTAKE


def run() -> NoReturn:
    """The command line of this process."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # torchrun passes it on to end the processes
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()
    try:
        main(fail=_fail)
    except RuntimeError as error:
        if not _is_lost(error):
            _leave(traceback.format_exc(), BUG)
        reason = re.sub(r"^\[\S+:\d+\] ", "", str(error))  # a place in gloo's source
        _leave(reason.split(". ")[0].splitlines()[0], LOST)
    except Exception:  # noqa: BLE001 - the launcher prints it
        _leave(traceback.format_exc(), BUG)


def _fail(message: str) -> NoReturn:
    _leave(message, MISTAKE)


def _leave(text: str, code: int) -> NoReturn:
    """In the form that torchrun reads."""
    told = {"message": text, "timestamp": int(time.time())}
    Path(os.environ["TORCHELASTIC_ERROR_FILE"]).write_text(json.dumps(told))
    sys.exit(code)


def _is_lost(error: RuntimeError) -> bool:
    """Whether it tells of another process that went away or fell silent."""
    import torch

    return isinstance(error, torch.distributed.DistError) or "gloo" in str(error)


def _end_with(parent: int) -> None:
    """Whatever ends the launcher, no process stays behind and writes."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(LOST)


if __name__ == "__main__":
    run()
