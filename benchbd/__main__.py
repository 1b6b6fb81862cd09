"""``python -m benchbd`` is ``benchbd``."""

from benchbd.cli.main import main

main(prog_name="python -m benchbd")
