# SPDX-License-Identifier: GPL-3.0-or-later
"""The recorded-session format: one folder is one case (docs/fixtures.md shows each file).

`session.toml` is what a client says, `expected.toml` what must come of it, `dns.zone` all of DNS, `gatekeeper.toml` the
configuration (in the case, else the nearest above it), `*.eml` the messages, byte for byte.

What `expected.toml` does not mention is not compared, but a case that mentions nothing at all proves nothing and is
never as expected. What it does mention:

- `reply` of a message: a string is the reply that ended it (the reply at the end of the data if a recipient was
  accepted, else the last recipient's); a list is one reply for each recipient and then, if there was one, the reply
  at the end of the data. The leading codes of an expected reply ("450", "450 4.7.1") are compared as words; text
  after them must be contained in the reply.
- `reply` of a connection: "220" if the client was let in, else what refused it or its HELO.
- `reasons`, `headers_added`, `headers_removed`: every item must be found; an empty list means that there must be none.
  A header item is `Name` or `Name: words`, where each word must be contained in the field's unfolded value.

Knows no pipeline: in_process.py and smtp.py play a case, compare.py compares the outcome. `read` raises
ConfigError with every mistake.
"""

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationError,
)

from gatekeeper.config.errors import validation_errors
from gatekeeper.config.locations import KeyLocations
from gatekeeper.core import toml_writer
from gatekeeper.core.file_lock import changing
from gatekeeper.core.problem import ConfigError, Problem
from gatekeeper.core.request import UNKNOWN, parse_address
from gatekeeper.core.text_files import read_text
from gatekeeper.core.toml_reader import TOMLLimitError, parse_toml
from gatekeeper.core.units import Duration, duration_text
from gatekeeper.dnsclient.zone import Zone

SESSION, EXPECTED, ZONE, CONFIG, README = "session.toml", "expected.toml", "dns.zone", "gatekeeper.toml", "README"

T = TypeVar("T")


def _client(value: object) -> object:
    if not isinstance(value, str) or parse_address(value) is None:
        raise ValueError(f"{value!r} is not an IP address")
    return value


def _file_name(value: object) -> object:
    if not isinstance(value, str) or not re.fullmatch(r"[^/\0]+\.eml", value):
        raise ValueError(f"{value!r} is not the name of an .eml file in this folder")
    return value


def _not_empty(items: tuple[T, ...]) -> tuple[T, ...]:
    # Not pydantic's min_length: that also complains when an item is invalid.
    if not items:
        raise ValueError("is empty; at least one is needed")
    return items


def _reply(value: object) -> object:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return tuple(value)
    if not isinstance(value, str | tuple | None):
        raise ValueError('is neither a reply ("450 4.7.1") nor a list of replies')  # noqa: TRY004 (pydantic's way)
    return value


class _FixtureModel(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class RecordedMessage(_FixtureModel):
    """One MAIL transaction. Without `data` the client leaves after the last RCPT, as address verification does."""

    sender: str = Field(validation_alias="from", serialization_alias="from")
    """Without angle brackets; empty is the null sender."""
    recipients: Annotated[tuple[str, ...], AfterValidator(_not_empty)] = Field(
        validation_alias="to", serialization_alias="to"
    )
    data: Annotated[str, BeforeValidator(_file_name)] | None = None
    """The name of the .eml file beside session.toml; `Case.content` has its bytes."""


class RecordedConnection(_FixtureModel):
    """One SMTP connection. A missing `name` is looked up in dns.zone as Postfix does."""

    client: Annotated[str, BeforeValidator(_client)]
    name: str | None = None
    """The forward-confirmed name, or `unknown`."""
    reverse_name: str | None = None
    """The unconfirmed PTR name; if only `name` is given, the same."""
    helo: str | None = None
    """The name in EHLO; None if the client sends neither HELO nor EHLO."""
    sasl_user: str = ""
    wait: Annotated[Duration, PlainSerializer(duration_text)] = 0.0
    """Seconds that pass before this connection."""
    messages: tuple[RecordedMessage, ...] = Field(default=(), validation_alias="message", serialization_alias="message")


class Expected(_FixtureModel):
    """The expected outcome of a message or connection; None is not compared."""

    reply: Annotated[str | tuple[str, ...] | None, BeforeValidator(_reply)] = None
    reasons: tuple[str, ...] | None = None
    headers_added: tuple[str, ...] | None = None
    headers_removed: tuple[str, ...] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing is compared."""
        return (self.reply, self.reasons, self.headers_added, self.headers_removed) == (None,) * 4


class ExpectedConnection(Expected):
    """The expected outcome of a connection, and those of its messages in order."""

    messages: tuple[Expected, ...] = Field(default=(), validation_alias="message", serialization_alias="message")


class RecordedSession(_FixtureModel):
    """The contents of session.toml."""

    format: Literal[1]
    connections: Annotated[tuple[RecordedConnection, ...], AfterValidator(_not_empty)] = Field(
        validation_alias="connection", serialization_alias="connection"
    )


class Expectation(_FixtureModel):
    """The contents of expected.toml."""

    format: Literal[1] = 1
    connections: tuple[ExpectedConnection, ...] = Field(
        default=(), validation_alias="connection", serialization_alias="connection"
    )


class Case(_FixtureModel):
    """One case. `zone` is the text of dns.zone; `config` is None if no gatekeeper.toml is in the folder or above it."""

    folder: Path
    connections: tuple[RecordedConnection, ...]
    expected: tuple[ExpectedConnection, ...] = ()
    zone: str = ""
    readme: str = ""
    files: Mapping[str, bytes] = {}
    """The .eml files that the session names."""

    @property
    def name(self) -> str:
        """The name of the folder."""
        return self.folder.name

    @property
    def wait(self) -> float:
        """The seconds that playing the case takes where the clock cannot jump."""
        return sum(connection.wait for connection in self.connections)

    @property
    def expects_nothing(self) -> bool:
        """Whether it would come out as expected whatever happened."""
        return all(one.is_empty for connection in self.expected for one in (connection, *connection.messages))

    @property
    def config(self) -> Path | None:
        """The case's gatekeeper.toml, else the nearest above it."""
        folder = self.folder.resolve()
        return next((path for up in (folder, *folder.parents) if (path := up / CONFIG).is_file()), None)

    def content(self, message: RecordedMessage) -> bytes | None:
        """Return the bytes that `message` sends, exactly as in the file; None if it sends none."""
        return None if message.data is None else self.files[message.data]


def find(path: Path) -> list[Path]:
    """Return the case folders at and below `path`, sorted."""
    return sorted(file.parent for file in path.rglob(SESSION)) if path.is_dir() else []


def read(folder: Path) -> Case:
    """Read the case in `folder`. Raises ConfigError with every mistake in its files."""
    problems: list[Problem] = []
    session = _read_toml(folder / SESSION, RecordedSession, problems)
    expected = Expectation()
    if (folder / EXPECTED).exists():
        expected = _read_toml(folder / EXPECTED, Expectation, problems) or expected
    files = {}
    for name in sorted({m.data for c in session.connections for m in c.messages if m.data} if session else ()):
        try:
            files[name] = (folder / name).read_bytes()
        except OSError as error:
            problems.append(Problem(str(folder / SESSION), 0, f'data = "{name}": {error.strerror}'))
    if session:
        problems.extend(_unmatched_expectations(folder / EXPECTED, session, expected))
    zone, readme = (_read_text(folder / name, problems) for name in (ZONE, README))
    try:
        Zone.parse(zone, str(folder / ZONE))
    except ConfigError as error:
        problems.extend(error.problems)
    if problems or session is None:
        raise ConfigError(problems)
    return Case(
        folder=folder,
        connections=session.connections,
        expected=expected.connections,
        zone=zone,
        readme=readme,
        files=files,
    )


def write(case: Case) -> None:
    """Write `case` to its folder, which is created if need be. An invalid byte in an address becomes U+FFFD."""
    case.folder.mkdir(parents=True, exist_ok=True)
    _write(case.folder / SESSION, _toml(RecordedSession(format=1, connections=case.connections)).encode())
    write_expected(case)
    for name, text in ((ZONE, case.zone), (README, case.readme)):
        if text:
            _write(case.folder / name, text.encode())
    for name, content in case.files.items():
        _write(case.folder / name, content)


def _write(path: Path, data: bytes) -> None:
    with changing(path) as file:
        file.replace(data)


def write_expected(case: Case) -> None:
    """Write only expected.toml. Comments in the old one are lost."""
    _write(case.folder / EXPECTED, _toml(Expectation(connections=case.expected)).encode())


def client_names(connection: RecordedConnection) -> tuple[str, str] | None:
    """Return the client's confirmed and unconfirmed names if the fixture has them; None if DNS must be asked."""
    if connection.name is None and connection.reverse_name is None:
        return None
    name = connection.name or UNKNOWN
    return name, connection.reverse_name or name


def _unmatched_expectations(path: Path, session: RecordedSession, expected: Expectation) -> list[Problem]:
    """Report expectations for connections or messages that the session does not have."""
    if len(expected.connections) > len(session.connections):
        return [Problem(str(path), 0, f"expects {len(expected.connections)} connections, {SESSION} has fewer")]
    return [
        Problem(
            str(path), 0, f"expects {len(expectation.messages)} messages in connection {number}, {SESSION} has fewer"
        )
        for number, (recorded, expectation) in enumerate(
            zip(session.connections, expected.connections, strict=False), 1
        )
        if len(expectation.messages) > len(recorded.messages)
    ]


def _read_text(path: Path, problems: list[Problem]) -> str:
    try:
        return read_text(path)
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        problems.append(Problem(str(path), 0, f"cannot be read: {error}"))
        return ""


_Model = TypeVar("_Model", bound=_FixtureModel)


def _read_toml(path: Path, model: type[_Model], problems: list[Problem]) -> _Model | None:
    """Read the file as a `model`. If it has mistakes, add them to `problems` and return None."""
    try:
        text = read_text(path)
        return model.model_validate(parse_toml(text))
    except OSError as error:
        problems.append(Problem(str(path), 0, f"cannot be read: {error.strerror}"))
    except UnicodeDecodeError:
        problems.append(Problem(str(path), 0, "is not UTF-8"))
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"at line (\d+)", str(error))
        problems.append(Problem(str(path), int(line[1]) if line else 0, f"is not TOML: {error}"))
    except ValidationError as error:
        locations = KeyLocations(text)
        found = [(locations.line(path), what) for path, what in validation_errors(error, model)]
        problems.extend(Problem(str(path), line, what) for line, what in sorted(found))
    except TOMLLimitError as error:
        problems.append(Problem(str(path), 0, str(error)))
    return None


def _toml(model: _FixtureModel) -> str:
    """Return the model in TOML, without defaults."""
    return toml_writer.text(model.model_dump(by_alias=True, exclude_defaults=True))
