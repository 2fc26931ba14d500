"""The JSON schema of a model's `card.json` (draft 2020-12), kept in Python so that it needs no package data.

What a schema cannot say (label values without gaps, lo < hi, a path that stays inside the folder) is checked in
`card.py`. Sizes are bounded so that a hostile card cannot ask for absurd memory or endless loops.
"""

from __future__ import annotations

FORMAT = "hiendseg-model"
FORMAT_VERSION = 1
#: Of the card of a version, whose weights are changes to another model: programs that know only 1 refuse it.
VERSION_FORMAT_VERSION = 2

#: Longest name a person may give a version, and most cases that are kept beside one.
MAX_NAME = 100
MAX_TEACHING_CASES = 64

ID_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,63}$"
VERSION_PATTERN = r"^[0-9]{1,6}(\.[0-9]{1,6}){0,3}([.+-][A-Za-z0-9]+([.+-][A-Za-z0-9]+)*)?$"
LABEL_ID_PATTERN = r"^[a-z][a-z0-9]*(_[a-z0-9]+)*$"
WEIGHTS_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}\.safetensors$"

#: A code as DICOM has it: scheme, value, meaning. `~` and `^` separate the parts of Slicer's terminology tag.
_CODE = {
    "type": "array",
    "prefixItems": [{"$ref": "#/$defs/codeText"}] * 3,
    "minItems": 3,
    "maxItems": 3,
}

_NETWORK_VALUE = {
    "anyOf": [
        {"type": ["boolean", "null"]},
        {"type": "string", "maxLength": 100},
        {"type": "number", "minimum": -1e6, "maximum": 65536},
        {"type": "array", "maxItems": 64, "items": {"$ref": "#/$defs/networkValue"}},
        {"type": "object", "maxProperties": 64, "additionalProperties": {"$ref": "#/$defs/networkValue"}},
    ]
}

#: A model by id, version and the checksum of its weights; the title is for people who no longer have it.
_REFERENCE = {
    "type": "object",
    "required": ["id", "version", "sha256"],
    "additionalProperties": False,
    "properties": {
        "id": {"type": "string", "pattern": ID_PATTERN},
        "version": {"type": "string", "pattern": VERSION_PATTERN, "maxLength": 64},
        "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
        "title": {"type": "string", "minLength": 1, "maxLength": 200},
    },
}

_MEASURED = {"type": "array", "maxItems": 254, "items": {"type": "object", "maxProperties": 32}}

#: Where a version comes from. base: the whole model its weights are changes to. parent: what it was adapted from, the
#: base itself or another version of it. case: what it learned from, without anything about the patient.
#: teaching_cases: how many cases were kept beside it for the next adaptation, when it was written.
ADAPTATION_SCHEMA = {
    "type": "object",
    "required": ["base", "parent", "name", "date", "case", "parameters", "report", "teaching_cases"],
    "additionalProperties": False,
    "properties": {
        "base": _REFERENCE,
        "parent": _REFERENCE,
        "name": {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
        "date": {"type": "string",
                 "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}(T[0-9]{2}:[0-9]{2}(:[0-9]{2})?([+-][0-9]{2}:[0-9]{2}|Z)?)?$"},
        "case": {
            "type": "object",
            "required": ["fingerprint", "shape", "spacing"],
            "additionalProperties": False,
            "properties": {
                "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{8,64}$"},
                "shape": {"type": "array", "minItems": 3, "maxItems": 3,
                          "items": {"type": "integer", "minimum": 1, "maximum": 65536}},
                "spacing": {"type": "array", "minItems": 3, "maxItems": 3,
                            "items": {"type": "number", "exclusiveMinimum": 0, "maximum": 1000}},
            },
        },
        "parameters": {"type": "object", "maxProperties": 100},
        "report": {"type": "object", "maxProperties": 64, "properties": {"taught": _MEASURED, "protected": _MEASURED}},
        "teaching_cases": {"type": "integer", "minimum": 0, "maximum": MAX_TEACHING_CASES},
    },
}

#: Two grey values.
_PAIR = {"type": "array", "minItems": 2, "maxItems": 2,
         "items": {"type": "number", "minimum": -100000, "maximum": 100000}}

CARD_SCHEMA = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "HiEndSeg model card",
    "type": "object",
    "required": ["format", "format_version", "id", "version", "title", "modality", "network", "spacing", "tile",
                 "overlap", "intensity", "labels", "licence", "provenance", "weights"],
    "additionalProperties": False,
    "properties": {
        "format": {"const": FORMAT},
        "format_version": {"enum": [FORMAT_VERSION, VERSION_FORMAT_VERSION]},
        "id": {"type": "string", "pattern": ID_PATTERN},
        "version": {"type": "string", "pattern": VERSION_PATTERN, "maxLength": 64},
        "title": {"type": "string", "minLength": 1, "maxLength": 200},
        "description": {"type": "string", "maxLength": 20000},
        "default": {"type": "boolean"},
        "modality": {"enum": ["CT", "MR"]},
        "network": {
            "type": "object",
            "required": ["kind"],
            "maxProperties": 64,
            "properties": {"kind": {"type": "string", "pattern": "^[a-z][a-z0-9_]{0,63}$"}},
            "additionalProperties": {"$ref": "#/$defs/networkValue"},
        },
        "spacing": {  # mm, along R, A, S
            "type": "array", "minItems": 3, "maxItems": 3,
            "items": {"type": "number", "minimum": 0.1, "maximum": 20},
        },
        "tile": {  # voxels at that spacing
            "type": "array", "minItems": 3, "maxItems": 3,
            "items": {"type": "integer", "minimum": 16, "maximum": 512},
        },
        "overlap": {"type": "number", "minimum": 0, "maximum": 0.9},
        "intensity": {
            "type": "object",
            "required": ["unit", "windows"],
            "additionalProperties": False,
            "properties": {
                "unit": {"enum": ["HU", "native"]},
                "windows": {  # one network input channel per window
                    "type": "array", "minItems": 1, "maxItems": 16,
                    "items": _PAIR,
                },
                "curve": {  # grey value -> what the network is shown, see geometry.curve
                    "type": "array", "minItems": 2, "maxItems": 64,
                    "items": _PAIR,
                },
            },
        },
        "labels": {  # label maps are uint8 and 255 means "not annotated" in training data
            "type": "array", "minItems": 1, "maxItems": 254,
            "items": {
                "type": "object",
                "required": ["value", "id", "name", "color"],
                "additionalProperties": False,
                "properties": {
                    "value": {"type": "integer", "minimum": 1, "maximum": 254},
                    "id": {"type": "string", "pattern": LABEL_ID_PATTERN, "maxLength": 64},
                    "name": {"type": "string", "minLength": 1, "maxLength": 100},
                    "color": {
                        "type": "array", "minItems": 3, "maxItems": 3,
                        "items": {"type": "integer", "minimum": 0, "maximum": 255},
                    },
                    "terminology": {
                        "type": ["object", "null"],
                        "required": ["category", "type"],
                        "additionalProperties": False,
                        "properties": {
                            "category": _CODE,
                            "type": _CODE,
                            "modifier": {"anyOf": [{"type": "null"}, _CODE]},
                        },
                    },
                    "largest_component": {"type": "boolean"},
                },
            },
        },
        "licence": {"type": "string", "minLength": 1, "maxLength": 5000},
        "provenance": {"type": "string", "minLength": 1, "maxLength": 20000},
        "training": {"type": "object"},
        "adaptation": ADAPTATION_SCHEMA,
        "scores": {"type": "array", "maxItems": 1000, "items": {"type": "object"}},
        "weights": {
            "type": "object",
            "required": ["file", "sha256", "bytes", "dtype"],
            "additionalProperties": False,
            "properties": {
                "file": {"type": "string", "pattern": WEIGHTS_PATTERN},
                "sha256": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
                "bytes": {"type": "integer", "minimum": 1, "maximum": 16 * 1024 ** 3},
                "dtype": {"enum": ["float16", "bfloat16", "float32"]},
            },
        },
    },
    "$defs": {
        "codeText": {"type": "string", "minLength": 1, "maxLength": 100, "pattern": r"^[^~^|]+$"},
        "networkValue": _NETWORK_VALUE,
    },
}
