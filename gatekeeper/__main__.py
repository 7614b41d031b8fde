# SPDX-License-Identifier: GPL-3.0-or-later
"""`python -m gatekeeper`."""

from gatekeeper.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
