# SPDX-License-Identifier: GPL-3.0-or-later
"""An address of ours in main.cf: what Postfix connects to, from its queue directory."""

from pathlib import Path

import pytest

from gatekeeper.postfix.listen_address import parse_listen_address
from gatekeeper.postfix.service_address import for_postfix


@pytest.mark.parametrize(
    ("listen", "queue", "written"),
    [
        ("unix:/var/spool/postfix/gatekeeper/p.sock", "/var/spool/postfix", "unix:gatekeeper/p.sock"),
        ("unix:/var/spool/postfix/gatekeeper/p.sock", "/var/spool/postfix/", "unix:gatekeeper/p.sock"),
        ("unix:/var/spool/postfix-out/g/p.sock", "/var/spool/postfix-out", "unix:g/p.sock"),
        ("unix:/var/spool/postfix-out/g/p.sock", "/var/spool/postfix", "unix:/var/spool/postfix-out/g/p.sock"),
        ("unix:/run/p.sock", "/var/spool/postfix", "unix:/run/p.sock"),
        ("unix:/var/spool/postfix/gatekeeper/p.sock", None, "unix:/var/spool/postfix/gatekeeper/p.sock"),
        ("inet:127.0.0.1:10040", "/var/spool/postfix", "inet:127.0.0.1:10040"),
        ("inet:8891@localhost", None, "inet:localhost:8891"),
        ("inet:8891", None, "inet:127.0.0.1:8891"),
        ("inet:0.0.0.0:8891", None, "inet:127.0.0.1:8891"),
        ("inet6:8891", None, "inet:[::1]:8891"),
        ("inet:[::]:8891", None, "inet:[::1]:8891"),
        ("inet:[2001:db8::1]:8891", None, "inet:[2001:db8::1]:8891"),
        ("inet6:8891@mx.example.com", None, "inet:mx.example.com:8891"),
    ],
)
def test_an_address_is_written_as_postfix_reads_it(listen: str, queue: str | None, written: str) -> None:
    assert written == for_postfix(parse_listen_address(listen), Path(queue) if queue else None)


@pytest.mark.parametrize("linked", ["queue", "listen"])
def test_a_link_to_the_queue_directory_is_the_queue_directory(tmp_path: Path, linked: str) -> None:
    (tmp_path / "real" / "gatekeeper").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    one, other = tmp_path / "link", tmp_path / "real"
    queue, listen = (one, other) if linked == "queue" else (other, one)
    assert "unix:gatekeeper/p.sock" == for_postfix(parse_listen_address(f"unix:{listen}/gatekeeper/p.sock"), queue)
