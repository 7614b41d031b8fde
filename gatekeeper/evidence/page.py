# SPDX-License-Identifier: GPL-3.0-or-later
"""The statistics as one page that needs nothing from elsewhere: pictures drawn in it, each with its table below.

It has no script and loads nothing, so it can be mailed, kept and printed. It follows the light or dark scheme of
whoever reads it. All text in it came from strangers, and is escaped.
"""

from collections.abc import Iterator, Sequence
from html import escape

from gatekeeper.evidence.statistics import Statistics
from gatekeeper.evidence.tables import WORDS, Table, headline, tables
from gatekeeper.maillog.reader import Tally

_CLASSES = dict(zip(WORDS, ("accepted", "deferred", "refused"), strict=True))
_FATES = {"refused": "refused", "bounced": "refused", "refused for now": "deferred", "in the queue": "deferred"}
_WIDTH, _HEIGHT, _LEFT, _BOTTOM = 720, 200, 44, 24
_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6676; --line: #d9dee6; --paper: #ffffff; --panel: #f5f7fa;
  --accepted: #2a9d8f; --deferred: #e9a23b; --refused: #d1495b; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6eaf0; --soft: #9aa6b6; --line: #333d4b; --paper: #12171e;
  --panel: #1a212b; --accepted: #3fbfae; --deferred: #f0b65c; --refused: #e8697a; } }
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 860px; padding: 24px; background: var(--paper); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
h1 { font-size: 24px; margin: 0 } h2 { font-size: 17px; margin: 32px 0 8px } p { color: var(--soft); margin: 4px 0 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(124px, 1fr)); gap: 12px; margin: 20px 0 }
.tile { background: var(--panel); border-radius: 8px; padding: 12px 14px }
.tile b { display: block; font-size: 26px; font-weight: 600 }
.tile span { color: var(--soft); font-size: 13px; line-height: 1.3 }
figure { margin: 0 0 8px } svg { width: 100%; height: auto; display: block }
svg text { fill: var(--soft); font-size: 11px }
.axis { stroke: var(--line) } .accepted { fill: var(--accepted) } .deferred { fill: var(--deferred) }
.refused { fill: var(--refused) } .bar { fill: var(--accepted) }
.key { display: flex; gap: 16px; font-size: 13px; color: var(--soft) }
.key i { display: inline-block; width: 10px; height: 10px; border-radius: 2px; margin-right: 6px }
.key .accepted { background: var(--accepted) } .key .deferred { background: var(--deferred) }
.key .refused { background: var(--refused) }
table { border-collapse: collapse; width: 100%; font-size: 13.5px } th { text-align: left; color: var(--soft);
  font-weight: 500 } th, td { padding: 4px 14px 4px 0; border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
section { break-inside: avoid }
@media print { body { max-width: none; padding: 0 } :root { color-scheme: light } }
"""


def as_page(found: Statistics, tally: Tally, shown: int = 15) -> Iterator[str]:
    """Yield the page, piece by piece."""
    yield '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Mail, counted by gatekeeper</title>'
    yield '<meta name="viewport" content="width=device-width, initial-scale=1">'
    yield "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
    yield f"<style>{_STYLE}</style></head>\n<body><h1>Mail, counted</h1><p>{escape(headline(found, tally))}</p>"
    yield _tiles(found)
    for table in tables(found, shown):
        if any(isinstance(cell, int) and cell for row in table.rows for cell in row):
            yield f'<section id="{table.key}"><h2>{escape(table.title)}</h2>'
            yield _picture(table)
            yield _table(table)
            yield "</section>\n"
    yield "</body></html>\n"


def _tiles(found: Statistics) -> str:
    sums = {word: sum(counts[word] for counts in found.days.values()) for word in WORDS}
    signed = found.signed.total
    numbers = [
        (sums["accepted"], "accepted"),
        (sums["deferred"], "refused for now"),
        (sums["refused"], "refused for good"),
        (found.waiting, "asked to come back, and have not"),
        (signed, "signed by us"),
        (found.unsigned.total, "ours, and not signed"),
    ]
    tiles = "".join(f'<div class="tile"><b>{number:,}</b><span>{words}</span></div>' for number, words in numbers)
    return f'<div class="tiles">{tiles}</div>'


def _picture(table: Table) -> str:
    if table.series:
        drawn = _columns(table) if table.key in ("days", "hours") else _stacked_rows(table)
        key = "".join(f'<span><i class="{_CLASSES[word]}"></i>{word}</span>' for word in table.series)
        return f'<figure>{drawn}<figcaption class="key">{key}</figcaption></figure>'
    return f"<figure>{_rows(table)}</figure>" if len(table.rows) > 1 else ""


def _columns(table: Table) -> str:
    """Draw stacked columns, one for each row: time goes to the right."""
    most = max(sum(map(_number, row[1:])) for row in table.rows) or 1
    step = (_WIDTH - _LEFT) / len(table.rows)
    drawn = [_axis(most)]
    every = max(1, len(table.rows) // 14)
    for at, row in enumerate(table.rows):
        left, top = _LEFT + at * step, float(_HEIGHT - _BOTTOM)
        for word, cell in zip(table.series, row[1:], strict=True):
            height = _number(cell) / most * (_HEIGHT - _BOTTOM - 10)
            top -= height
            if height:
                place = f'x="{left + step * 0.1:.1f}" y="{top:.1f}" width="{step * 0.8:.1f}" height="{height:.1f}"'
                title = f"<title>{escape(str(row[0]))}: {cell} {word}</title>"
                drawn.append(f'<rect class="{_CLASSES[word]}" {place}>{title}</rect>')
        if at % every == 0:
            x, y = left + step / 2, _HEIGHT - 8
            drawn.append(f'<text x="{x:.1f}" y="{y}" text-anchor="middle">{_label(row[0])}</text>')
    return _svg(table, _HEIGHT, drawn)


def _axis(most: int) -> str:
    floor = _HEIGHT - _BOTTOM
    return (
        f'<line class="axis" x1="{_LEFT}" y1="{floor}" x2="{_WIDTH}" y2="{floor}"/>'
        f'<line class="axis" x1="{_LEFT}" y1="10" x2="{_WIDTH}" y2="10" stroke-dasharray="2 4"/>'
        f'<text x="{_LEFT - 6}" y="14" text-anchor="end">{most:,}</text>'
        f'<text x="{_LEFT - 6}" y="{floor}" text-anchor="end">0</text>'
    )


def _stacked_rows(table: Table) -> str:
    most = max(sum(map(_number, row[1:])) for row in table.rows) or 1
    bars = []
    for row in table.rows:
        pieces, left = [], 0.0
        for word, cell in zip(table.series, row[1:], strict=True):
            pieces.append((_CLASSES[word], left, _number(cell) / most))
            left += _number(cell) / most
        bars.append((str(row[0]), pieces))
    return _bars(table, bars)


def _rows(table: Table) -> str:
    """Draw one bar for each row by its last number."""
    at = max(n for n, cell in enumerate(table.rows[0]) if isinstance(cell, int))
    most = max(_number(row[at]) for row in table.rows) or 1
    labels = [" · ".join(str(cell) for cell in row[:at]) for row in table.rows]
    return _bars(
        table,
        [
            (label, [(_colour(table.key, row), 0.0, _number(row[at]) / most)])
            for label, row in zip(labels, table.rows, strict=True)
        ],
    )


def _colour(key: str, row: Sequence[str | int]) -> str:
    if key == "fates":
        return _FATES.get(str(row[0]), "bar")
    if key == "refused":
        return "deferred" if "for now" in row else "refused"
    return (
        "refused" if key in ("lists", "failing", "limits") else "deferred" if key in ("observed", "unsigned") else "bar"
    )


def _bars(table: Table, bars: Sequence[tuple[str, Sequence[tuple[str, float, float]]]]) -> str:
    left, row = 260, 20
    drawn = []
    for at, (label, pieces) in enumerate(bars):
        top = at * row
        drawn.append(f'<text x="{left - 8}" y="{top + 14}" text-anchor="end">{_label(label, 40)}</text>')
        for name, begins, size in pieces:
            if size:
                x, width = left + begins * (_WIDTH - left), max(size * (_WIDTH - left), 1.0)
                drawn.append(f'<rect class="{name}" x="{x:.1f}" y="{top + 4}" width="{width:.1f}" height="{row - 8}"/>')
    return _svg(table, len(bars) * row + 4, drawn)


def _svg(table: Table, height: int, drawn: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(table.title)}; the table below has the '
        f'numbers">{"".join(drawn)}</svg>'
    )


def _table(table: Table) -> str:
    numbers = [all(isinstance(row[at], int) for row in table.rows) for at in range(len(table.columns))]
    head = "".join(
        f"<th{_kind(number)}>{escape(name)}</th>" for name, number in zip(table.columns, numbers, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(
            f"<td{_kind(number)}>{f'{cell:,}' if isinstance(cell, int) else escape(cell)}</td>"
            for cell, number in zip(row, numbers, strict=True)
        )
        + "</tr>"
        for row in table.rows
    )
    more = f"<p>… and {table.left_out:,} more</p>" if table.left_out else ""
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{more}{note}"


def _kind(number: bool) -> str:
    return ' class="number"' if number else ""


def _label(text: object, limit: int = 12) -> str:
    words = str(text)
    return escape(words if len(words) <= limit else f"{words[: limit - 1]}…")


def _number(cell: str | int) -> int:
    return cell if isinstance(cell, int) else 0
