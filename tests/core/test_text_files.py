# SPDX-License-Identifier: GPL-3.0-or-later
"""A byte order mark at the head of a file that people write means nothing, whoever reads the file."""

import codecs
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest

from gatekeeper.checks.base.check_types import SourceLine
from gatekeeper.checks.limits.applies_to import load_patterns, parse_session_pattern
from gatekeeper.checks.tables.client_list_reader import read_client_list
from gatekeeper.checks.tables.keys import Asked
from gatekeeper.checks.tables.reader import READERS, TableReader
from gatekeeper.config import access_entry, config_file
from gatekeeper.core.request import Client
from gatekeeper.core.text_files import read_text, without_bom
from gatekeeper.dnsclient.zone import Zone
from gatekeeper.opendkim import conf
from gatekeeper.postfix import client_list
from gatekeeper.postgrey.lists import AllowTables, convert_client
from gatekeeper.postgrey.options import read_options
from gatekeeper.replay import fixture
from gatekeeper.signing import data_set

ADDRESS = ip_address("192.0.2.1")
CLIENT = Client(address=ADDRESS, name="a.example")


def _table(type: str) -> Callable[[Path], object]:
    def found(file: Path) -> object:
        reader = TableReader(file.parent, lambda text: ())
        table = reader.read(f"{type}:{file.name}", SourceLine("x"), Asked.HOST)
        assert [] == reader.problems
        assert table is not None
        return table.search_address(ADDRESS)

    return found


def _client_list(file: Path) -> object:
    hosts, problems = read_client_list([client_list.parse_pattern(str(file))], "mynetworks", SourceLine("x"), Path())
    return [hosts.find(CLIENT), problems]


def _exceptions(file: Path) -> object:
    patterns, problems = load_patterns([parse_session_pattern(f"client:{file}")], file.parent)
    return [patterns.clients[0].find(CLIENT), problems]  # type: ignore[union-attr]  # a ClientList


def _data_set(kind: str) -> Callable[[Path], object]:
    return lambda file: [(entry.key, entry.value) for entry in data_set.read(f"{kind}:{file}", "x")[0].entries]


def _config(file: Path) -> object:
    config = config_file.load(file, lambda names: {})
    return [config.hostname, config.mynetworks]


def _entry(file: Path) -> object:
    added = file.with_name("gatekeeper.toml")
    added.write_text(f'hostname = "mx.example"\n[checks.access]\nclient = ["hash:{file}"]\n')
    return access_entry.add(
        config_file.load(added, lambda names: {}), access_entry.deny("192.0.2.1"), file.parent
    ).lines[0]


def _allow_tables(file: Path) -> object:
    tables = AllowTables()
    tables.read(file, convert_client)
    return tables.lines


READ_BY: dict[str, tuple[str, Callable[[Path], object]]] = {
    **{type: ("192.0.2.1 REJECT\n", _table(type)) for type in READERS if type not in ("pcre", "regexp")},
    **{type: ("/^192\\.0\\.2\\.1$/ REJECT\n", _table(type)) for type in ("pcre", "regexp")},
    "a cidr table with conditions": ("if 192.0.2.0/24\n192.0.2.1 REJECT\nendif\n", _table("cidr")),
    "mynetworks": ("192.0.2.1\n", _client_list),
    "exceptions of limits": ("192.0.2.1\n", _exceptions),
    "KeyTable": ("s._domainkey.a.example a.example:s:/k\n", _data_set("file")),
    "SigningTable": ("*@a.example s._domainkey.a.example\n", _data_set("refile")),
    "opendkim.conf": ("Domain a.example\n", lambda file: [[s.value for s in conf.read(file)[0]], conf.read(file)[1]]),
    "gatekeeper.toml": ('hostname = "mx.example"\r\n[policy]\r\n', _config),
    "gatekeeper allow and deny": ("192.0.2.1\tREJECT\n", _entry),
    "postgrey's lists": ("a.example\n", _allow_tables),
    "postgrey's options": ('POSTGREY_OPTS="--delay=7"\n', read_options),
    "a zone": ("a.example A 192.0.2.1\n", lambda file: str(Zone.read(file).lookup("a.example", "A").rrsets[0])),
    "a recorded session": (
        'format = 1\n[[connection]]\nclient = "192.0.2.1"\n',
        lambda file: fixture.read(file.rename(file.with_name("session.toml")).parent).connections,
    ),
}


@pytest.mark.parametrize("name", READ_BY)
def test_a_byte_order_mark_means_nothing(tmp_path: Path, name: str) -> None:
    text, read = READ_BY[name]
    said = []
    for data in (text.encode(), codecs.BOM_UTF8 + text.encode()):
        file = tmp_path / "file"
        file.write_bytes(data)
        said.append(repr(read(file)))
    assert said[0] == said[1]
    assert said[0] not in ("None", "[]", "{}", "False")


@pytest.mark.parametrize("mark", [codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE])
def test_a_table_in_utf16_is_a_mistake_with_the_way_out(tmp_path: Path, mark: bytes) -> None:
    (tmp_path / "table").write_bytes(mark + "spam.example REJECT\n".encode("utf-16-le"))
    reader = TableReader(tmp_path, lambda text: ())
    assert reader.read("hash:table", SourceLine("g.toml", 3), Asked.CLIENT) is None
    what = "it is not UTF-8 text (it begins as UTF-16 does); save it as UTF-8"
    assert [f"g.toml:3: cannot read {tmp_path}/table: {what}"] == [str(problem) for problem in reader.problems]


def test_only_the_head_of_a_file_has_a_byte_order_mark(tmp_path: Path) -> None:
    assert b"a\xef\xbb\xbfb" == without_bom(b"a\xef\xbb\xbfb")
    assert codecs.BOM_UTF8 == without_bom(codecs.BOM_UTF8 * 2)
    (tmp_path / "file").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert "a\nb\nc\n" == read_text(tmp_path / "file")
