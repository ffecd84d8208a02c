"""Pieces of JSON Schema (draft 2020-12, which OpenAPI 3.1 uses) that bodies and answers of the API are described with. Pure."""

from node.api.frame import Json

TEXT: Json = {"type": "string"}
COUNT: Json = {"type": "integer", "minimum": 0}
WHOLE: Json = {"type": "integer"}
NUMBER: Json = {"type": "number"}
FLAG: Json = {"type": "boolean"}
TIME: Json = {"type": "string", "format": "date-time"}
DIGEST: Json = {"type": "string", "pattern": "^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$"}
ANYTHING: Json = {}

PROBLEM: Json = {
    "type": "object",
    "description": "What went wrong (RFC 9457).",
    "properties": {
        "type": TEXT,
        "title": TEXT,
        "status": WHOLE,
        "detail": TEXT,
        "errors": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"field": TEXT, "found": TEXT, "right": TEXT},
                "required": ["field", "found", "right"],
            },
        },
        "request_id": TEXT,
    },
    "required": ["type", "title", "status"],
}


def text(summary: str = "", **more: object) -> Json:
    """Return the schema of a text; `more` are further keywords, such as `pattern` and `maxLength`."""
    return _described({"type": "string", **more}, summary)


def one_of(*words: str, summary: str = "") -> Json:
    """Return the schema of a text that is one of these words."""
    return _described({"type": "string", "enum": list(words)}, summary)


def listing(of: Json, summary: str = "", **more: object) -> Json:
    """Return the schema of a list."""
    return _described({"type": "array", "items": of, **more}, summary)


def mapping(of: Json, summary: str = "") -> Json:
    """Return the schema of an object with any keys."""
    return _described({"type": "object", "additionalProperties": of}, summary)


def maybe(schema: Json) -> Json:
    """Return the schema of a value that may be null."""
    if "type" in schema and "enum" not in schema:
        return {**schema, "type": [schema["type"], "null"]}
    return {"anyOf": [schema, {"type": "null"}]}


def record(summary: str = "", /, **fields: Json) -> Json:
    """Return the schema of an answer's object: all of these are there, and more may come with a later release."""
    return _described({"type": "object", "properties": fields, "required": list(fields)}, summary)


def body(summary: str = "", /, *, optional: Json | None = None, **required: Json) -> Json:
    """Return the schema of a request's object: nothing else may be in it."""
    more: dict[str, object] = dict(optional or {})
    whole: Json = {"type": "object", "properties": {**required, **more}, "additionalProperties": False}
    if required:
        whole["required"] = list(required)
    return _described(whole, summary)


def page(name: str, of: Json, after: Json = TEXT) -> Json:
    """Return the schema of a page: a list, and what the next page begins behind (null: there is none)."""
    return record(**{name: listing(of), "next": maybe(after)})


def _described(schema: Json, summary: str) -> Json:
    return {**schema, "description": summary} if summary else schema
