"""What every card that is read from an untrusted JSON file must be: plain, small, and as its schema says.

Shared by model cards, encoder descriptions and teaching sets. Whatever is wrong becomes a `ModelError` whose sentence
names the field.
"""

from __future__ import annotations

import json
import re
from typing import Any

from ..errors import ModelError

MAX_CARD_BYTES = 1024 * 1024


def json_from_bytes(raw: bytes, where: str) -> Any:
    """What an untrusted JSON file says; ModelError for one that is too large, doubled or no JSON."""
    if len(raw) > MAX_CARD_BYTES:
        raise ModelError(f"{where} is larger than {MAX_CARD_BYTES // 1024} kB and is not a model card.")
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=_unique_keys, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ModelError(f"{where} is not readable JSON: {short(reason)}.") from None


def leads_outside(name: str) -> bool:
    return any(part in name for part in ("/", "\\", ":", "\0")) or name in ("", ".", "..")


def check_plain(data: Any, where: str, schema: dict) -> None:
    """What all cards have in common: format version, plain text, weights inside the folder, the schema. ModelError."""
    known = schema["properties"]
    if isinstance(data, dict) and data.get("format") == known["format"]["const"]:
        rule, version = known["format_version"], data.get("format_version")
        newest = rule["const"] if "const" in rule else max(rule["enum"])
        if isinstance(version, int) and version > newest:
            raise ModelError(f"{where} has format version {version}, and this HiEndSeg reads up to {newest}; "
                             "install a newer HiEndSeg to use this model.")
    for field_name, text in _strings(data, ""):
        if any((ord(c) < 32 and c not in "\n\t") or ord(c) == 127 or 0xD800 <= ord(c) < 0xE000 for c in text):
            raise ModelError(f"{where}: the text of field {short(field_name) or 'keys'} holds control characters; "
                             "a card may hold plain text only.")
    weights = data.get("weights") if isinstance(data, dict) else None
    name = weights.get("file") if isinstance(weights, dict) else None
    if isinstance(name, str) and leads_outside(name):
        raise ModelError(f"{where}: field weights.file ({short(name)}) points outside the model's own folder, which "
                         "no model may do; do not use it, and ask its author for a proper copy.")
    _check_schema(data, where, schema)


def _check_schema(data: Any, where: str, schema: dict) -> None:
    import jsonschema  # half the import time of this module; a face lists models only when asked

    validator = jsonschema.Draft202012Validator(schema)
    error = jsonschema.exceptions.best_match(validator.iter_errors(data))
    if error is None:
        return
    name = _field(error.absolute_path)
    at = f"field {name}" if name else "the card"
    got = short(json.dumps(error.instance, ensure_ascii=False))
    rule, limit = error.validator, error.validator_value
    if rule == "required":
        missing = next(key for key in limit if key not in error.instance)
        said = f"field {name + '.' if name else ''}{missing} is missing"
    elif rule == "additionalProperties":
        unknown = next(key for key in error.instance if key not in error.schema.get("properties", {}))
        said = f"{at} has an unknown entry {short(unknown)!r}"
    elif rule == "type":
        said = f"{at} must be of type {' or '.join(limit) if isinstance(limit, list) else limit}, and it is {got}"
    elif rule in ("minimum", "maximum"):
        said = f"{at} must be at {'least' if rule == 'minimum' else 'most'} {limit}, and it is {got}"
    elif rule in ("minItems", "minLength", "maxItems", "maxLength", "maxProperties"):
        said = f"{at} must have at {'least' if rule.startswith('min') else 'most'} {limit} " \
               f"{'characters' if rule.endswith('Length') else 'entries'}"
    elif rule == "enum":
        said = f"{at} must be one of {', '.join(map(str, limit))}, and it is {got}"
    elif rule == "const":
        said = f"{at} must be {limit!r}, and it is {got}"
    elif rule == "pattern":
        said = f"{at} is not written as it must be ({got}; allowed is {limit})"
    else:
        said = f"{at} is not acceptable ({got})"
    raise ModelError(f"{where}: {said}; correct the card or get the model again.")


def _field(path) -> str:
    """`labels[2].color[1]` from the path of a schema error."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f"{'.' if text else ''}{short(part)}"
    return text


def _strings(value: Any, path: str):
    """Every text in a JSON value with the name of its field, keys included."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield path, key
            yield from _strings(entry, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        for number, entry in enumerate(value):
            yield from _strings(entry, f"{path}[{number}]")


def short(text: str, limit: int = 120) -> str:
    """Foreign text made fit for one line of a message."""
    text = re.sub(r"[^\x20-\x7e\xa0-\ud7ff\ue000-\U0010ffff]+", "?", str(text))
    return text if len(text) <= limit else text[:limit - 1] + "…"


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} occurs twice")
    return result


def _no_constant(name: str):
    raise ValueError(f"{name} is not a number that JSON allows")
