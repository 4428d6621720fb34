"""python -m frozenfusion"""

from __future__ import annotations

import sys

from frozenfusion.cli.main import main

sys.exit(main())
