"""The command line in a process of its own: logs what is computed, and may hang in a stage so that it can be killed.

python tests/driver.py LOG KIND_TO_HANG_IN ARGUMENT...
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Sequence

from benchbd.cli.main import main
from benchbd.engine.scheduler import Scheduler
from benchbd.stages.base import Stage

LOG, HANG, *ARGUMENTS = sys.argv[1:]


def logged(self: Scheduler, stages: Sequence[Stage]) -> None:
    for stage in stages:
        with open(LOG, "a") as log:
            log.write(f"{stage.kind} {stage.key}\n")
        if stage.kind == HANG:
            time.sleep(3600)
    submit(self, stages)


submit = Scheduler._submit
Scheduler._submit = logged  # type: ignore[method-assign]
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background inherits it ignored
main(ARGUMENTS)
