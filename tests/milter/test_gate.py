# SPDX-License-Identifier: GPL-3.0-or-later
"""On sockets that others than Postfix reach, no peer's bytes end the worker; whom `milter.peers` does not name is out.

What kills libmilter without the gate stands in ODD: a list of macros with a name too many, asked for any other name.
"""

import asyncio
import os
import pwd
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.core.peers import Door, Peers
from gatekeeper.milter.gate import LONGEST, BadPacket, Gate, Packets
from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.milter_service import INBOUND
from tests.support.service import Service, need_milter, until


def packet(command: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("!L", len(data) + 1 if length is None else length) + command + data


SOUND = {
    "negotiation": packet(b"O", bytes(12)),
    "macros": packet(b"D", b"Ci\0" + b"4AbC\0{daemon_name}\0\0"),
    "no macros": packet(b"D", b"C"),
    "macros for nothing": packet(b"D"),
    "a header": packet(b"L", b"From\0 a@b\0"),
    "a body": packet(b"B", bytes(70_000)),
    "the longest": packet(b"B", bytes(LONGEST - 1)),
    "an end": packet(b"E"),
}
BAD = {
    "a name without a value": packet(b"D", b"Ca\0"),
    "three": packet(b"D", b"Ca\0b\0c\0"),
    "a value without an end": packet(b"D", b"Ca\0b"),
    "half a name": packet(b"D", b"Ca\0b\0c"),
    "a list of an odd number of empty names": packet(b"D", b"C\0\0\0"),
    "endless macros": packet(b"D", b"C", 100_000),
    "no length": packet(b"D", b"", 0),
    "a negative length": packet(b"D", b"C", 0xFFFFFFFF),
    "half of all": packet(b"B", b"", 0x80000000),
    "too long": packet(b"B", b"", LONGEST + 1),
}


def passed(*chunks: bytes) -> bytes:
    packets = Packets()
    return b"".join(packets.pass_on(chunk) for chunk in chunks)


@pytest.mark.parametrize("name", SOUND)
def test_what_libmilter_bears_passes_as_it_is_in_any_pieces(name: str) -> None:
    wire = SOUND["negotiation"] + SOUND[name] + SOUND["an end"]
    assert wire == passed(wire)
    step = 1 if len(wire) < 1000 else 4099
    assert wire == passed(*(wire[at : at + step] for at in range(0, len(wire), step)))


@pytest.mark.parametrize("name", BAD)
def test_what_libmilter_does_not_bear_never_passes_in_any_pieces(name: str) -> None:
    for step in (1, 2, 5, 1000):
        packets, wire, through = Packets(), SOUND["a header"] + BAD[name], b""
        with pytest.raises(BadPacket):  # noqa: PT012 (whichever piece it is)
            for at in range(0, len(wire), step):
                through += packets.pass_on(wire[at : at + step])
        assert SOUND["a header"].startswith(through)


def test_no_byte_of_a_list_goes_on_before_it_is_whole() -> None:
    packets, wire = Packets(), SOUND["macros"]
    assert b"" == b"".join(packets.pass_on(wire[at : at + 1]) for at in range(len(wire) - 1))
    assert wire == packets.pass_on(wire[-1:])


@given(st.lists(st.sampled_from([*SOUND.values()][:5]), max_size=6), st.lists(st.integers(1, 40), max_size=20))
def test_pieces_make_no_difference(packets: list[bytes], cuts: list[int]) -> None:
    wire, at, chunks = b"".join(packets), 0, []
    for cut in cuts:
        chunks.append(wire[at : at + cut])
        at += cut
    assert wire == passed(*chunks, wire[at:])


@given(st.binary(max_size=200))
def test_any_bytes_pass_or_are_refused_and_lists_that_pass_are_even(data: bytes) -> None:
    try:
        through = passed(data)
    except BadPacket:
        return
    assert data.startswith(through)
    while len(through) > 4 and len(through) >= 4 + (length := struct.unpack("!L", through[:4])[0]):
        macros = through[6 : 4 + length] if through[4:5] == b"D" else b""
        assert 0 == macros.count(b"\0") % 2
        through = through[4 + length :]


ODD = [b"C" + b"a\0" * count for count in (1, 3, 5, 7, 9, 11, 13, 25, 101)]
CONFIG = """\
hostname = "mx.ours.example"
mynetworks = []
[store]
url = "memory:"
[dns]
nameservers = ["127.0.0.1:1"]
timeout = "100ms"
[milter]
listen = "{listen}"
{milter}
workers = 1
"""


def test_what_libmilter_says_before_it_hangs_up_is_passed_on_and_then_the_peer_is_hung_up_on() -> None:
    async def run() -> tuple[bytes, bytes]:
        with TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
            listener.bind(f"{folder}/gate")
            listener.listen()
            listener.setblocking(False)
            ours, libmilter = socket.socketpair()
            ours.setblocking(False)
            Gate(Door(Peers(), "milter"), lambda: ours).open(listener)
            reader, writer = await asyncio.open_unix_connection(f"{folder}/gate")
            writer.write(SOUND["negotiation"])
            while not select.select([libmilter], [], [], 0)[0]:  # noqa: ASYNC110 (there is nothing to wait on)
                await asyncio.sleep(0.01)
            libmilter.send(b"the last words")
            libmilter.close()  # with the negotiation unread: the gate finds words and an error at once
            async with asyncio.timeout(20):
                heard = await reader.readexactly(14)
                with suppress(ConnectionError):
                    return heard, await reader.read()
                return heard, b""

    assert (b"the last words", b"") == uvloop.run(run())


@contextmanager
def serving(listen: str, milter: str = "") -> Iterator[tuple[str | tuple[str, int], Service]]:
    need_milter()
    with TemporaryDirectory(prefix="gatekeeper-test-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "gatekeeper.toml").write_text(CONFIG.format(listen=listen.format(folder=folder), milter=milter))
        service = Service(folder / "gatekeeper.toml", "milter")
        found = service.wait_for(r"^listening milter (?:unix:(\S+)|inet:(\S+):(\d+))")
        yield found[1] or (found[2].strip("[]"), int(found[3])), service
        assert 0 == service.end()
        assert [] == [line for line in service.lines if "Traceback" in line or "ended with status" in line]


REACHED = ["inet:127.0.0.1:0", "inet:[::1]:0", "unix:{folder}/milter.sock"]


@pytest.fixture(scope="module", params=REACHED)
def reached(request: pytest.FixtureRequest) -> Iterator[tuple[str | tuple[str, int], Service]]:
    """A milter that anybody on the machine can reach."""
    with serving(request.param, 'socket_mode = "0666"') as found:
        yield found


def answer(client: MilterClient) -> bytes:
    client.open()
    client.envelope()
    return client.content(INBOUND).answer


@pytest.mark.integration("gatekeeper")
def test_no_list_of_macros_ends_the_worker_or_anybodys_session(
    reached: tuple[str | tuple[str, int], Service],
) -> None:
    address, service = reached
    workers = service.children()
    with MilterClient(address) as held:
        held.open()
        held.envelope()
        for _ in range(10):
            for odd in ODD:
                # it may have hung up before all is said
                with MilterClient(address) as peer, suppress(BrokenPipeError, ConnectionResetError):
                    peer._send(b"D", odd)
                    peer._send(b"C", b"x\0004\0\x19192.0.2.1\0")
                    assert b"" == peer.sock.recv(1)
        assert CONTINUE == held.content(INBOUND).answer
    assert workers == service.children()


@pytest.mark.integration("gatekeeper")
def test_a_message_is_judged_behind_the_gate_as_before_it(reached: tuple[str | tuple[str, int], Service]) -> None:
    with MilterClient(reached[0]) as client:
        client.open()
        for body in (b"", b"x" * 3_000_000, b"y\r\n" * 10):
            client.envelope()
            outcome = client.content(b"X: " + b"a" * 100_000 + b"\r\n" + INBOUND + body, chunk=65535)
            assert (CONTINUE, ["Authentication-Results"]) == (outcome.answer, [name for name, _ in outcome.fields])


@pytest.mark.integration("gatekeeper")
def test_the_socket_behind_the_gate_has_no_name(reached: tuple[str | tuple[str, int], Service]) -> None:
    address, service = reached
    [worker] = service.children()
    held = set()
    for descriptor in Path(f"/proc/{worker}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            held.add(os.readlink(descriptor))
    lines = [line.split(maxsplit=7) for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    named = {fields[7] for fields in lines if len(fields) == 8 and f"socket:[{fields[6]}]" in held} - {address}
    [inside] = [name for name in named if name.endswith("/milter.sock")]
    assert not Path(inside).parent.exists()


TRY = """\
import os, socket, sys
os.setuid(int(sys.argv[1]))
sock = socket.socket(socket.AF_UNIX); sock.settimeout(20); sock.connect(sys.argv[2])
sock.sendall(bytes([0, 0, 0, 13]) + b"O" + bytes([0, 0, 0, 6]) + bytes([0, 0, 1, 255]) + bytes([0, 31, 255, 255]))
sys.exit(0 if sock.recv(1) else 3)
"""


@pytest.mark.integration("gatekeeper")
@pytest.mark.skipif(os.getuid() != 0, reason="only root becomes somebody else")
def test_a_user_who_is_not_named_is_hung_up_on_with_one_line() -> None:
    nobody = pwd.getpwnam("nobody").pw_uid
    with serving(REACHED[2], 'socket_mode = "0666"\npeers = ["root"]') as (address, service):
        assert isinstance(address, str)

        def connects(uid: int) -> bool:
            return subprocess.run([sys.executable, "-I", "-c", TRY, str(uid), address]).returncode == 0

        assert [True, False, False, True] == [connects(uid) for uid in (0, nobody, nobody, 0)]
        service.wait_for(rf"a milter connection of user id {nobody} is closed: milter\.peers does not name it$")
        assert 1 == len([line for line in service.lines if "is closed" in line])


@pytest.mark.integration("gatekeeper")
@pytest.mark.parametrize(("peers", "comes_in"), [("192.0.2.0/24", False), ("127.0.0.0/8", True)])
def test_an_address_that_is_not_named_is_hung_up_on(peers: str, comes_in: bool) -> None:
    with serving(REACHED[0], f'peers = ["{peers}"]') as (address, _):
        assert isinstance(address, tuple)
        if comes_in:
            with MilterClient(address) as client:
                assert CONTINUE == answer(client)
            return
        with socket.create_connection(address, timeout=20) as sock:
            assert b"" == sock.recv(1)


@pytest.mark.integration("gatekeeper")
def test_behind_the_gate_a_held_session_ends_in_its_own_time_when_the_service_stops() -> None:
    with serving("inet:127.0.0.1:0") as (address, service), MilterClient(address) as held:
        held.open()
        held.envelope()
        service.process.terminate()
        until(lambda: not _is_served(address), "no more connections")
        assert CONTINUE == held.content(INBOUND).answer


def _is_served(address: str | tuple[str, int]) -> bool:
    try:
        MilterClient(address, timeout=0.3).close()
    except OSError:
        return False
    return True
