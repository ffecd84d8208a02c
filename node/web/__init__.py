"""The HTTP edge: listener, hygiene, routes, health, and how answers become ASGI messages."""
