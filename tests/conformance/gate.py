"""Judges a run of the conformance suite by its results.yaml.

Its exit code is of no use: it is 0 for a registry that answers "unsupported" everywhere (Skip), and for a mistake in the
suite's own configuration.
"""

import re
from collections.abc import Mapping
from typing import Any

# Every part of the API that the suite at the pinned version reports. One that is missing was not tested.
APIS = frozenset(
    {
        "Blob anonymous mount",
        "Blob chunked",
        "Blob delete",
        "Blob delete atomic",
        "Blob get",
        "Blob get range",
        "Blob head",
        "Blob mount",
        "Blob post only",
        "Blob post put",
        "Blob push",
        "Blob streaming",
        "Blob upload cancel",
        "Manifest delete",
        "Manifest delete atomic",
        "Manifest get by digest",
        "Manifest get by tag",
        "Manifest head by digest",
        "Manifest head by tag",
        "Manifest put by digest",
        "Manifest put by tag",
        "Manifest put with subject",
        "Manifest put with tag params",
        "Ping",
        "Referrers",
        "Tag delete",
        "Tag delete atomic",
        "Tag listing",
    }
)
# A mount that names no source is optional in the spec ("may"); 202 is an answer that is as good and is scored Skip.
OPTIONAL = frozenset({"Blob anonymous mount"})
# What the suite itself switches off, by version of the spec.
OFF = {
    "1.1": frozenset({"Blob upload cancel", "Manifest put with tag params", "Tag Param", "Tag Param sha512"}),
    "dev": frozenset[str](),
}
# Indexes whose children are missing: a setting of the registry, off by default, as in the suite.
OFF_ALWAYS = frozenset({"Sparse Manifests"})

_TOTAL = re.compile(r"^\s+(Pass|Skip|Disabled|FAIL|Error|Total)\.+:\s+(\d+)\s*$", re.MULTILINE)


def totals(output: str) -> dict[str, int]:
    """Return the totals that the suite prints: Pass, Skip, Disabled, FAIL, Error, Total."""
    return {name: int(count) for name, count in _TOTAL.findall(output)}


def complaints(results: Mapping[str, Any], counted: Mapping[str, int], version: str, registry: str) -> list[str]:
    """Return everything that speaks against a run, in words; nothing when it passed.

    `results` is the content of results.yaml, `counted` what `totals` found, `version` and `registry` what was asked for.
    """
    wrong: list[str] = []
    configuration = results.get("config") or {}
    asked = {"version": version, "registry": registry}
    for key, value in asked.items():
        if (found := configuration.get(key)) != value:
            wrong.append(f"the suite ran with {key} {found!r}, not {value!r}")
    apis, data = results.get("apis") or {}, results.get("data") or {}
    wrong += [f"api {name!r} was not tested" for name in sorted(APIS - apis.keys())]
    if not data:
        wrong.append("no data conformance was tested")
    off = OFF[version] | OFF_ALWAYS
    for kind, found_of_kind in (("api", apis), ("data", data)):
        for name, state in sorted(found_of_kind.items()):
            excused = (state == "Disabled" and name in off) or (state == "Skip" and kind == "api" and name in OPTIONAL)
            if state != "Pass" and not excused:
                wrong.append(f"{kind} {name!r}: {state}")
    if not counted.get("Pass"):
        wrong.append("no test passed")
    wrong += [f"{counted.get(name)} {name}" for name in ("FAIL", "Error") if counted.get(name) != 0]
    return wrong
