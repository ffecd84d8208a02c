"""The little of ASGI that the edge speaks, as types (ASGI 3.0, HTTP scope 2.1)."""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

START = "http.response.start"
BODY = "http.response.body"
REQUEST = "http.request"
DISCONNECT = "http.disconnect"
