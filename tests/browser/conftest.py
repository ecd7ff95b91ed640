"""Lets the browser's tests use the boxes and origins of tests/system."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "system"))
