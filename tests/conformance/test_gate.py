"""The judge of the conformance suite: what passes, and above all what does not."""

from typing import Any

import pytest

from tests.conformance.gate import APIS, complaints, totals

REGISTRY = "127.0.0.1:5000"
OUTPUT = """
Test summary:
  Disabled......................:          2
  Skip..........................:          2
  Pass..........................:        854
  FAIL..........................:          0
  Error.........................:          0
  Total.........................:        858

API conformance:
  Ping..........................:       Pass
"""


def results(version: str = "dev", **changes: str) -> dict[str, Any]:
    """Return what a good registry gets; `changes` are states by the name of an API, with _ for a blank."""
    apis = dict.fromkeys(APIS, "Pass") | {"Blob anonymous mount": "Skip"}
    data = {"Image": "Pass", "Sparse Manifests": "Disabled"}
    if version == "1.1":
        apis |= {"Blob upload cancel": "Disabled", "Manifest put with tag params": "Disabled"}
        data |= {"Tag Param": "Disabled", "Tag Param sha512": "Disabled"}
    apis |= {name.replace("_", " "): state for name, state in changes.items()}
    return {"config": {"version": version, "registry": REGISTRY}, "apis": apis, "data": data}


def judged(found: dict[str, Any], version: str = "dev") -> list[str]:
    return complaints(found, totals(OUTPUT), version, REGISTRY)


@pytest.mark.parametrize("version", ["1.1", "dev"])
def test_a_good_registry_passes(version: str) -> None:
    """All Pass, an anonymous mount skipped, and off what that version of the spec does not have: no complaint."""
    assert judged(results(version), version) == []


@pytest.mark.parametrize("state", ["Skip", "FAIL", "Error", "Disabled", "Unknown", ""])
def test_an_api_that_did_not_pass_fails_the_run(state: str) -> None:
    """Skip is what the suite gives a registry that does not support an API, and it is no pass."""
    assert judged(results(Blob_streaming=state)) == [f"api 'Blob streaming': {state}"]


def test_what_1_1_switches_off_must_pass_in_dev() -> None:
    """Disabled is an excuse only in the version that lacks the API."""
    assert judged(results(Blob_upload_cancel="Disabled")) == ["api 'Blob upload cancel': Disabled"]


def test_a_failed_anonymous_mount_fails_the_run() -> None:
    """The optional API may be skipped, not done wrong."""
    assert judged(results(Blob_anonymous_mount="FAIL")) == ["api 'Blob anonymous mount': FAIL"]


def test_an_api_that_was_not_tested_fails_the_run() -> None:
    """A suite that stopped half-way has not judged the rest."""
    found = results()
    del found["apis"]["Referrers"]
    assert judged(found) == ["api 'Referrers' was not tested"]


def test_data_that_did_not_pass_fails_the_run() -> None:
    """A kind of content that the registry mangles counts like an API."""
    found = results()
    found["data"]["Image"] = "Skip"
    assert judged(found) == ["data 'Image': Skip"]


def test_an_empty_report_fails_the_run() -> None:
    """A mistake in the suite's configuration ends with exit code 0 and nothing tested."""
    assert "no test passed" in complaints({}, totals(""), "dev", REGISTRY)
    assert "api 'Ping' was not tested" in complaints({}, totals(""), "dev", REGISTRY)


def test_a_report_of_another_run_fails() -> None:
    """Results are of the version and of the registry that were asked for, or they are nothing."""
    assert judged(results("1.1"))[0] == "the suite ran with version '1.1', not 'dev'"


def test_totals_are_the_summary_s() -> None:
    """Totals come from the summary, not from the states below it."""
    assert totals(OUTPUT) == {"Disabled": 2, "Skip": 2, "Pass": 854, "FAIL": 0, "Error": 0, "Total": 858}


def test_a_failed_test_fails_the_run() -> None:
    """A failure counts although no API and no data kind shows it."""
    counted = totals(OUTPUT) | {"FAIL": 1}
    assert complaints(results(), counted, "dev", REGISTRY) == ["1 FAIL"]
