# SPDX-License-Identifier: GPL-3.0-or-later
"""The service as a process: it starts, says where it listens, replaces what dies, reloads, and stops in order."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.support.milter_client import CONTINUE, MilterClient
from tests.support.needs import ROOT
from tests.support.service import Service, need_milter, until

pytestmark = pytest.mark.integration("gatekeeper")

QUESTION = b"request=smtpd_access_policy\nprotocol_state=RCPT\nhelo_name=%b\nclient_address=192.0.2.1\nsender=\n\n"
CONFIG = """\
hostname = "mx.example"
mynetworks = ["127.0.0.0/8"]
[dns]
nameservers = ["127.0.0.1:9"]
timeout = "1s"
[store]
url = "memory:"
[policy]
listen = "inet:127.0.0.1:0"
workers = 2
restrictions = ["{helo}"]
[milter]
listen = "unix:{folder}/milter.sock"
workers = 2
"""


def ask(connection: socket.socket, helo: bytes = b"localhost") -> bytes:
    connection.sendall(QUESTION % helo)
    answer = b""
    while not answer.endswith(b"\n\n"):
        if not (data := connection.recv(4096)):
            return answer
        answer += data
    return answer


@pytest.fixture
def config() -> Iterator[Path]:
    # not tmp_path: workers that have given up root must be able to reach the socket's folder
    with TemporaryDirectory(prefix="gatekeeper-test-") as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "gatekeeper.toml"
        path.write_text(CONFIG.format(folder=folder, helo="reject_non_fqdn_helo_hostname"))
        yield path


@pytest.fixture
def service(config: Path) -> Iterator[Service]:
    running = Service(config, "run")
    yield running
    if running.process.poll() is None:
        running.end()
    if running.process.poll() is None:
        os.killpg(running.process.pid, signal.SIGKILL)


def test_run_serves_both_and_says_where_it_listens(service: Service, config: Path) -> None:
    need_milter()
    with service.policy() as connection:
        assert ask(connection).startswith(b"action=504 5.5.2 ")
        assert b"action=DUNNO\n\n" == ask(connection, b"mail.example.com")
    service.wait_for(rf"^listening milter unix:{config.parent}/milter\.sock$")
    with MilterClient(str(config.parent / "milter.sock")) as client:
        client.open()
        client.envelope()
        assert CONTINUE == client.content(b"Subject: x\r\n\r\nHello\r\n").answer


def test_the_start_ends_with_the_lines_for_postfix_and_a_question_to_try(service: Service) -> None:
    service.wait_for(r"smtpd_recipient_restrictions = check_policy_service \{ inet:127\.0\.0\.1:[1-9]\d*, ")
    line = service.wait_for(r"^\s*(\S.* --config \S+ explain .*)$")[1]
    tried = subprocess.run(line.split(), capture_output=True, text=True, cwd=ROOT)
    assert 0 == tried.returncode, tried.stderr
    assert "504 5.5.2" in tried.stdout


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_to_reload_ends_no_worker_that_hears_it_too(service: Service, number: int) -> None:
    service.wait_for("^listening policy")
    service.wait_for("^and ask it")
    workers = service.children()
    for worker in workers:
        os.kill(worker, number)
    with service.policy() as connection:
        assert ask(connection).startswith(b"action=504 ")
    service.process.send_signal(number)
    service.wait_for("reloaded")
    assert [] == [line for line in service.lines if "is replaced" in line]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_leaves_no_socket_and_no_process(
    service: Service, config: Path, number: signal.Signals
) -> None:
    with service.policy() as connection:
        ask(connection)
        workers = service.children()
        assert 0 == service.end(number)
    assert [] == [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not (config.parent / "milter.sock").exists()
    assert not [line for line in service.lines if "Traceback" in line]


def test_a_worker_that_dies_is_replaced_and_the_others_go_on(service: Service) -> None:
    service.wait_for("explain")
    first = set(service.children())
    with service.policy() as connection:
        ask(connection)
        victim = _kill_another(first, connection)
        until(lambda: len(set(service.children()) - {victim}) == len(first), "the dead worker is replaced")
        assert b"action=DUNNO\n\n" == ask(connection, b"mail.example.com")
    service.wait_for(r"ended with status -9 and is replaced")
    assert 1 == len([line for line in service.lines if "smtpd_recipient_restrictions" in line])


def test_a_service_that_was_up_goes_on_when_a_new_worker_does_not_start(service: Service) -> None:
    service.wait_for("explain")
    first = set(service.children())
    with service.policy() as connection:
        ask(connection)
        victim = _kill_another(first, connection)
        newcomer = until(lambda: set(service.children()) - first, "a newcomer").pop()
        os.kill(newcomer, signal.SIGKILL)
        until(lambda: len(set(service.children()) - {victim, newcomer}) == len(first), "the next one is started")
        assert b"action=DUNNO\n\n" == ask(connection, b"mail.example.com")


def _kill_another(workers: set[int], connection: socket.socket) -> int:
    """Kill a worker that is not the one that serves `connection`."""
    victim = next(pid for pid in workers if not _holds_connection(pid, connection))
    os.kill(victim, signal.SIGKILL)
    return victim


def _holds_connection(pid: int, connection: socket.socket) -> bool:
    port = connection.getsockname()[1]
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[2].endswith(f":{port:04X}")}
    return any(os.readlink(entry) in inodes for entry in Path(f"/proc/{pid}/fd").iterdir())


def test_a_worker_that_hangs_is_killed_and_replaced(config: Path) -> None:
    quick = "from gatekeeper.daemon import supervisor, worker; supervisor.HANG_LIMIT = 2.0; worker.HEARTBEAT = 0.2"
    service = Service(config, "policy", prelude=quick)
    service.wait_for("explain")
    victim = service.children()[0]
    os.kill(victim, signal.SIGSTOP)
    service.wait_for(rf"worker \(pid {victim}\) ended with status -9 and is replaced")
    until(lambda: len(set(service.children()) - {victim}) == 2, "the hanging worker is replaced")
    with service.policy() as connection:
        assert b"action=DUNNO\n\n" == ask(connection, b"mail.example.com")
    assert 0 == service.end()


def test_a_store_that_is_gone_keeps_no_answer_back(config: Path) -> None:
    text = config.read_text().replace("memory:", "redis://127.0.0.1:9/0")
    lists = 'restrictions = ["ratelimit", "greylist", "reject_non_fqdn_helo_hostname"]'
    config.write_text(text.replace('restrictions = ["reject_non_fqdn_helo_hostname"]', lists))
    service = Service(config, "policy")
    with service.policy() as connection:
        assert ask(connection).startswith(b"action=504")
        assert b"action=DUNNO\n\n" == ask(connection, b"mail.example.com")
    service.wait_for("redis://127.0.0.1:9/0 is gone, decisions go on without it")
    assert 0 == service.end()


def test_a_reload_changes_the_answers_on_the_connections_that_there_are(service: Service, config: Path) -> None:
    with service.policy() as old:
        assert ask(old).startswith(b"action=504")
        config.write_text(config.read_text().replace("reject_non_fqdn_helo_hostname", "permit"))
        service.process.send_signal(signal.SIGHUP)
        service.wait_for("reloaded")
        until(lambda: _answers_permit(service), "new connections get the new configuration")
        # Postfix keeps its connection for the next request: closing it would cost that a second
        until(lambda: ask(old) == b"action=DUNNO\n\n", "the old connection is answered by the new configuration")


TABLE = 'restrictions = ["check_helo_access hash:helo", "reject_non_fqdn_helo_hostname"]'


@pytest.fixture
def table(config: Path) -> Path:
    """An access table that the service reads; replaced as a whole, as editors and rsync do."""
    config.write_text(config.read_text().replace('restrictions = ["reject_non_fqdn_helo_hostname"]', TABLE))
    path = config.parent / "helo"
    path.write_text("localhost REJECT generation 0\n")
    return path


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


QUICK = "from gatekeeper.core.watched_files import FileWatch as W; W.INTERVAL = W.SETTLED = 0.1"


PATIENT = "import gatekeeper.policy.server as s; s._YIELD_DELAY = 30.0"
"""A worker that holds more than the other waits for that one, however late a busy machine wakes it."""


@pytest.fixture
def watching(config: Path, table: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    running = Service(config, "policy", prelude=getattr(request, "param", QUICK))
    yield running
    running.end()


def _generation(answer: bytes) -> int:
    match = re.fullmatch(rb"action=554 5\.7\.1 <localhost>: Helo command rejected: generation (\d+)\n\n", answer)
    assert match, answer
    return int(match[1])


def test_no_answer_is_lost_or_doubled_while_tables_change_under_a_busy_connection(
    watching: Service, table: Path
) -> None:
    """Requests in pieces and in heaps, without a pause, on three connections during four changes."""
    with watching.policy() as one, watching.policy() as heaps, watching.policy() as pieces:
        seen: list[list[int]] = [[], [], []]
        for generation in range(5):
            if generation:
                _replace(table, f"localhost REJECT generation {generation}\n")
            deadline = time.monotonic() + 20
            while any(not found or found[-1] != generation for found in seen):
                assert time.monotonic() < deadline, ([found[-1:] for found in seen], watching.lines[-15:])
                seen[0].append(_generation(ask(one)))
                heaps.sendall(QUESTION % b"localhost" * 20)
                seen[1] += [_generation(answer) for answer in _answers(heaps, 20)]
                for piece in (QUESTION[:50], QUESTION[50:60], QUESTION[60:]):
                    pieces.sendall(piece.replace(b"%b", b"localhost"))
                seen[2] += [_generation(answer) for answer in _answers(pieces, 1)]
        assert [sorted(found) for found in seen] == seen
        for connection in (one, heaps, pieces):
            connection.settimeout(0.2)
            with pytest.raises(TimeoutError):
                connection.recv(1)
    assert not [line for line in watching.lines if "Traceback" in line or "cut off" in line]


def _answers(connection: socket.socket, count: int) -> list[bytes]:
    data = b""
    while data.count(b"\n\n") < count:
        more = connection.recv(4096)
        assert more, data
        data += more
    assert data.endswith(b"\n\n")
    assert count == data.count(b"\n\n")
    return [answer + b"\n\n" for answer in data.split(b"\n\n")[:-1]]


def test_a_half_sent_request_changes_hands_with_its_connection(watching: Service, table: Path) -> None:
    question = QUESTION % b"localhost"
    with watching.policy() as idle, watching.policy() as other:
        idle.sendall(question[:-30])
        assert 0 == _generation(ask(other))
        _replace(table, "localhost REJECT generation 1\n")
        until(lambda: _generation(ask(other)) == 1, "the new table answers")
        idle.sendall(question[-30:])
        assert [1] == [_generation(answer) for answer in _answers(idle, 1)]


def test_old_workers_leave_when_they_have_handed_everything_over(watching: Service, table: Path) -> None:
    with watching.policy() as connection:
        ask(connection)
        old = set(watching.children())
        _replace(table, "localhost REJECT generation 1\n")
        until(lambda: not old & set(watching.children()), "the old workers are gone")
        assert 1 == _generation(ask(connection))


def test_a_bad_line_is_refused_with_its_place_while_the_old_table_serves_and_a_good_one_is_taken(
    watching: Service, table: Path
) -> None:
    with watching.policy() as connection:
        assert 0 == _generation(ask(connection))
        _replace(table, "localhost REJECT generation 1\nother nonsense\n")
        watching.wait_for(rf"not reloaded: {table}:2: unknown action 'nonsense'")
        assert 0 == _generation(ask(connection))
        _replace(table, "localhost REJECT generation 2\n")
        watching.wait_for(rf"reloaded: {table} changed")
        until(lambda: _generation(ask(connection)) == 2, "the mended table answers")


def test_a_key_table_that_changes_is_read_again(config: Path) -> None:
    need_milter()
    keys = config.parent / "KeyTable"
    keys.write_text("")
    signing = f'[signing]\nkey_table = "{keys}"\nsigning_table = "csl:"\n'
    config.write_text(config.read_text() + signing)
    service = Service(config, "milter", prelude=QUICK)
    try:
        service.wait_for("^listening milter")
        _replace(keys, "name example.com:selector:/nonexistent/key\n")
        service.wait_for("WARNING /nonexistent/key: warning: cannot read the private key, named in ")
        _replace(keys, "# nothing\n")
        service.wait_for(rf"reloaded: {keys} changed")
    finally:
        service.end()


@pytest.mark.parametrize("watching", [PATIENT], indirect=True, ids=["patient"])
def test_lasting_connections_are_shared_evenly(watching: Service) -> None:
    watching.wait_for("explain")
    connections: list[socket.socket] = []
    try:
        for _ in range(16):
            connections.append(watching.policy())
            ask(connections[-1])  # so that it is taken and counted when the next one comes
        held = [sum(_holds_connection(pid, connection) for connection in connections) for pid in watching.children()]
        assert [8, 8] == held
    finally:
        for connection in connections:
            connection.close()


def _answers_permit(service: Service) -> bool:
    with service.policy() as connection:
        return ask(connection) == b"action=DUNNO\n\n"


def test_a_bad_new_configuration_is_refused_with_its_place_and_the_old_one_goes_on(
    service: Service, config: Path
) -> None:
    with service.policy() as connection:
        ask(connection)
        config.write_text(config.read_text().replace("[policy]", "[polcy]"))
        service.process.send_signal(signal.SIGHUP)
        service.wait_for(rf"not reloaded: {config}:\d+: .*polcy")
        assert ask(connection).startswith(b"action=504")
    assert _answers_504(service)


def _answers_504(service: Service) -> bool:
    with service.policy() as connection:
        return ask(connection).startswith(b"action=504")


def test_a_taken_port_ends_the_start_with_the_name_of_its_holder(config: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        config.write_text(config.read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}"))
        done = subprocess.run(
            [sys.executable, "-m", "gatekeeper", "--config", config, "run"], capture_output=True, text=True, cwd=ROOT
        )
    assert 75 == done.returncode
    assert re.search(rf"inet:127\.0\.0\.1:{port} is taken by .*, pid {os.getpid()}\b", done.stderr)


def test_a_mistake_in_the_configuration_ends_the_start_with_its_place(config: Path) -> None:
    config.write_text(config.read_text().replace("workers = 2", "worker = 2", 1))
    done = subprocess.run(
        [sys.executable, "-m", "gatekeeper", "--config", config, "run"], capture_output=True, text=True, cwd=ROOT
    )
    assert 78 == done.returncode
    assert re.search(rf"{config}:\d+: .*worker\b.*workers", done.stderr)


def test_the_parent_never_loads_libmilter_and_its_workers_do(service: Service) -> None:
    need_milter()
    service.wait_for("^listening milter")
    assert "libmilter" not in Path(f"/proc/{service.process.pid}/maps").read_text()
    assert any("libmilter" in Path(f"/proc/{pid}/maps").read_text() for pid in service.children())


def test_workers_of_a_parent_that_is_root_are_not_root(service: Service) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give privileges up")
    service.wait_for("explain")
    for pid in service.children():
        status = Path(f"/proc/{pid}/status").read_text()
        assert re.search(r"^Uid:\t(?!0\t)(\d+)\t\1\t\1\t\1$", status, re.MULTILINE)


def test_workers_leave_when_the_parent_has_gone(service: Service) -> None:
    service.wait_for("explain")
    workers = service.children()
    service.process.kill()
    service.process.wait()
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers), "no worker is left")


def test_a_message_that_is_held_when_the_service_stops_is_still_answered(service: Service, config: Path) -> None:
    need_milter()
    service.wait_for("^listening milter")
    with MilterClient(str(config.parent / "milter.sock")) as client:
        client.open()
        client.envelope()
        service.process.send_signal(signal.SIGTERM)
        # libmilter itself would cut us off within 5 s of a SIGTERM of its own
        time.sleep(1)
        assert CONTINUE == client.content(b"Subject: x\r\n\r\nHello\r\n").answer
    assert 0 == service.process.wait(20)


def test_reloads_lose_no_milter_session(service: Service, config: Path) -> None:
    need_milter()
    service.wait_for("^listening milter")
    answers = []
    for turn in range(24):
        if turn % 8 == 4:
            service.process.send_signal(signal.SIGHUP)
        with MilterClient(str(config.parent / "milter.sock")) as client:
            client.open()
            client.envelope()
            answers.append(client.content(b"Subject: x\r\n\r\nHello\r\n").answer)
    assert [CONTINUE] * 24 == answers


def test_the_milter_also_serves_tcp_and_several_addresses_at_once(config: Path) -> None:
    need_milter()
    unix = f'"unix:{config.parent}/milter.sock"'
    config.write_text(config.read_text().replace(unix, f'[{unix}, "inet:127.0.0.1:0"]'))
    service = Service(config, "milter")
    service.wait_for("^listening milter unix:")
    port = int(service.wait_for(r"^listening milter inet:127\.0\.0\.1:(\d+)$")[1])
    for address in (str(config.parent / "milter.sock"), ("127.0.0.1", port)):
        with MilterClient(address) as client:
            client.open()
            client.envelope()
            assert CONTINUE == client.content(b"Subject: x\r\n\r\nHello\r\n").answer
    assert 0 == service.end()
