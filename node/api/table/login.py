"""Operations by which people log in with an identity provider, and on which of its people have which account."""

from node.api.frame import Json
from node.api.login import begin_code, begin_device, drop_link, finish, get_links, get_ways, set_link
from node.api.operations import Call, Operation, Parameter, Right
from node.api.schemas import FLAG, NUMBER, TEXT, TIME, WHOLE, body, listing, maybe, one_of, record, text

_BEGUN = record(
    handle=TEXT, uri=TEXT, complete_uri=maybe(TEXT), user_code=maybe(TEXT), expires_in=WHOLE, interval=NUMBER
)
_LINK: dict[str, Json] = {"account": TEXT, "issuer": TEXT, "subject": TEXT, "created": TIME}
_SUBJECT = text("What the provider's tokens have in sub.", minLength=1, maxLength=255)

LOOPBACK = r"^http://(127\.0\.0\.1|\[::1\]|localhost):[1-9][0-9]{0,4}/[a-z]{0,20}$"


async def _ways(call: Call) -> Json:
    return await get_ways(call.registry.access, call.registry.settings)


async def _device(call: Call) -> Json:
    return await begin_device(call.registry.access, call.client)


async def _code(call: Call) -> Json:
    return await begin_code(call.registry.access, call.body, call.client)


async def _finish(call: Call) -> Json:
    return await finish(call.registry.access, call.body, call.client)


async def _links(call: Call) -> Json:
    return await get_links(call.means, call.path["user"])


async def _link(call: Call) -> Json:
    return await set_link(call.means, call.registry.access, call.path["user"], call.body["subject"])


async def _unlink(call: Call) -> Json:
    return await drop_link(call.means, call.path["user"], call.query["issuer"], call.query["subject"])


OPERATIONS = (
    Operation(
        "GET",
        "/login",
        "getLogin",
        "How people log in: by a password, or with an identity provider, and whether by a browser elsewhere.",
        Right.NOTHING,
        _ways,
        record(authentication=one_of("none", "Database", "LDAP", "OIDC"), service=maybe(TEXT), device=FLAG, code=FLAG),
        topic="login",
        waits=True,
    ),
    Operation(
        "POST",
        "/login/device",
        "beginDeviceLogin",
        "Begin a login that is finished in a browser anywhere (RFC 8628).",
        Right.NOTHING,
        _device,
        _BEGUN,
        topic="login",
        always=True,
        waits=True,
        own_lines=True,
    ),
    Operation(
        "POST",
        "/login/code",
        "beginCodeLogin",
        "Begin a login in a browser of the same machine, which comes back to it with a code (RFC 8252, 7636).",
        Right.NOTHING,
        _code,
        _BEGUN,
        topic="login",
        body=body(
            redirect_uri=text("http://127.0.0.1:PORT/callback, [::1] or localhost.", maxLength=200, pattern=LOOPBACK),
            code_challenge=text("The S256 challenge.", pattern="^[A-Za-z0-9_-]{43}$"),
            state=text("What comes back with the code.", minLength=8, maxLength=200, pattern="^[A-Za-z0-9._~-]+$"),
        ),
        always=True,
        waits=True,
        own_lines=True,
    ),
    Operation(
        "POST",
        "/login/token",
        "finishLogin",
        "Who has logged in, with an application token that nothing shows later; pending before they have.",
        Right.NOTHING,
        _finish,
        record(
            status=one_of("pending", "done"),
            slower=FLAG,
            account=maybe(TEXT),
            id=maybe(TEXT),
            secret=maybe(TEXT),
            expires=maybe(TIME),
        ),
        topic="login",
        body=body(
            handle=text("What the login began with.", maxLength=8192, writeOnly=True),
            optional={
                "code": text("What the browser came back with.", maxLength=4096, writeOnly=True),
                "code_verifier": text("What the challenge was made of.", maxLength=128, writeOnly=True),
                "title": text("What the token is called.", minLength=1, maxLength=200),
            },
        ),
        always=True,
        waits=True,
        own_lines=True,
    ),
    Operation(
        "GET",
        "/user/{user}/link",
        "listLinks",
        "Whom of identity providers an account belongs to.",
        Right.SUPERUSER,
        _links,
        record(links=listing(record(**_LINK))),
        topic="login",
    ),
    Operation(
        "POST",
        "/user/{user}/link",
        "addLink",
        "Let somebody of the identity provider have a user's account.",
        Right.SUPERUSER,
        _link,
        record(**_LINK),
        topic="login",
        body=body(subject=_SUBJECT),
    ),
    Operation(
        "DELETE",
        "/user/{user}/link",
        "deleteLink",
        "Take a user's account from somebody of an identity provider; tokens that they have go on, unless revoked.",
        Right.SUPERUSER,
        _unlink,
        record(account=TEXT, issuer=TEXT, subject=TEXT, deleted=FLAG),
        topic="login",
        query=(
            Parameter("issuer", TEXT, required=True, summary="The provider, as its tokens have it in iss."),
            Parameter("subject", TEXT, required=True, summary="What its tokens have in sub."),
        ),
    ),
)
