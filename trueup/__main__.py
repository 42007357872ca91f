"""`python -m trueup` is the `trueup` command."""

import sys

from trueup.cli import main

sys.exit(main())
