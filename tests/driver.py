"""The command line in a process of its own: logs what is computed, and may hang in a stage so that it can be killed.

python tests/driver.py LOG KIND_TO_HANG_IN ARGUMENT...
"""

from __future__ import annotations

import signal
import sys
import time
from typing import Any

from benchbd.cli.main import main
from benchbd.stages.work import Workshop

LOG, HANG, *ARGUMENTS = sys.argv[1:]


def spy(name: str) -> None:
    work = getattr(Workshop, name)

    def logged(self: Workshop, what: Any) -> Any:
        for stage in what if isinstance(what, list) else [what]:
            with open(LOG, "a") as log:
                log.write(f"{stage.kind} {stage.key}\n")
            if stage.kind == HANG:
                time.sleep(3600)
        return work(self, what)

    setattr(Workshop, name, logged)


signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that runs in the background inherits it ignored
spy("compute")
spy("evaluate")
main(ARGUMENTS)
