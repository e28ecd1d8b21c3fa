"""``python -m convert`` is ``atari-convert``."""

from convert.cli import main

main(prog_name="atari-convert")
