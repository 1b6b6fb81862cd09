"""The peak of the anonymous memory of a run: ``python -m tests.footprint BOARD DATA STORE`` prints it in MB.

Anonymous memory belongs to no file: pages of the decoded sets, which are mapped, do not count.
"""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from benchbd.api import Session

STATUS = Path("/proc/self/status")


class Peak:
    """Reads the memory every millisecond."""

    def __init__(self) -> None:
        self.bytes, self._over = 0, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.001):
            self.bytes = max(self.bytes, anonymous())

    def stop(self) -> int:
        self._over.set()
        self._thread.join()
        return self.bytes


def anonymous() -> int:
    """Bytes of this process that belong to no file."""
    return int(STATUS.read_text().split("RssAnon:")[1].split()[0]) * 1024


def main(board: str, data: str, store: str) -> None:
    peak = Peak()
    session = Session.open(board, data_root=data, store=store, device="cpu")
    records = session.run()
    assert {record.status for record in records} == {"ok"}, records
    print(f"{peak.stop() / 2**20:.1f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
