"""`python -m HiEndSegLib.cli`, where the script `hiendseg` is not on the path."""

from __future__ import annotations

import sys

from .command import main

sys.exit(main())
