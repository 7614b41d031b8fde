# SPDX-License-Identifier: GPL-3.0-or-later
"""The milter's memory does not grow with the message."""

import re
import socket
import struct
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.support.milter_client import BODY, CONTINUE, END_OF_HEADER, MilterClient
from tests.support.milter_service import serving

pytestmark = pytest.mark.integration("gatekeeper")

MESSAGES = 32
CHUNKS = 160
CHUNK = b"x" * 63 + b"\r\n"
CHUNK *= 65535 // len(CHUNK)  # what Postfix sends at once; 160 of them are 10 MB
SIGNED = (
    b"v=1; a=rsa-sha256; c=relaxed/relaxed; d=ours.example; s=sel; h=from; b=AAAA;"
    b" bh=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
)


def workers_memory(client: MilterClient) -> int:
    """Bytes of the service's workers (PSS: what they share counts once)."""
    parent, _, _ = struct.unpack("3i", client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    workers = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    sizes = [re.search(r"^Pss: +(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.M) for pid in workers]
    return sum(int(size[1]) for size in sizes if size) * 1024


def test_32_messages_of_10_mb_at_once_add_less_than_40_mb() -> None:
    """Half of them are signed, half are verified; all are there in whole, but for their end, when it is measured."""
    fed = threading.Barrier(MESSAGES + 1, timeout=120)
    measured = threading.Barrier(MESSAGES + 1, timeout=120)

    def send(path: str, number: int, chunks: int) -> tuple[bytes, list[str]]:
        with MilterClient(path, timeout=120) as client:
            client.open()
            if number % 2:
                client.envelope(b"ann@ours.example", auth_type="PLAIN", auth_authen="ann")
            else:
                client.envelope()
                client.header(b"DKIM-Signature", b" " + SIGNED)
            client.header(b"From", b" ann@ours.example")
            client.say(END_OF_HEADER)
            for _ in range(chunks):
                client.say(BODY, CHUNK)
            fed.wait()
            measured.wait()
            outcome = client.end()
            return outcome.answer, [name for name, _ in outcome.fields]

    with serving() as path, ThreadPoolExecutor(MESSAGES) as pool, MilterClient(path) as looking:
        sizes = []
        for chunks in (1, CHUNKS):  # the first time for threads and caches
            sent = [pool.submit(send, path, number, chunks) for number in range(MESSAGES)]
            fed.wait()
            sizes.append(workers_memory(looking))
            measured.wait()
            answers = [one.result(120) for one in sent]
    told = [(CONTINUE, ["Authentication-Results"]), (CONTINUE, ["DKIM-Signature"])]
    assert told * (MESSAGES // 2) == answers
    assert sizes[1] - sizes[0] < 40_000_000, sizes
