"""Reads which identity provider people log in with: the one <NAME>_LOGIN_CONFIG, where AUTHENTICATION_TYPE is OIDC."""

import re
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

from node.config.settings import OidcSettings
from node.config.values import Findings, Hidden, Unfit, read_flag, read_text, show

ENDING = "_LOGIN_CONFIG"
_SCOPE = re.compile(r"[\x21\x23-\x5B\x5D-\x7E]{1,200}")
_MORE = frozenset(
    {
        *("SERVICE_ICON", "DEBUGLOG", "DEBUGGING", "LOGIN_BINDING_FIELD", "OIDC_ENDPOINT_CUSTOM_PARAMS"),
        *("USE_PKCE", "PKCE_METHOD", "PUBLIC_CLIENT", "OIDC_LOGOUT_URL"),
    }
)
"""Keys of Quay's that do nothing here: PKCE is always used, and a client without a secret is a public one."""


def read_server(value: object) -> str:
    """Return an https URL of a provider, as it stands. Raises Unfit."""
    text = read_text(value).strip()
    try:
        parts = urlsplit(text)
        usable = parts.scheme == "https" and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or "@" in urlsplit(text).netloc or "?" in text or "#" in text or not text.isascii() or " " in text:
        raise Unfit("write the provider's https URL, without a user, a query and a fragment")
    return text


def _read_scopes(value: object) -> tuple[str, ...]:
    given = value.split() if isinstance(value, str) else value
    if isinstance(given, list | tuple) and all(isinstance(item, str) and _SCOPE.fullmatch(item) for item in given):
        # Without it there is no ID token.
        return tuple(dict.fromkeys(("openid", *given)))
    raise Unfit("write a list of scopes, such as [openid, profile, email]")


# The key in the mapping, the field of OidcSettings and how it is read.
_READERS: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "OIDC_SERVER": ("server", read_server),
    "OIDC_ISSUER": ("issuer", read_server),
    "CLIENT_ID": ("client_id", read_text),
    "CLIENT_SECRET": ("client_secret", read_text),
    "SERVICE_NAME": ("service_name", read_text),
    "LOGIN_SCOPES": ("scopes", _read_scopes),
    "PREFERRED_USERNAME_CLAIM_NAME": ("username_claim", read_text),
    "VERIFIED_EMAIL_CLAIM_NAME": ("email_claim", read_text),
    "OIDC_DISABLE_USER_ENDPOINT": ("no_user_endpoint", read_flag),
    "PREFERRED_GROUP_CLAIM_NAME": ("group_claim", read_text),
    "MISSING_GROUP_CLAIM_MEANS_NONE": ("silence_is_none", read_flag),
}
_REQUIRED = {
    "OIDC_SERVER": "write where the provider is, such as https://login.example.com/realms/main",
    "CLIENT_ID": "write what the provider calls this registry",
}


def read_oidc(document: Mapping[str, object], findings: Findings) -> OidcSettings | None:
    """Return the provider; None where AUTHENTICATION_TYPE is another, and after errors, which go to `findings`."""
    given = {key: value for key, value in document.items() if key.endswith(ENDING) and value is not None}
    if document.get("AUTHENTICATION_TYPE") != "OIDC":
        if given:
            findings.warn(f"ignored, as AUTHENTICATION_TYPE is not OIDC: {', '.join(given)}")
        return None
    if len(given) != 1:
        found = "nothing" if not given else ", ".join(given)
        findings.wrong(f"<NAME>{ENDING}", found, "AUTHENTICATION_TYPE: OIDC needs one: OIDC_SERVER, CLIENT_ID, ...")
        return None
    ((key, value),) = given.items()
    if not isinstance(value, Mapping):
        findings.wrong(key, show(value, secret=True), f"write a mapping with {', '.join(_READERS)}")
        return None
    return _read(key, value, findings)


def _read(key: str, given: Mapping[object, object], findings: Findings) -> OidcSettings | None:
    before, values = len(findings.problems), dict[str, object]()
    for name, (field, read) in _READERS.items():
        value = given.get(name)
        if value is None:
            if name in _REQUIRED:
                findings.wrong(f"{key}.{name}", "nothing", _REQUIRED[name])
            continue
        try:
            values[field] = read(str(value) if isinstance(value, Hidden) else value)
        except Unfit as error:
            findings.wrong(
                f"{key}.{name}", show(value, secret=name == "CLIENT_SECRET" or "@" in str(value)), str(error)
            )
    if ignored := sorted(str(name) for name in given if name in _MORE):
        findings.warn(f"keys of Quay that are not supported and ignored in {key}: {', '.join(ignored)}")
    for other in given:
        if other not in _READERS and other not in _MORE:
            findings.wrong(f"{key}.{other}", "an unknown key", f"there are: {', '.join(_READERS)}")
    if len(findings.problems) > before:
        return None
    values.setdefault("issuer", values["server"])
    values.setdefault("service_name", key.removesuffix(ENDING))
    values["user_endpoint"] = not values.pop("no_user_endpoint", False)
    return OidcSettings(name=key.removesuffix(ENDING).lower(), **values)  # type: ignore[arg-type] # each reader returns its field's type
