# SPDX-License-Identifier: GPL-3.0-or-later
"""A reader of postgrey's Berkeley DB, also while postgrey runs: it returns pairs of bytes.

The database files alone lack what is still in the log, so they are copied together with the log to a private folder and
recovered there (Berkeley DB's "hot backup"); postgrey's own folder is only read. Recovering and reading is done by the
Perl library that postgrey itself needs, or by db_recover(1) and db_dump(1) of the package db-util; both write db_dump's
format.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from gatekeeper.core.safe_files import opened
from gatekeeper.core.safe_path import place

TRIPLETS, CLIENTS = "postgrey.db", "postgrey_clients.db"
TIME_LIMIT = 600.0
"""The most seconds that one program may take: a million entries take a few."""

_SCRIPT = r"""
use strict;
use BerkeleyDB;
my ($home, $file) = @ARGV;
my $flags = DB_CREATE | DB_INIT_TXN | DB_INIT_MPOOL | DB_INIT_LOG | DB_PRIVATE | DB_RECOVER_FATAL;
my $env = BerkeleyDB::Env->new(-Home => $home, -Flags => $flags) or die "cannot recover: $BerkeleyDB::Error\n";
my $db = BerkeleyDB::Btree->new(-Filename => $file, -Env => $env, -Flags => DB_RDONLY)
    or die "cannot open $file: $BerkeleyDB::Error\n";
my ($cursor, $key, $value) = ($db->db_cursor(), "", "");
print "VERSION=3\nformat=bytevalue\ntype=btree\nHEADER=END\n";
print " ", unpack("H*", $key), "\n ", unpack("H*", $value), "\n" while $cursor->c_get($key, $value, DB_NEXT) == 0;
print "DATA=END\n";
"""
_ESCAPED = re.compile(rb"\\(?:(\\)|([0-9a-fA-F]{2}))")
_PROGRAMS = "apt-get install libberkeleydb-perl, which comes with postgrey, or db-util"


class DatabaseError(Exception):
    """The database cannot be read; the text says why."""


def read(folder: Path, file: str) -> list[tuple[bytes, bytes]]:
    """Return the pairs in one of postgrey's files; none if there is no such file. Raises DatabaseError."""
    if not (folder / file).exists():
        return []
    with TemporaryDirectory(prefix="gatekeeper-postgrey-") as copy:
        try:
            _copy(folder, Path(copy))
        except OSError as error:
            raise DatabaseError(f"cannot read {error.filename or folder}: {error.strerror}") from None
        text = _dump(copy, file)
    try:
        return list(parse_dump(text))
    except ValueError as error:
        raise DatabaseError(f"{folder / file}: {error}") from None


def parse_dump(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Parse the output of db_dump(1), with or without its -p, into pairs. Raises ValueError with the line."""
    lines = iter(enumerate(text.split(b"\n"), 1))
    escaped = False
    for number, line in lines:
        if line == b"HEADER=END":
            break
        name, equals, value = line.partition(b"=")
        if not equals or (name == b"format" and value not in (b"bytevalue", b"print")):
            raise ValueError(f"line {number} of the dump is not part of db_dump's header: {line[:60]!a}")
        escaped = escaped or (name == b"format" and value == b"print")
    key: bytes | None = None
    for number, line in lines:
        if line == b"DATA=END":
            if key is not None:
                raise ValueError(f"line {number} ends the dump between a key and its value")
            return
        if line[:1] != b" ":
            raise ValueError(f"line {number} of the dump is neither key nor value: {line[:60]!a}")
        try:
            data = _unescape(line[1:]) if escaped else bytes.fromhex(line[1:].decode("ascii"))
        except ValueError:
            raise ValueError(f"line {number} of the dump is damaged: {line[:60]!a}") from None
        if key is None:
            key = data
        else:
            yield key, data
            key = None
    raise ValueError("the dump has no end")


def _unescape(data: bytes) -> bytes:
    if b"\\" in _ESCAPED.sub(b"", data):
        raise ValueError
    return _ESCAPED.sub(lambda match: match[1] or bytes([int(match[2], 16)]), data)


def _copy(folder: Path, to: Path) -> None:
    """Copy first the databases, then the log, which has what came after.

    Nothing else is copied: a DB_CONFIG could refer to other folders.
    """
    for pattern in ("postgrey*.db", "log.*"):
        for path in sorted(folder.glob(pattern)):
            if path.is_file() and not path.is_symlink():
                with place(path) as where, opened(where) as file, (to / path.name).open("xb") as copy:
                    if file is not None:  # it may just have been removed
                        shutil.copyfileobj(file, copy)


def _dump(home: str, file: str) -> bytes:
    perl, dump, recover = shutil.which("perl"), shutil.which("db_dump"), shutil.which("db_recover")
    if dump and recover:
        _run(recover, "-c", "-h", home)
        return _run(dump, "-h", home, file)
    if perl and _succeeds(perl, "-MBerkeleyDB", "-e", "1"):
        return _run(perl, "-e", _SCRIPT, home, file)
    raise DatabaseError(f"nothing on this host can read Berkeley DB: {_PROGRAMS}")


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0  # noqa: S603 - fixed words


def _run(*command: str) -> bytes:
    environment = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - a program by its full path, with our own arguments
            command, capture_output=True, check=False, timeout=TIME_LIMIT, env=environment
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise DatabaseError(f"{command[0]} cannot be run: {error}") from None
    if done.returncode:
        errors = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise DatabaseError(f"{Path(command[0]).name}: {errors[-1] if errors else f'exit status {done.returncode}'}")
    return done.stdout
