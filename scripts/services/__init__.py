"""Starts the real PostgreSQL, Redis and Ceph that tests and the demo use, in one temporary folder.

Standard library only, so that it runs before anything is installed:

    python3 -m scripts.services up                 prints the exports and stays up until Ctrl-C
    python3 -m scripts.services run -- COMMAND     runs COMMAND with the exports, then stops everything
    python3 -m scripts.services check              says which programs are missing here
    python3 -m scripts.services circles            says, with the exports, which transactions waited for each other in a circle

What is exported (set a variable beforehand and that service is not started, yours is used):

    ANTIPODE_TEST_POSTGRES   DSN of a role that may CREATE DATABASE
    ANTIPODE_TEST_POSTGRES_LOG  its log, where it is ours
    ANTIPODE_TEST_REDIS      redis://127.0.0.1:PORT/0
    ANTIPODE_TEST_S3         JSON list of {"name": "us" | "eu" | "us-tls" | "eu-tls", "endpoint", "access_key", "secret_key",
                             "bucket", "ca": null or the path of a CA certificate}
"""
