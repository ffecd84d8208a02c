"""Reads where the LDAP directory is and how people are found in it: the LDAP_ keys, where AUTHENTICATION_TYPE is LDAP."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

from node.config.settings import LdapSettings
from node.config.values import Findings, Hidden, Unfit, read_duration, read_flag, read_text, show

_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
_IN_CHAIN = ":1.2.840.113556.1.4.1941:"
"""The rule that follows groups in groups (MS-ADTS, 3.1.1.3.4.4.3)."""
_PORTS = {"ldap": 389, "ldaps": 636}
_LOCAL = frozenset({"localhost", "127.0.0.1", "::1"})


def _read_uri(value: object) -> str:
    text = read_text(value).strip()
    right = "write a URI such as ldaps://ldap.example.com, with nothing behind the host and port"
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise Unfit(right) from None
    if parts.scheme not in _PORTS or not parts.hostname or port == 0 or "@" in parts.netloc:
        raise Unfit(right)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise Unfit(right)
    return text


def _read_dn(value: object) -> str:
    """Return a distinguished name: text, or a list of its components as in Quay."""
    components = value if isinstance(value, list | tuple) else [value]
    texts = [component.strip() for component in components if isinstance(component, str)]
    if len(texts) == len(components) and texts and all("=" in text for text in texts):
        return ",".join(texts)
    raise Unfit('write a name such as "dc=example,dc=com", or the list of its components: [dc=example, dc=com]')


def _read_attribute(value: object) -> str:
    if isinstance(value, str) and _ATTRIBUTE.fullmatch(value):
        return value
    raise Unfit("write the name of an attribute, such as uid or sAMAccountName")


def _read_memberof(value: object) -> str:
    if isinstance(value, str) and _IN_CHAIN in value:
        # Quay puts it into a filter as it stands; Active Directory alone knows this.
        raise Unfit("write memberOf, and LDAP_NESTED_GROUPS: true for groups in groups")
    return _read_attribute(value)


def _read_filter(value: object) -> str:
    text = read_text(value).strip()
    if text.startswith("(") and text.endswith(")") and text.count("(") == text.count(")"):
        return text
    raise Unfit("write a filter in parentheses, such as (memberOf=cn=registry,ou=groups,dc=example,dc=com)")


# The key, the field of LdapSettings and how it is read.
_READERS: Mapping[str, tuple[str, Callable[[object], object]]] = {
    "LDAP_URI": ("uri", _read_uri),
    "LDAP_BASE_DN": ("base_dn", _read_dn),
    "LDAP_ADMIN_DN": ("admin_dn", _read_dn),
    "LDAP_ADMIN_PASSWD": ("admin_password", read_text),
    "LDAP_USER_RDN": ("user_rdn", _read_dn),
    "LDAP_UID_ATTR": ("uid_attribute", _read_attribute),
    "LDAP_EMAIL_ATTR": ("email_attribute", _read_attribute),
    "LDAP_USER_FILTER": ("user_filter", _read_filter),
    "LDAP_SUPERUSER_FILTER": ("superuser_filter", _read_filter),
    "LDAP_MEMBEROF_ATTR": ("memberof_attribute", _read_memberof),
    "LDAP_NESTED_GROUPS": ("nested_groups", read_flag),
    "LDAP_START_TLS": ("start_tls", read_flag),
    "LDAP_TIMEOUT": ("timeout", read_duration(1, 60)),
    "LDAP_CACHE_TTL": ("fresh", read_duration(0, 3600)),
}
LDAP_KEYS = tuple(_READERS)
_REQUIRED = {
    "LDAP_URI": "write where the directory is, such as ldaps://ldap.example.com",
    "LDAP_BASE_DN": "write what people are searched below, such as [dc=example, dc=com]",
    "LDAP_ADMIN_DN": "write the entry that may search for people",
    "LDAP_ADMIN_PASSWD": "write the password of LDAP_ADMIN_DN",
}


def read_ldap(document: Mapping[str, object], findings: Findings, ca_file: Path | None) -> LdapSettings | None:
    """Return where the directory is; None where AUTHENTICATION_TYPE is another, and after errors, which go to `findings`."""
    if document.get("AUTHENTICATION_TYPE") != "LDAP":
        if given := [key for key in LDAP_KEYS if document.get(key) is not None]:
            findings.warn(f"ignored, as AUTHENTICATION_TYPE is not LDAP: {', '.join(given)}")
        return None
    before, values = len(findings.problems), dict[str, object]()
    for key, (name, read) in _READERS.items():
        value = document.get(key)
        if value is None:
            if key in _REQUIRED:
                findings.wrong(key, "nothing", f"AUTHENTICATION_TYPE: LDAP needs it: {_REQUIRED[key]}")
            continue
        try:
            values[name] = read(str(value) if isinstance(value, Hidden) else value)
        except Unfit as error:
            findings.wrong(key, show(value, secret=key == "LDAP_ADMIN_PASSWD" or "@" in str(value)), str(error))
    if len(findings.problems) > before:
        return None
    parts = urlsplit(str(values["uri"]))
    secure, host = parts.scheme == "ldaps", parts.hostname or ""
    if secure and values.get("start_tls"):
        findings.wrong(
            "LDAP_START_TLS", "true", "ldaps:// has TLS from the first byte: leave this out, or write ldap://"
        )
        return None
    if not secure and not values.get("start_tls") and host not in _LOCAL:
        findings.warn(
            f"LDAP_URI: passwords cross the network to {host} in clear text; write ldaps://, or LDAP_START_TLS: true"
        )
    place = {"host": host, "port": parts.port or _PORTS[parts.scheme], "secure": secure}
    return LdapSettings(**values, **place, ca_file=None if ca_file is None else str(ca_file))  # type: ignore[arg-type] # each reader returns its field's type
