"""`python -m refseg` is the command `refseg`; torchrun needs a module."""

import sys

from refseg.cli import main

sys.exit(main())
