# SPDX-License-Identifier: GPL-3.0-or-later
"""DNS for tests: text as a zone file has it, the worlds of the public suites, and a table that counts its questions."""

from typing import Any

from gatekeeper.dnsclient.resolver import Answer, TableResolver
from gatekeeper.dnsclient.zone import Zone


class Asked(TableResolver):
    """A table that remembers the questions."""

    def __init__(self, zone: str) -> None:
        super().__init__(Zone.parse(zone))
        self.questions: list[tuple[str, str]] = []

    def zone(self, text: str) -> None:
        """From now on answer from this zone."""
        self._zone = Zone.parse(text)

    async def query(self, name: str, type: str) -> Answer:
        self.questions.append((name, type))
        return await super().query(name, type)


def txt(text: str | bytes) -> str:
    """`text` as a quoted string of a zone file, cut as DNS wants it."""
    data = text.encode("utf-8") if isinstance(text, str) else text
    pieces = [data[start : start + 255] for start in range(0, len(data), 255)] or [b""]
    return " ".join('"' + "".join(f"\\{byte:03d}" for byte in piece) + '"' for piece in pieces)


def suite_zone(data: dict[str, list[Any]]) -> Zone:
    """The DNS world of one scenario; `SPF` is what TXT says unless TXT is there too."""
    lines = []
    for name, entries in data.items():
        owner = ".".join("".join(f"\\{byte:03d}" for byte in label.encode()) for label in name.split("."))
        records = [next(iter(entry.items())) for entry in entries if isinstance(entry, dict)]
        if not any(kind == "TXT" for kind, _ in records):
            records = [("TXT" if kind == "SPF" else kind, value) for kind, value in records]
        if "TIMEOUT" in entries:
            lines.append(f"{owner} ANY !TIMEOUT")
        for kind, value in records:
            if kind == "SPF" or value == "NONE":
                continue
            if kind == "TXT":
                pieces = value if isinstance(value, list) else [value]
                # YAML's \x80 means that byte
                value = txt("".join(pieces).encode("latin-1"))
            elif kind == "MX":
                value = f"{value[0]} {value[1] or '.'}"
            lines.append(f"{owner} {kind} {value}")
    return Zone.parse("\n".join(lines))
