"""`python -m classify.singles.show` is `python -m classify.show`."""

from __future__ import annotations

from classify.show import main

if __name__ == "__main__":
    raise SystemExit(main())
