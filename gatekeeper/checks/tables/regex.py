# SPDX-License-Identifier: GPL-3.0-or-later
r"""Postfix's regular expressions, regexp_table(5) and pcre_table(5), as PCRE2 patterns with a time limit.

Perl's are passed on unchanged. POSIX extended ones are translated to Perl's syntax, or refused with the reason: a
backslash in brackets is literal, `\<` and `\>` are word boundaries, `{,n}` is `{0,n}`. Where Perl finds another match
than POSIX's longest, only `$1` could show it; whether anything matches is the same.
"""

import re

from gatekeeper.checks.tables.pcre2 import PcreMissing, PcreOption, PcrePattern

MAX_SUBJECT = 1000
"""Bytes: more than any host name or mailbox in SMTP may have (RFC 5321 section 4.5.3.1); longer ones match nothing."""

_PERL_FLAGS = {
    "i": PcreOption.CASELESS,
    "m": PcreOption.MULTILINE,
    "s": PcreOption.DOTALL,
    "x": PcreOption.EXTENDED,
    "A": PcreOption.ANCHORED,
    "E": PcreOption.DOLLAR_ENDONLY,
    "U": PcreOption.UNGREEDY,
    "X": PcreOption(0),  # PCRE2 always does what it asked for
}
_POSIX_FLAGS = {"i": PcreOption.CASELESS, "m": PcreOption.MULTILINE, "x": PcreOption(0)}
_POSIX_ESCAPES = frozenset("wWsSbB123456789")
_NOTHING_BEFORE = re.compile(r"(?:^|[(|]|(?<!\\)\^)[*+?{]")
_NESTED_REPEAT = re.compile(r"(?:[*+]|\{\d+,\})\)(?:[*+]|\{\d+,\})")


def compile_posix(pattern: str, flags: str) -> PcrePattern:
    """Compile a pattern of a regexp: table.

    `flags` toggle: i (initially on), m, x. Raises ValueError with the reason.
    """
    options = _toggle(PcreOption.CASELESS | PcreOption.DOTALL | PcreOption.DOLLAR_ENDONLY, flags, _POSIX_FLAGS)
    if flags.count("x") % 2:
        raise ValueError("basic regular expressions (flag x) are not supported; write an extended one")
    return _compile(_from_posix(pattern), options)


def compile_perl(pattern: str, flags: str) -> PcrePattern:
    """Compile a pattern of a pcre: table.

    `flags` toggle: i and s (initially on), m, x, A, E, U, X. Raises ValueError with the reason.
    """
    return _compile(pattern, _toggle(PcreOption.CASELESS | PcreOption.DOTALL, flags, _PERL_FLAGS))


def is_risky(pattern: str) -> bool:
    """Return whether a repeat stands directly inside a repeat, so that matching may take very long."""
    return _NESTED_REPEAT.search(pattern) is not None


def _toggle(start: PcreOption, flags: str, known: dict[str, PcreOption]) -> PcreOption:
    value = start
    for flag in flags:
        if flag not in known:
            raise ValueError(f"flag {flag!r} is not supported; allowed: {', '.join(known)}")
        value ^= known[flag]
    return value


def _compile(pattern: str, options: PcreOption) -> PcrePattern:
    try:
        return PcrePattern(pattern.encode("utf-8", "surrogateescape"), options)
    except PcreMissing as missing:
        raise ValueError(str(missing)) from None


def _from_posix(pattern: str) -> str:
    out: list[str] = []
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "[":
            text, at = _bracket(pattern, at)
            out.append(text)
        elif char == "\\":
            out.append(_posix_escape(pattern[at + 1 : at + 2]))
            at += 2
        elif char == "{":
            match = re.compile(r"\{(?:\d+(?:,\d*)?|,\d+)\}", re.ASCII).match(pattern, at)
            if match is None:
                raise ValueError(r"'{' does not begin a repeat count; write \{ for a literal brace")
            out.append(match[0].replace("{,", "{0,"))
            at = match.end()
            _refuse_repeat(pattern, at)
        else:
            if _NOTHING_BEFORE.match(pattern, at) or (at == 0 and char in "*+?"):
                raise ValueError(f"{pattern[at : at + 2]!r}: there is nothing to repeat")
            out.append(char)
            at += 1
            if char in "*+?":
                _refuse_repeat(pattern, at)
    return "".join(out)


def _refuse_repeat(pattern: str, at: int) -> None:
    if pattern[at : at + 1] in ("+", "?", "*", "{"):
        raise ValueError("a repeat right after a repeat means something else in Perl; write it with parentheses")


def _posix_escape(char: str) -> str:
    if char == "<":
        return r"\b(?=\w)"
    if char == ">":
        return r"\b(?<=\w)"
    if char == "`":
        return r"\A"
    if char == "'":
        return r"\z"
    if not char:
        raise ValueError("the pattern ends with a backslash")
    if char.isalnum() and char not in _POSIX_ESCAPES:
        raise ValueError(rf"'\{char}' is not a POSIX expression; write [0-9] for \d, or use a pcre: table")
    return "\\" + char


def _bracket(pattern: str, start: int) -> tuple[str, int]:
    """Translate the bracket expression at `start` to Perl's syntax, where a backslash escapes.

    Return the translation and the position after the expression. Raises ValueError.
    """
    at = start + 1
    out = ["["]
    if pattern.startswith("^", at):
        out.append("^")
        at += 1
    first = at
    while at < len(pattern):
        char = pattern[at]
        if char == "]" and at > first:
            return "".join(out) + "]", at + 1
        if char == "[" and pattern[at + 1 : at + 2] in (":", ".", "="):
            end = pattern.find(f"{pattern[at + 1]}]", at + 2)
            text = pattern[at : end + 2 if end >= 0 else len(pattern)]
            if not re.fullmatch(r"\[:[a-z]+:\]", text) or text == "[:word:]":
                raise ValueError(f"{text!r} is not supported in brackets")
            out.append(text)
            at += len(text)
            continue
        out.append("\\" + char if char in "\\[]" else char)
        at += 1
    raise ValueError("a bracket is not closed")
