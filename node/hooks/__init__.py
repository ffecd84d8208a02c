"""Webhooks: what is sent and how it is signed, where to it may go, and the service that delivers it."""
