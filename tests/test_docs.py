# SPDX-License-Identifier: GPL-3.0-or-later
"""What is written for people is complete and true: the shipped configuration and the command-line reference."""

import argparse
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from gatekeeper import cli
from gatekeeper.app.plan import prepare
from gatekeeper.config import config_file
from gatekeeper.config.config_file import Config
from gatekeeper.config.errors import section_of
from tests.support.needs import ROOT
from tests.support.postconf import no_postfix
from tests.support.service import Service, need_milter

SHIPPED = ROOT / "config" / "gatekeeper.toml"
REFERENCE = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")

NO_FIXED_DEFAULT = {
    "hostname",
    "authserv_id",
    "user",
    "store.url",
    "policy.restrictions",
    "policy.classes",
    "signing.key_table",
    "signing.signing_table",
    "signing.internal_hosts",
    "signing.body_length",
}
"""Options shown by an example: unset by default, or as the machine is."""


def options(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every option, dotted; what stands in a context has the names of [policy], and a rule is shown by an example."""
    for name in model.model_fields:
        if section := section_of(model, name):
            if name not in ("contexts", "rules"):
                yield from options(section, f"{above}{name}.")
        else:
            yield f"{above}{name}"


def shown(pattern: str) -> set[str]:
    """The options in lines that match `pattern`, dotted by the section above them."""
    found, section = set(), ""
    for line in SHIPPED.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[([\w.]+)\]", line):
            section = f"{match[1]}."
        elif match := re.match(pattern, line):
            found.add(section + match[1])
    return found


def test_the_shipped_configuration_shows_every_option() -> None:
    assert set(options(Config)) - NO_FIXED_DEFAULT == shown(r"#(\w+) = ")
    assert NO_FIXED_DEFAULT <= shown(r"# (\w+) = ")


def test_the_shipped_configuration_shows_every_option_of_a_rule() -> None:
    checks = section_of(Config, "checks")
    ratelimit = checks and section_of(checks, "ratelimit")
    rule = ratelimit and section_of(ratelimit, "rules")
    assert rule
    names = {f"checks.ratelimit.{field.validation_alias or name}" for name, field in rule.model_fields.items()}
    assert names <= shown(r"# (\w+) = ")


def test_the_shipped_configuration_shows_the_true_defaults(tmp_path: Path) -> None:
    text = SHIPPED.read_text(encoding="utf-8")
    uncommented = re.sub(r"^#(?=\S|  )", "", text, flags=re.MULTILINE)
    (tmp_path / "gatekeeper.toml").write_text(uncommented, encoding="utf-8")
    assert text.count("\n#") > uncommented.count("\n#")
    assert dict(config_file.defaults(no_postfix)) == dict(config_file.load(tmp_path / "gatekeeper.toml", no_postfix))


def test_the_shipped_configuration_works_as_it_stands() -> None:
    assert () == prepare(config_file.load(SHIPPED, no_postfix)).warnings


def commands(parser: argparse.ArgumentParser | None = None, above: str = "") -> dict[str, argparse.ArgumentParser]:
    """Every command by its name; those of a family by both words."""
    families = [a for a in (parser or cli.parser())._actions if isinstance(a, argparse._SubParsersAction)]
    if not families:
        return {above.strip(): parser} if parser else {}
    (action,) = families
    return {k: v for name, inner in action.choices.items() for k, v in commands(inner, f"{above} {name}").items()}


@pytest.mark.parametrize("name", commands())
def test_the_reference_tells_every_command_and_flag(name: str) -> None:
    (part,) = [part for part in REFERENCE.split("\n## ") if f"`gatekeeper {name}" in part.partition("\n")[0]]
    flags = [flag for action in commands()[name]._actions for flag in action.option_strings if len(flag) > 2]
    assert [] == [flag for flag in flags if flag not in part and flag not in ("--help", "--config", "--postfix")]


def test_the_reference_tells_no_command_or_flag_that_does_not_exist() -> None:
    told = set(re.findall(r"^## (.*)", REFERENCE, re.MULTILINE))
    names = {name for line in told for name in re.findall(r"`gatekeeper ([a-z-]+(?: [a-z-]+)?)", line)}
    assert set(commands()) == names
    known = {flag for command in commands().values() for action in command._actions for flag in action.option_strings}
    assert set(re.findall(r"^- `(--[\w-]+)", REFERENCE, re.MULTILINE)) <= known


def test_every_option_of_a_check_says_what_it_is_for() -> None:
    checks = section_of(Config, "checks")
    assert checks is not None
    sections = [section_of(checks, name) for name in checks.model_fields]
    assert all(field.description for section in sections if section for field in section.model_fields.values())


@pytest.mark.parametrize(
    "page", [page.relative_to(ROOT) for page in (*ROOT.glob("*.md"), *ROOT.glob("[!.]*/*.md"))], ids=str
)
def test_a_link_leads_to_something(page: Path) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target.partition("#")[0] for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert [] == [target for target in targets if target and not (ROOT / page.parent / target).exists()]


def toml_blocks() -> list[object]:
    """Every configuration that a page shows, fenced or indented, with its page and line."""
    found: list[object] = []
    for page in (ROOT / "README.md", ROOT / "postfix-snippets" / "README.md", *sorted(ROOT.glob("docs/*.md"))):
        text = page.read_text(encoding="utf-8")
        fenced = re.finditer(r"^```toml\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
        indented = re.finditer(r"^((?: {4}(?:\[\w[\w.]*\]|\w+ = .*)\n)+)", text, re.MULTILINE)
        for match in (*fenced, *indented):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(page, line, match[1], id=f"{page.name}:{line}"))
    return found


@pytest.mark.parametrize(("page", "line", "text"), toml_blocks())
def test_a_configuration_that_a_page_shows_can_be_used(page: Path, line: int, text: str, tmp_path: Path) -> None:
    if page.name == "fixtures.md":
        tomllib.loads(text)  # of a recorded session
        return
    text = re.sub(r"^ {4}", "", text, flags=re.MULTILINE)
    if text.startswith("key_table"):  # goes on with what the page has shown of this section
        text = f"[signing]\n{text}"
    (tmp_path / "gatekeeper.toml").write_text(text, encoding="utf-8")
    assert [] == config_file.examine(tmp_path / "gatekeeper.toml", no_postfix)[1]


@pytest.mark.integration("gatekeeper")
def test_the_readme_shows_how_make_run_ends_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAIL_CONFIG", "/nonexistent")
    need_milter()
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.findall(r"^ {4}listening policy .*\n(?: {4}.*\n|\n(?= {4}))*", text, re.MULTILINE)
    listen = 'listen = "inet:127.0.0.1:0"\n'
    config = tmp_path / "gatekeeper.toml"
    config.write_text(f'store.url = "memory:"\n[policy]\n{listen}[milter]\n{listen}')
    service = Service(config, "run")
    service.wait_for("^and ask it about a session")
    assert 0 == service.end()
    said = [re.sub(r"(127\.0\.0\.1:)\d+", r"\1PORT", line).strip() for line in service.lines]
    lines = [re.sub(r"(127\.0\.0\.1:)\d+", r"\1PORT", line).strip() for line in "".join(shown).splitlines()]
    assert [5, []] == [len(list(filter(None, lines))), [line for line in lines if line not in said]]
