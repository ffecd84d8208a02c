"""The OpenAPI 3.1 document of the API, made of the table. Pure."""

import re
from collections.abc import Iterable

from node.api.frame import PROBLEM_TYPE, Json
from node.api.operations import Operation
from node.api.paths import PATH_PARAMETERS
from node.api.schemas import PROBLEM

PREFIX = "/api/v1"


def document(operations: Iterable[Operation], version: str) -> Json:
    """Return the document. The order of the table is that of the document."""
    paths: dict[str, dict[str, object]] = {}
    for operation in operations:
        paths.setdefault(PREFIX + operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Antipode",
            "version": version,
            "description": "Everything around images: what is where, who may do what, what happened.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {"Problem": PROBLEM},
            "securitySchemes": {
                "basic": {"type": "http", "scheme": "basic"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
        "security": [{"basic": []}, {"bearer": []}, {}],
    }


def parameters_of(path: str) -> tuple[str, ...]:
    """Return the names of a path's parameters."""
    return tuple(re.findall(r"\{(\w+)\}", path))


def _operation(operation: Operation) -> Json:
    problem = {
        "description": "It cannot be done.",
        "content": {PROBLEM_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
    }
    made: Json = {
        "operationId": operation.id,
        "summary": operation.summary,
        "tags": [operation.topic],
        "x-right": operation.right.value,
        "parameters": [
            *(_path_parameter(name) for name in parameters_of(operation.path)),
            *(
                {
                    "name": line.name,
                    "in": "query",
                    "required": line.required,
                    "schema": line.schema,
                    **({"description": line.summary} if line.summary else {}),
                }
                for line in operation.query
            ),
        ],
        "responses": {
            str(operation.status): {
                "description": "Done.",
                "content": {"application/json": {"schema": operation.answer}},
            },
            "default": problem,
        },
    }
    if operation.body is not None:
        made["requestBody"] = {"required": True, "content": {"application/json": {"schema": operation.body}}}
    return made


def _path_parameter(name: str) -> Json:
    parameter = PATH_PARAMETERS[name]
    return {
        "name": name,
        "in": "path",
        "required": True,
        "schema": parameter.schema,
        "description": parameter.summary,
    }
