"""What the parameters in the API's paths may be: the document shows it, and what does not fit names nothing. Pure."""

from collections.abc import Mapping

from attrs import frozen
from jsonschema import Draft202012Validator

from node.api.frame import Json

_COMPONENT = r"[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*"


@frozen
class PathParameter:
    """A parameter of a path."""

    schema: Json
    summary: str

    def fits(self, value: str) -> bool:
        """Tell whether a value can name something."""
        return value.isprintable() and Draft202012Validator(self.schema).is_valid(value)


def _text(summary: str, pattern: str, most: int) -> PathParameter:
    return PathParameter({"type": "string", "minLength": 1, "maxLength": most, "pattern": pattern}, summary)


_ACCOUNT = f"^{_COMPONENT}(\\+{_COMPONENT})?$"

PATH_PARAMETERS: Mapping[str, PathParameter] = {
    "name": _text(
        "A repository's name. Its slashes may be written as they are.", f"^{_COMPONENT}(/{_COMPONENT})*$", 255
    ),
    "tag": _text("A tag.", "^[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}$", 128),
    "reference": _text("A tag or a digest.", "^[a-zA-Z0-9_][a-zA-Z0-9._:-]*$", 160),
    "namespace": _text("A namespace: the name of a user or an organisation.", f"^{_COMPONENT}$", 255),
    "user": _text("A user's name.", f"^{_COMPONENT}$", 255),
    "robot": _text("A robot's name behind the plus.", f"^{_COMPONENT}$", 255),
    "team": _text("A team's name.", f"^{_COMPONENT}$", 255),
    "member": _text("A user, or a robot with its owner: alice, org+ci.", _ACCOUNT, 511),
    "account": _text("A user, or a robot with its owner: alice, org+ci.", _ACCOUNT, 511),
    "token": _text("A token's id.", "^[0-9a-f-]{36}$", 36),
    "rule": _text("A rule's id.", "^[0-9]{1,18}$", 18),
    "default": _text("A default permission's id.", "^[0-9]{1,18}$", 18),
    "webhook": _text("A webhook's name.", "^[a-z0-9][a-z0-9._-]{0,63}$", 64),
    "location": _text("A location's name.", "^[^,/]+$", 255),
    "place": _text("The name of a location or of a namespace.", "^[^,/]+$", 255),
}
"""All of them, by name."""
