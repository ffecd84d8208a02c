"""The OCI distribution-spec conformance suite: how it is built, run and judged."""
