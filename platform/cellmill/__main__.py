"""Run the command line with ``python -m cellmill``."""

from cellmill.cli import main

main()
