"""`python -m lvlm_interp` is `lvlm-interp`."""

import sys

from lvlm_interp.cli import main

sys.exit(main())
