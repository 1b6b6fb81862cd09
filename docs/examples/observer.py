"""Print every finished record on stderr: an example of an observer, a module without a method."""

import sys
from typing import Any

from benchbd import hookimpl


@hookimpl
def benchbd_record_finished(record: Any) -> None:
    name = getattr(record, "detection", None) or record.defense
    print(f"{record.attack} x {name}: {record.status} {record.reason}".rstrip(), file=sys.stderr)
