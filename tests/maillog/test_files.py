# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a log: packed in four ways, cut, binary, in two files at once, from the journal."""

import bz2
import gzip
import io
import json
import lzma
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from gatekeeper.maillog import journal
from gatekeeper.maillog.files import MAX_LINE, LogError, open_log
from gatekeeper.maillog.lines import Line
from gatekeeper.maillog.mail_log import MailLog
from gatekeeper.maillog.reader import Tally, read_lines

LINES = [f"2026-03-01T03:04:{second:02}+00:00 mx postfix/qmgr[1]: {second}" for second in range(60)]
TEXT = "".join(f"{line}\n" for line in LINES).encode()
PACK: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.compress,
}


def read(*paths: Path) -> tuple[list[str], Tally]:
    tally = Tally()
    logs = [open_log(path) for path in paths]
    lines = [line.text for line in read_lines(logs, tally)]
    for log in logs:
        log.close()
    return lines, tally


def wrote(tmp_path: Path, content: bytes, name: str = "mail.log") -> Path:
    path = tmp_path / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("how", PACK)
def test_a_packed_log_is_read_whatever_its_name(tmp_path: Path, how: str) -> None:
    lines, tally = read(wrote(tmp_path, PACK[how](TEXT), "mail.log.7"))
    assert [str(second) for second in range(60)] == lines
    assert (60, 0, []) == (tally.lines, tally.unreadable, tally.damaged)


@pytest.mark.parametrize("how", ["gzip", "bzip2", "xz", "zstd"])
def test_two_packed_logs_in_one_file_are_both_read(tmp_path: Path, how: str) -> None:
    half = TEXT.index(b"\n", len(TEXT) // 2) + 1
    lines, _ = read(wrote(tmp_path, PACK[how](TEXT[:half]) + PACK[how](TEXT[half:])))
    assert [str(second) for second in range(60)] == lines


@pytest.mark.parametrize("how", ["gzip", "bzip2", "xz", "zstd"])
def test_a_packed_log_that_is_cut_anywhere_gives_what_it_held_and_says_so(tmp_path: Path, how: str) -> None:
    packed = PACK[how](TEXT)
    for size in range(8, len(packed), 7):
        lines, tally = read(wrote(tmp_path, packed[:size]))
        assert lines == [str(second) for second in range(60)][: len(lines)] or tally.unreadable
        assert tally.damaged or how == "zstd" or len(lines) == 60  # zstd ends a stream without a word


def test_a_line_that_is_too_long_is_passed_over_and_counted(tmp_path: Path) -> None:
    lines, tally = read(wrote(tmp_path, LINES[0].encode() + b"\n" + b"x" * 10_000_000 + b"\n" + LINES[1].encode()))
    assert (["0", "1"], 1, 0) == (lines, tally.too_long, tally.unreadable)


@pytest.mark.parametrize("size", range(MAX_LINE - 2, MAX_LINE + 3))
def test_the_longest_line_is_read(tmp_path: Path, size: int) -> None:
    head = "2026-03-01T03:04:05+00:00 mx postfix/qmgr[1]: "
    lines, tally = read(wrote(tmp_path, (head + "x" * (size - len(head)) + "\n" + LINES[1] + "\n").encode()))
    assert (1 if size > MAX_LINE else 0) == tally.too_long
    assert lines[-1] == "1"


@given(data=st.binary(max_size=4000))
def test_random_bytes_are_counted_and_nothing_more(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    lines, tally = read(wrote(tmp_path_factory.mktemp("log"), data + b"\n" + LINES[0].encode()))
    assert len(lines) <= tally.lines or tally.damaged


@pytest.mark.parametrize("how", ["gzip", "bzip2", "xz", "zstd"])
@given(place=st.integers(0, 200), byte=st.integers(0, 255))
def test_a_packed_log_with_a_wrong_byte_is_told_as_damaged_at_most(
    tmp_path_factory: pytest.TempPathFactory, how: str, place: int, byte: int
) -> None:
    packed = bytearray(PACK[how](TEXT))
    packed[place % len(packed)] = byte
    read(wrote(tmp_path_factory.mktemp("log"), bytes(packed)))


def test_an_empty_log_has_no_lines(tmp_path: Path) -> None:
    assert ([], Tally()) == read(wrote(tmp_path, b""))


def test_what_cannot_be_opened_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(LogError, match=r"is a folder: name the logs in it"):
        open_log(tmp_path)
    with pytest.raises(LogError, match=r"mail\.log cannot be read: No such file"):
        open_log(tmp_path / "mail.log")


def test_a_log_that_may_not_be_read_is_told(tmp_path: Path) -> None:
    path = wrote(tmp_path, TEXT)
    path.chmod(0)
    if os.access(path, os.R_OK):
        assert stat.S_IMODE(path.stat().st_mode) == 0  # root reads it all the same
        return
    with pytest.raises(LogError, match="cannot be read: Permission denied"):
        open_log(path)


def test_logs_are_put_in_order_of_time_whatever_the_order_of_their_names(tmp_path: Path) -> None:
    older = wrote(tmp_path, "".join(f"{line}\n" for line in LINES[:30]).encode(), "b")
    newer = wrote(tmp_path, gzip.compress("".join(f"{line}\n" for line in LINES[30:]).encode()), "a.gz")
    assert [str(second) for second in range(60)] == read(newer, older)[0]


def test_a_line_that_two_logs_have_comes_once_and_one_that_one_log_has_twice_comes_twice(tmp_path: Path) -> None:
    everything = wrote(tmp_path, f"{LINES[0]}\n{LINES[1]}\n{LINES[1]}\n{LINES[2]}\n".encode(), "mail.log")
    warnings = wrote(tmp_path, f"{LINES[1]}\n{LINES[1]}\n{LINES[2]}\n".encode(), "mail.warn")
    lines, tally = read(everything, warnings)
    assert (["0", "1", "1", "2"], 3) == (lines, tally.in_two_logs)


def test_repeated_lines_that_syslog_only_counts_come_as_often_as_it_says(tmp_path: Path) -> None:
    log = (
        "Mar  1 03:04:05 mx postfix/smtpd[1]: message repeated 3 times: [ NOQUEUE: x]\n"
        "Mar  1 03:04:05 mx postfix/smtpd[1]: y\n"
        "Mar  1 03:04:06 mx last message repeated 2 times\n"
    )
    assert ["NOQUEUE: x"] * 3 + ["y"] * 3 == read(wrote(tmp_path, log.encode()))[0]


@pytest.mark.parametrize("words", ["message repeated 99999 times: [ x]", "last message repeated 99999 times"])
def test_no_stranger_can_have_a_line_repeated(tmp_path: Path, words: str) -> None:
    log = (
        "Mar  1 03:04:05 mx postfix/smtpd[1]: NOQUEUE: y\n"
        f"Mar  1 03:04:05 mx postfix/smtpd[1]: NOQUEUE: reject: helo=<a: {words}\n"
        f"Mar  1 03:04:05 mx postfix/smtpd[1]: NOQUEUE: reject: helo=<a: {words}>\n"
    )
    assert 3 == len(read(wrote(tmp_path, log.encode()))[0])


def test_a_line_that_goes_back_by_more_than_an_hour_is_counted(tmp_path: Path) -> None:
    log = "Mar  1 03:04:05 mx a[1]: x\nMar  1 02:04:06 mx a[1]: x\nMar  1 02:04:04 mx a[1]: x\n"
    assert 1 == read(wrote(tmp_path, log.encode()))[1].backwards


def test_lines_of_standard_error_belong_to_the_host_of_the_log_beside_them(tmp_path: Path) -> None:
    syslog = wrote(tmp_path, b"2026-03-01T03:04:05+00:00 mx postfix/qmgr[1]: x\n", "mail.log")
    ours = wrote(tmp_path, b"2026-03-01 03:04:05.000 gatekeeper[1]: INFO side=policy\n", "gatekeeper.log")
    with MailLog([syslog, ours]) as log:
        assert {"mx"} == {line.host for line in read_lines(log.files, Tally())}


ENTRY = {
    "__REALTIME_TIMESTAMP": "1772334245000000",
    "_HOSTNAME": "mx",
    "SYSLOG_IDENTIFIER": "postfix/qmgr",
    "SYSLOG_PID": "17",
    "MESSAGE": "4B1F2: removed",
}
AS_LINE = Line(1772334245.0, "mx", "postfix/qmgr", "17", "4B1F2: removed")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({}, AS_LINE),
        ({"_SOURCE_REALTIME_TIMESTAMP": "1772334244500000"}, AS_LINE._replace(at=1772334244.5)),
        ({"SYSLOG_PID": None, "_PID": "18"}, AS_LINE._replace(pid="18")),
        ({"SYSLOG_IDENTIFIER": None, "_COMM": "gatekeeper"}, AS_LINE._replace(program="gatekeeper")),
        ({"MESSAGE": [255, 65]}, AS_LINE._replace(text="\udcffA")),
        ({"MESSAGE": "two\nlines"}, AS_LINE._replace(text="two")),
        ({"_HOSTNAME": ["a", "b"]}, AS_LINE._replace(host="a")),
        ({"MESSAGE": None}, None),
        ({"MESSAGE": [256]}, None),
        ({"__REALTIME_TIMESTAMP": "yesterday"}, None),
        ({"__REALTIME_TIMESTAMP": None}, None),
    ],
)
def test_an_entry_of_the_journal_is_a_line(change: dict[str, object], line: Line | None) -> None:
    assert line == journal.from_json(json.dumps(ENTRY | change))


@pytest.mark.parametrize("text", ["", "{", "[]", "1", "[" * 100_000, '{"MESSAGE": {}}'])
def test_json_that_is_no_entry_is_none(text: str) -> None:
    assert journal.from_json(text) is None


EXPORT = "".join(f"{name}={value}\n" for name, value in ENTRY.items()).encode()
BINARY = EXPORT.replace(b"MESSAGE=4B1F2: removed\n", b"MESSAGE\n" + (3).to_bytes(8, "little") + b"a\xffb\n")


def test_an_export_of_the_journal_has_binary_fields_too() -> None:
    lines = list(journal.from_export(io.BytesIO(EXPORT + b"\n" + BINARY + b"\n\n" + EXPORT)))
    assert [AS_LINE, AS_LINE._replace(text="a\udcffb"), AS_LINE] == lines


def test_an_export_that_is_cut_anywhere_gives_no_line_that_was_not_there() -> None:
    for end in range(len(BINARY)):
        for line in journal.from_export(io.BytesIO(BINARY[:end])):
            assert line is None or line.at == AS_LINE.at or end < BINARY.index(b"MESSAGE")


def test_an_export_with_an_impossible_length_ends_there() -> None:
    data = EXPORT + b"\n__REALTIME_TIMESTAMP=1\nMESSAGE\n" + b"\xff" * 8 + b"x" * 100
    assert [AS_LINE, None] == list(journal.from_export(io.BytesIO(data)))


@given(st.binary(max_size=500))
def test_any_bytes_are_an_export_or_not(data: bytes) -> None:
    for line in journal.from_export(io.BytesIO(EXPORT + data)):
        assert line is None or isinstance(line.text, str)


def test_the_journals_notations_are_told_from_what_a_file_begins_with(tmp_path: Path) -> None:
    as_json = wrote(tmp_path, json.dumps(ENTRY).encode() + b"\n{cut\n", "json")
    export = wrote(tmp_path, gzip.compress(EXPORT), "export")
    assert (["4B1F2: removed"], 1) == (read(as_json)[0], read(as_json)[1].unreadable)
    assert ["4B1F2: removed"] == read(export)[0]


def test_standard_input_is_a_log_too(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from gatekeeper.maillog.mail_log import MailLog\n"
        "with MailLog([Path('-')]) as log: list(log.events()); print(log.tally.lines)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=gzip.compress(TEXT), capture_output=True, check=True)
    assert b"60\n" == done.stdout
