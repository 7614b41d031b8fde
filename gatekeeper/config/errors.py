# SPDX-License-Identifier: GPL-3.0-or-later
"""Messages for mistakes in the configuration, from pydantic's errors: the key, what is wrong, what is allowed.

For an unknown key the message names the key that was probably meant, in the same section or in another.
"""

import difflib
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from gatekeeper.config.locations import KeyPath

_EXPECTED = {
    "bool_type": "true or false",
    "int_type": "a whole number",
    "string_type": "a string in quotes",
    "tuple_type": "a list",
    "dict_type": "a section of its own, in [brackets]",
    "mapping_type": "a section of its own, in [brackets]",
    "model_type": "a section of its own, in [brackets]",
    "model_attributes_type": "a section of its own, in [brackets]",
    "float_type": "a number",
}
_TYPE_NAMES = {
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "a section",
}


def validation_errors(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[KeyPath, str]]:
    """Yield the path of the key and a sentence for each mistake."""
    for detail in error.errors(include_url=False):
        path: KeyPath = tuple(detail["loc"])
        yield path, _sentence(path, detail, model)


def key_name(path: KeyPath) -> str:
    """Return the name that people use for an option: `policy.listen` for `("policy", "listen", 0)`."""
    return ".".join(str(part) for part in path if isinstance(part, str))


def _sentence(path: KeyPath, detail: ErrorDetails, model: type[BaseModel]) -> str:
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        return _unknown(path, model)
    if kind == "value_error":
        return f"{key_name(path)}: {detail['msg'].removeprefix('Value error, ')}".removeprefix(": ")
    if kind in _EXPECTED:
        return f"{key_name(path)} is {_TYPE_NAMES.get(type(value), 'something else')}; allowed: {_EXPECTED[kind]}"
    if kind in ("literal_error", "enum"):
        return f"{key_name(path)} is {value!r}; allowed: {detail['ctx']['expected'].replace(chr(39), chr(34))}"
    if kind == "missing":
        return f"{key_name(path)} is missing"
    return f"{key_name(path)} is {value!r}; {detail['msg'].replace('Input should', 'it must')}"


def _unknown(path: KeyPath, model: type[BaseModel]) -> str:
    """Return a sentence about an unknown key: where it belongs, else the nearest key here, else all keys allowed."""
    *above, key = path
    here = f"[{key_name(tuple(above))}]" if above else "the top level"
    known = _options(model, tuple(above))
    if str(key).removeprefix("smtpd_") == "relay_restrictions":
        return f"{key!r} stays in main.cf: who may relay is Postfix's decision"
    near = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
    everywhere = {name: section for section, name in _all_options(model)}
    if near and key not in everywhere:  # what is right elsewhere is in the wrong place, not misspelt
        return f"unknown key {key!r} in {here}; did you mean {near[0]!r}?"
    if key in everywhere:
        section = everywhere[str(key)]
        return f"unknown key {key!r} in {here}; it belongs in {f'[{section}]' if section else 'the top level'}"
    return f"unknown key {key!r} in {here}; allowed: {', '.join(sorted(known))}"


def _options(model: type[BaseModel], path: KeyPath) -> list[str]:
    """Return the option names of the section at `path`; a mapping of sections (`policy.contexts`) takes any name."""
    for part in path:
        found = section_of(model, str(part))
        if found is None:
            continue
        model = found
    return list(_fields(model))


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields by the names used in the file, which may be keywords in Python, such as `for`."""
    return {str(field.validation_alias or name): field for name, field in model.model_fields.items()}


def section_of(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """Return the model of the section, or mapping of sections, in field `name`; None if it holds a plain value."""
    field = _fields(model).get(name)
    return _model_in(field.annotation) if field else None


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in getattr(annotation, "__args__", ()) if (found := _model_in(part))), None)


def _all_options(model: type[BaseModel], above: str = "") -> Iterator[tuple[str, str]]:
    for name in _fields(model):
        if section := section_of(model, name):
            yield from _all_options(section, f"{above}.{name}".removeprefix("."))
        else:
            yield above, name
