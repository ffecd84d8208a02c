"""The identity provider of these tests as a program: oidc-provider-mock, and authlib's device grant (RFC 8628), which it lacks.

    python -m tests.auth.provider_server CERTIFICATE KEY         prints its port

People log in at /device?user_code=... as at the mock's own page: POST `sub`, or `action=deny`.
"""

import sys
import time
from typing import Any

import flask
import oidc_provider_mock
from authlib.integrations.flask_oauth2 import AuthorizationServer
from authlib.jose import jwt
from authlib.oauth2.rfc8628 import DeviceAuthorizationEndpoint, DeviceCodeGrant, DeviceCredentialDict
from oidc_provider_mock._storage import Client
from werkzeug.serving import make_server

_LIFETIME = 600
CREDENTIALS: dict[str, DeviceCredentialDict] = {}
GRANTS: dict[str, tuple[Any, bool]] = {}


class Endpoint(DeviceAuthorizationEndpoint):  # type: ignore[misc]
    """Begins a login."""

    EXPIRES_IN, INTERVAL = _LIFETIME, 1

    def get_verification_uri(self) -> str:
        return flask.url_for("device", _external=True)

    def save_device_credential(self, client_id: str, scope: str, data: dict[str, Any]) -> None:
        made = {**data, "client_id": client_id, "scope": scope, "expires_at": time.time() + _LIFETIME}
        CREDENTIALS[data["device_code"]] = DeviceCredentialDict(made)


class Grant(DeviceCodeGrant):  # type: ignore[misc]
    """Ends it, with an ID token that the mock's key signs."""

    def query_device_credential(self, device_code: str) -> DeviceCredentialDict | None:
        return CREDENTIALS.get(device_code)

    def query_user_grant(self, user_code: str) -> tuple[Any, bool] | None:
        return GRANTS.get(user_code)

    def should_slow_down(self, _credential: DeviceCredentialDict) -> bool:
        return False

    def create_token_response(self) -> tuple[int, dict[str, Any], Any]:
        status, token, headers = super().create_token_response()
        CREDENTIALS.pop(self.request.credential["device_code"])
        now, storage = int(time.time()), flask.g.oidc_provider_mock_storage
        user = self.request.user
        claims = {
            "iss": flask.request.host_url.rstrip("/"),
            "aud": self.request.client.get_client_id(),
            "sub": user.sub,
        }
        key = storage.jwk.as_dict(is_private=True)
        head = {"alg": "RS256", "kid": key.get("kid")} if key.get("kid") else {"alg": "RS256"}
        made = jwt.encode(head, {**user.claims, **claims, "iat": now, "exp": now + 3600}, key)
        return status, {**token, "id_token": made.decode()}, headers


def serve(certificate: str, key: str) -> None:
    """Serve for ever."""
    Client.GRANT_TYPES_SUPPORTED = (*Client.GRANT_TYPES_SUPPORTED, Grant.GRANT_TYPE)
    app = oidc_provider_mock.app()
    registered: set[int] = set()

    def server() -> AuthorizationServer:
        made = flask.g._authlib_authorization_server
        if id(made) not in registered:
            registered.add(id(made))
            made.register_grant(Grant)
            made.register_endpoint(Endpoint)
        return made

    @app.after_request  # type: ignore[untyped-decorator]
    def describe(response: flask.Response) -> flask.Response:
        if flask.request.path == "/.well-known/openid-configuration":
            place = flask.request.host_url.rstrip("/") + "/oauth2/device"
            response.set_data(flask.json.dumps({**response.get_json(), "device_authorization_endpoint": place}))
        return response

    @app.before_request  # type: ignore[untyped-decorator]
    def grant() -> Any:
        if flask.request.path == "/oauth2/token" and flask.request.form.get("grant_type") == Grant.GRANT_TYPE:
            return server().create_token_response()
        return None

    @app.post("/oauth2/device")  # type: ignore[untyped-decorator]
    def begin() -> Any:
        return server().create_endpoint_response(Endpoint.ENDPOINT_NAME)

    @app.post("/device")  # type: ignore[untyped-decorator]
    def device() -> Any:
        user_code, storage = flask.request.args["user_code"], flask.g.oidc_provider_mock_storage
        if user_code not in {credential["user_code"] for credential in CREDENTIALS.values()}:
            return "no such code", 404
        user = storage.get_user(flask.request.form.get("sub", ""))
        GRANTS[user_code] = (user, user is not None and flask.request.form.get("action") != "deny")
        return "done"

    listening = make_server("127.0.0.1", 0, app, threaded=True, ssl_context=(certificate, key))
    print(listening.server_port, flush=True)
    listening.serve_forever()


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2])
