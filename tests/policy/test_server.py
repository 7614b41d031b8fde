# SPDX-License-Identifier: GPL-3.0-or-later
"""Policy connections over real sockets: order, isolation, accidents, draining, on asyncio's loop and on uvloop's."""

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import uvloop

from gatekeeper.core.log import read_decision
from gatekeeper.core.request import Request
from gatekeeper.core.verdict import PASS, Decision, Mode, Outcome, Verdict, defer_if_permit, defer_if_reject, reject
from gatekeeper.dnsclient.resolver import TableResolver
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.pipeline.context import Context
from gatekeeper.pipeline.facts import Facts
from gatekeeper.pipeline.pipeline import RECIPIENT, Pipeline
from gatekeeper.pipeline.site import Site
from gatekeeper.policy.connection_balance import ConnectionBalance
from gatekeeper.policy.protocol import MAX_REQUEST
from gatekeeper.policy.server import PolicyServer
from gatekeeper.stores.memory import MemoryStore
from gatekeeper.stores.store import Keys

# The hook that is to replace this fixture is not in all versions of pytest-asyncio that we accept.
pytestmark = pytest.mark.filterwarnings('ignore:Overriding the "event_loop_policy" fixture')

QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\ninstance=%b\nrecipient=a@b.example\n\n"


@pytest.fixture(params=[asyncio.DefaultEventLoopPolicy, uvloop.EventLoopPolicy], ids=["asyncio", "uvloop"])
def event_loop_policy(request: pytest.FixtureRequest) -> asyncio.AbstractEventLoopPolicy:
    policy: asyncio.AbstractEventLoopPolicy = request.param()
    return policy


@dataclass(frozen=True)
class Tells:
    """A check that answers with the request's instance, so that answers can be told apart."""

    opinion: Callable[[Request, Context], Awaitable[Verdict]]
    name: str = "tells"
    mode: Mode = Mode.ENFORCE
    needs: tuple[str, ...] = ()

    async def check(self, request: Request, context: Context) -> Verdict:
        return await self.opinion(request, context)


async def tell(request: Request, context: Context) -> Verdict:
    return reject("tells", "450", "4.7.1", request.instance)


@dataclass
class World:
    """What PolicyServer asks: a real pipeline of one check, or two, in an empty world."""

    opinion: Callable[[Request, Context], Awaitable[Verdict]] = tell
    next_opinion: Callable[[Request, Context], Awaitable[Verdict]] | None = None
    asked: list[str] = field(default_factory=list)

    async def decide(self, request: Request) -> tuple[Decision, Context]:
        self.asked.append(request.instance)
        resolver = TableResolver(Zone.parse(""))
        context = Context.of(
            site=Site(hostname="mx.example", authserv_id="mx.example"),
            resolver=resolver,
            store=MemoryStore(),
            clock=lambda: 0.0,
            keys=Keys(b"x" * 32),
            facts=Facts(
                resolver, client=request.client, helo=request.helo, sender=request.sender, receiver="mx.example"
            ),
        )
        checks = tuple(Tells(opinion) for opinion in (self.opinion, self.next_opinion) if opinion is not None)
        return await Pipeline({RECIPIENT: checks}).decide(request, context), context


class Broken(World):
    """Fails before the pipeline can catch it."""

    async def decide(self, request: Request) -> tuple[Decision, Context]:
        raise RuntimeError("the app is broken")


@pytest.fixture(params=["unix", "inet"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[socket.socket]:
    if request.param == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "policy.sock"))
    else:
        sock = socket.create_server(("127.0.0.1", 0))
    sock.listen()
    sock.setblocking(False)
    with sock:
        yield sock


@asynccontextmanager
async def serving(world: World, *listeners: socket.socket, budget: float = 20.0) -> AsyncIterator[PolicyServer]:
    server = PolicyServer(world, timeout=budget)
    await server.serve(listeners)
    try:
        yield server
    finally:
        await server.drain(5)


@dataclass
class Peer:
    """One connection, as Postfix has it."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> bytes:
        return (await self.reader.readuntil(b"\n\n")).removeprefix(b"action=").strip()

    async def ask(self, instance: bytes) -> bytes:
        self.send(QUESTION % instance)
        return await self.answer()

    async def closed(self) -> bytes:
        """What still comes until the server closes."""
        return await self.reader.read()


@asynccontextmanager
async def peer(listener: socket.socket) -> AsyncIterator[Peer]:
    if listener.family == socket.AF_UNIX:
        reader, writer = await asyncio.open_unix_connection(listener.getsockname())
    else:
        reader, writer = await asyncio.open_connection(*listener.getsockname())
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()


async def test_one_connection_carries_many_requests(listener: socket.socket) -> None:
    async with serving(World(), listener), peer(listener) as postfix:
        assert [b"450 4.7.1 1", b"450 4.7.1 2"] == [await postfix.ask(b"1"), await postfix.ask(b"2")]


async def test_pipelined_requests_are_answered_in_order(listener: socket.socket) -> None:
    async def slower_first(request: Request, context: Context) -> Verdict:
        await asyncio.sleep(0.01 if request.instance == "0" else 0)
        return await tell(request, context)

    async with serving(World(slower_first), listener), peer(listener) as postfix:
        postfix.send(b"".join(QUESTION % b"%d" % i for i in range(20)))
        assert [b"450 4.7.1 %d" % i for i in range(20)] == [await postfix.answer() for _ in range(20)]


async def test_a_request_may_come_byte_by_byte(listener: socket.socket) -> None:
    async with serving(World(), listener), peer(listener) as postfix:
        for byte in QUESTION % b"1":
            postfix.send(bytes([byte]))
            await asyncio.sleep(0)
        assert b"450 4.7.1 1" == await postfix.answer()


async def test_a_broken_frame_closes_its_own_connection_only(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(World(), listener), peer(listener) as good, peer(listener) as bad:
        await good.ask(b"1")
        bad.send(QUESTION % b"2" + b"no equals sign\n\n" + QUESTION % b"3")
        assert b"action=450 4.7.1 2\n\n" == await bad.closed()
        assert b"450 4.7.1 4" == await good.ask(b"4")
    assert "closed without an answer: a line that is not name=value: no equals sign" in caplog.text


async def test_an_endless_request_closes_the_connection(listener: socket.socket) -> None:
    async with serving(World(), listener), peer(listener) as hostile:
        hostile.send(b"x" * (MAX_REQUEST * 2))
        # A peer that still sends may see the connection reset instead of its end.
        try:
            assert b"" == await hostile.closed()
        except ConnectionResetError:
            pass


async def test_more_requests_than_memory_should_hold_are_all_answered(listener: socket.socket) -> None:
    async with serving(World(), listener), peer(listener) as eager:
        count = 3 * MAX_REQUEST // len(QUESTION)
        eager.send(b"".join(QUESTION % b"%d" % i for i in range(count)))
        assert [b"450 4.7.1 %d" % i for i in range(count)] == [await eager.answer() for _ in range(count)]


@pytest.mark.parametrize("odd", [b"request=junk\n\n", b"request=smtpd_access_policy\nprotocol_state=XYZZY\n\n"])
async def test_an_odd_request_is_answered_dunno_and_logged(
    listener: socket.socket, odd: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(World(), listener), peer(listener) as postfix:
        postfix.send(odd)
        assert b"DUNNO" == await postfix.answer()
        assert b"450 4.7.1 1" == await postfix.ask(b"1")
    assert "is not understood" in caplog.text


async def test_a_failing_app_answers_dunno_with_a_traceback_in_the_log(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Broken(), listener), peer(listener) as postfix:
        assert [b"DUNNO", b"DUNNO"] == [await postfix.ask(b"1"), await postfix.ask(b"2")]
    assert "RuntimeError: the app is broken" in caplog.text


async def test_a_decision_over_its_budget_answers_dunno(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async def hangs(request: Request, context: Context) -> Verdict:
        await asyncio.Event().wait()
        return PASS

    async with serving(World(hangs), listener, budget=0.01), peer(listener) as postfix:
        assert b"DUNNO" == await postfix.ask(b"1")
    assert "no decision within 0.01 s, answered DUNNO: instance '1'" in caplog.text


async def test_what_was_decided_when_the_time_was_up_is_answered_and_what_was_counted_is_settled(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settled: list[str] = []

    async def keeps(request: Request, context: Context) -> Verdict:
        async def settle(decision: Decision) -> None:
            settled.append(decision.verdict.reply)

        context.after(settle)
        return defer_if_permit("kept", "4.1.8", "the domain is in doubt")

    async def hangs(request: Request, context: Context) -> Verdict:
        await asyncio.Event().wait()
        return PASS

    async with serving(World(keeps, hangs), listener, budget=0.01), peer(listener) as postfix:
        for instance in (b"1", b"2"):
            assert b"DEFER_IF_PERMIT 4.1.8 the domain is in doubt" == await postfix.ask(instance)
    assert 2 * ["450 4.1.8 the domain is in doubt"] == settled
    assert "answered DEFER_IF_PERMIT 4.1.8 the domain is in doubt: instance '1'" in caplog.text
    assert "tells.cut_off" in caplog.text


SAYS = {
    b"DUNNO": PASS,
    b"DEFER_IF_PERMIT 4.7.1 come back": defer_if_permit("soft", "4.7.1", "come back"),
    b"DEFER_IF_REJECT 4.7.1 unsure": defer_if_reject("maybe", "4.7.1", "unsure"),
    b"450 4.1.8 not now": reject("unsure", "450", "4.1.8", "not now"),
    b"554 5.7.1 no": reject("bad", "554", "5.7.1", "no"),
    b"HOLD look at it": Verdict(Outcome.ACTION, "access.hold", text="HOLD look at it"),
    b"OK": Verdict(Outcome.ACCEPT, "access.ok"),
}


@pytest.mark.parametrize(("said", "verdict"), SAYS.items())
async def test_the_log_has_what_was_answered_on_the_wire(
    said: bytes, verdict: Verdict, listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def opinion(request: Request, context: Context) -> Verdict:
        return verdict

    async with serving(World(opinion), listener), peer(listener) as postfix:
        assert said == await postfix.ask(b"1")
    [line] = [found for found in map(read_decision, (f" {one}" for one in caplog.messages)) if found]
    assert said.decode() == line["action"]


async def test_a_process_that_got_no_cpu_does_not_cut_off_what_only_waits_to_be_read(listener: socket.socket) -> None:
    """All its timers are due at once: a question that was answered meanwhile must have a turn of the loop."""
    ours, theirs = socket.socketpair()

    async def reads(request: Request, context: Context) -> Verdict:
        ours.setblocking(False)
        theirs.send(b"x")
        time.sleep(0.3)  # noqa: ASYNC251 (nothing turns: that is the point)
        for _ in range(5):
            await asyncio.sleep(0.001)
        await asyncio.get_running_loop().sock_recv(ours, 1)
        return await tell(request, context)

    with ours, theirs:
        async with serving(World(reads), listener, budget=0.2), peer(listener) as postfix:
            assert b"450 4.7.1 1" == await postfix.ask(b"1")


async def test_side_effects_begin_after_the_answer_and_before_the_next_request(listener: socket.socket) -> None:
    effects: list[str] = []

    async def remembers(request: Request, context: Context) -> Verdict:
        before = len(effects)

        async def effect(decision: Decision) -> None:
            effects.append(request.instance)

        context.after(effect)
        await asyncio.sleep(0.01)
        return reject("x", "450", "4.7.1", f"after {before}, {len(effects)} when it was decided")

    async with serving(World(remembers), listener), peer(listener) as postfix:
        postfix.send(QUESTION % b"1" + QUESTION % b"2")
        assert b"450 4.7.1 after 0, 0 when it was decided" == await postfix.answer()
        assert b"450 4.7.1 after 1, 1 when it was decided" == await postfix.answer()
    assert ["1", "2"] == effects


async def test_side_effects_wait_for_no_other_request(listener: socket.socket) -> None:
    done = asyncio.Event()

    async def remembers(request: Request, context: Context) -> Verdict:
        async def effect(decision: Decision) -> None:
            await asyncio.sleep(0)
            done.set()

        context.after(effect)
        return PASS

    async with serving(World(remembers), listener), peer(listener) as postfix:
        await postfix.ask(b"1")
        await asyncio.wait_for(done.wait(), 5)


async def test_side_effects_of_the_last_answer_are_run_before_the_server_ends(listener: socket.socket) -> None:
    effects: list[str] = []

    async def remembers(request: Request, context: Context) -> Verdict:
        async def effect(decision: Decision) -> None:
            await asyncio.sleep(0.05)
            effects.append(request.instance)

        context.after(effect)
        return PASS

    async with serving(World(remembers), listener), peer(listener) as postfix:
        await postfix.ask(b"1")
    assert ["1"] == effects


async def test_a_side_effect_that_breaks_stops_nothing(
    listener: socket.socket, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def breaks(self: Context, decision: Decision) -> None:
        raise RuntimeError("the store is upside down")

    async def remembers(request: Request, context: Context) -> Verdict:
        context.after(lambda decision: asyncio.sleep(0))
        return PASS

    monkeypatch.setattr(Context, "settle", breaks)
    async with serving(World(remembers), listener), peer(listener) as postfix:
        assert [b"DUNNO", b"DUNNO"] == [await postfix.ask(b"1"), await postfix.ask(b"2")]
    assert "the store is upside down" in caplog.text


async def test_a_log_that_breaks_stops_nothing(listener: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr("gatekeeper.policy.server.write_decision", breaks)
    async with serving(World(), listener), peer(listener) as postfix:
        assert [b"450 4.7.1 1", b"450 4.7.1 2"] == [await postfix.ask(b"1"), await postfix.ask(b"2")]


async def test_each_decision_is_one_log_line(listener: socket.socket, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gatekeeper.policy.server")
    async with serving(World(), listener), peer(listener) as postfix:
        await postfix.ask(b"1")
    (line,) = [record.getMessage() for record in caplog.records if "side=policy" in record.getMessage()]
    assert "reasons=tells" in line


async def test_a_peer_that_has_said_its_last_word_is_answered(listener: socket.socket) -> None:
    async def slow(request: Request, context: Context) -> Verdict:
        await asyncio.sleep(0.01)
        return await tell(request, context)

    async with serving(World(slow), listener), peer(listener) as shell:
        shell.send(QUESTION % b"1" + QUESTION % b"2")
        shell.writer.write_eof()
        assert b"action=450 4.7.1 1\n\naction=450 4.7.1 2\n\n" == await shell.closed()


async def test_a_peer_that_leaves_in_the_middle_disturbs_nobody(listener: socket.socket) -> None:
    asked = asyncio.Event()

    async def slow(request: Request, context: Context) -> Verdict:
        asked.set()
        await asyncio.sleep(0.01)
        return await tell(request, context)

    async with serving(World(slow), listener), peer(listener) as stays:
        async with peer(listener) as leaves:
            leaves.send(QUESTION % b"1")
            await asked.wait()
        assert b"450 4.7.1 2" == await stays.ask(b"2")


async def test_a_drain_answers_the_request_in_hand_and_closes(listener: socket.socket) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def waits(request: Request, context: Context) -> Verdict:
        asked.set()
        await go_on.wait()
        return await tell(request, context)

    async with serving(World(waits), listener) as server, peer(listener) as busy, peer(listener) as idle:
        busy.send(QUESTION % b"1")
        await asked.wait()
        drained = asyncio.ensure_future(server.drain(5))
        assert b"" == await idle.closed()
        go_on.set()
        assert b"action=450 4.7.1 1\n\n" == await busy.closed()
        await drained


def keeps(descriptor: int, unread: bytes) -> bool:
    """Nobody takes a connection over."""
    return False


async def test_a_retired_worker_serves_its_connections_until_they_close(listener: socket.socket) -> None:
    async with serving(World(), listener) as server:
        async with peer(listener) as postfix:
            await postfix.ask(b"1")
            drained = asyncio.ensure_future(server.retire(5, keeps))
            assert [b"450 4.7.1 2", b"450 4.7.1 3"] == [await postfix.ask(b"2"), await postfix.ask(b"3")]
        await drained


async def test_a_connection_changes_hands_wherever_its_bytes_are_cut(listener: socket.socket) -> None:
    stream = b"".join(QUESTION % b"%d" % i for i in range(3))
    for cut in range(0, len(stream) + 1, 7):
        old, new = PolicyServer(World()), PolicyServer(World())
        await old.serve([listener])

        def give(descriptor: int, unread: bytes, new: PolicyServer = new) -> bool:
            new.adopt(socket.socket(fileno=os.dup(descriptor)), unread)
            return True

        async with peer(listener) as postfix:
            postfix.send(stream[:cut])
            for _ in range(cut % 4):
                await asyncio.sleep(0)
            retired = asyncio.ensure_future(old.retire(5, give))
            await asyncio.sleep(0)
            postfix.send(stream[cut:])
            assert [b"450 4.7.1 %d" % i for i in range(3)] == [await postfix.answer() for _ in range(3)]
            await asyncio.wait_for(retired, 5)
        await new.drain(5)


async def test_a_request_under_way_is_answered_before_its_connection_changes_hands(listener: socket.socket) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()

    async def waits(request: Request, context: Context) -> Verdict:
        asked.set()
        await go_on.wait()
        return await tell(request, context)

    given: list[bytes] = []
    async with serving(World(waits), listener) as old, peer(listener) as postfix:
        new = PolicyServer(World())

        def give(descriptor: int, unread: bytes) -> bool:
            given.append(unread)
            new.adopt(socket.socket(fileno=os.dup(descriptor)), unread)
            return True

        postfix.send(QUESTION % b"1" + QUESTION % b"2")
        await asked.wait()
        retired = asyncio.ensure_future(old.retire(5, give))
        await asyncio.sleep(0)
        assert [] == given
        go_on.set()
        assert [b"450 4.7.1 1", b"450 4.7.1 2"] == [await postfix.answer(), await postfix.answer()]
        await retired
        assert [QUESTION % b"2"] == given
        await new.drain(5)


async def test_who_holds_most_lets_the_others_go_first(listener: socket.socket) -> None:
    share = ConnectionBalance(2)
    one, two = (PolicyServer(World(), slot=share.slot(number)) for number in range(2))
    with listener.dup() as same:
        await one.serve([listener])
        await two.serve([same])
        async with AsyncExitStack() as peers:
            for i in range(10):
                postfix = await peers.enter_async_context(peer(listener))
                assert b"450 4.7.1 %d" % i == await postfix.ask(b"%d" % i)
            assert [5, 5] == [len(server._connections) for server in (one, two)]
        await asyncio.gather(one.drain(5), two.drain(5))
    assert not share.slot(0).has_most()


async def test_a_drain_that_takes_too_long_cuts_what_is_left(
    listener: socket.socket, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(World(), listener) as server, peer(listener) as postfix:
        await postfix.ask(b"1")
        await server.retire(0.01, keeps)
        try:
            assert b"" == await postfix.closed()
        except ConnectionResetError:
            pass
    assert "1 policy connections are cut off" in caplog.text


async def test_after_a_drain_nobody_is_accepted(listener: socket.socket) -> None:
    world = World()
    async with serving(world, listener) as server:
        await server.drain(5)
        async with peer(listener) as late:
            late.send(QUESTION % b"1")
            # The connection waits in the backlog, for whoever else serves this listener.
            accepted, _ = listener.accept()
            accepted.close()
    assert [] == world.asked


async def test_two_servers_share_one_listener(listener: socket.socket) -> None:
    one, two = World(), World()
    async with serving(one, listener), peer(listener) as first:
        await first.ask(b"1")
        # A socket of its own, as a forked worker has it: two readers on one descriptor replace each other.
        with listener.dup() as same:
            async with serving(two, same):
                for i in range(20):
                    async with peer(listener) as postfix:
                        assert b"450 4.7.1 %d" % i == await postfix.ask(b"%d" % i)
    assert 21 == len(one.asked) + len(two.asked)


async def test_idle_connections_need_no_tasks(listener: socket.socket) -> None:
    async with serving(World(), listener), AsyncExitStack() as peers:
        for i in range(100):
            postfix = await peers.enter_async_context(peer(listener))
            assert b"450 4.7.1 %d" % i == await postfix.ask(b"%d" % i)
        # This test's own, and perhaps the last connection's, which may still settle.
        assert len(asyncio.all_tasks()) <= 2
