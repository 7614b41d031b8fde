# SPDX-License-Identifier: GPL-3.0-or-later
"""The public suites once more, through the milter: a real socket, libmilter, and DNS over the wire on loopback."""

import re

from gatekeeper.message import crlf
from tests.milter_client import MilterClient
from tests.test_arc import expected, suite
from tests.test_milter_server import serving


def test_every_case_of_the_arc_suite_comes_out_as_it_should() -> None:
    cases = list(suite())
    zone = "\n".join(dict.fromkeys("\n".join(zone for _, _, zone in cases).splitlines()))
    wrong = []
    with serving(zone=zone) as socket_path, MilterClient(socket_path) as client:
        client.open()
        for name, case, _ in cases:
            client.envelope()
            [(_, told)] = client.content(crlf(case["message"].encode())).fields
            found = re.search(r"\sarc=([a-z]+)", told)
            if expected(case) != (found[1] if found else "none"):
                wrong.append((name, case["cv"], told))
    assert [] == wrong
