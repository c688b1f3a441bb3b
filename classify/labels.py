"""What a member answers: normal, the disease that it seeks, or any other."""

from __future__ import annotations

NORMAL, TARGET, OTHERS = 0, 1, 2
