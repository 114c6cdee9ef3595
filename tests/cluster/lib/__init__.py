"""The parts of the `cluster` program, one concern a module."""

import sys

if sys.version_info < (3, 11):
    sys.exit("tests/cluster needs Python 3.11 or newer")
