# SPDX-License-Identifier: GPL-3.0-or-later
"""Email authentication: SPF, iprev, DKIM, DMARC, ARC, and the Authentication-Results field that reports them.

Knows DNS answers and bytes; neither sockets nor libmilter. Whether a finding refuses a mail is decided in `checks`.
The fields of a finding are also keys in the JSON of `gatekeeper verify --json`, so they keep their names.
"""
