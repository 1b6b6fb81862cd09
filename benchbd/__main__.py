"""``python -m benchbd`` is ``benchbd``."""

from benchbd.cli import main

main(prog_name="python -m benchbd")
