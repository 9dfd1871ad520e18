"""Who may ask: in front of every route, a check of the host, of the token, and of where a change comes from.

Every answer bears the same strict headers, those of refusals too.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trainer.web.refusal import Refusal

COOKIE = "ich"
OWN_HEADER = "x-ich"  # no form of another site can send it
LOGIN = "/login"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_POLICY = (  # of pages of prediction: their style stands inside, and they ask for nothing
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; sandbox"
)
STRICT = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",  # images of patients stay on no disk of a browser
}
_SAFE = ("GET", "HEAD")


def cookie_value(token: str) -> str:
    """What a browser keeps in place of the token."""
    return hmac.new(token.encode(), b"cookie of trainer.serve", hashlib.sha256).hexdigest()


def same(one: str, other: str) -> bool:
    """Whether two secrets are equal, in a time that does not tell where they differ."""
    return hmac.compare_digest(one.encode(errors="surrogateescape"), other.encode(errors="surrogateescape"))


class Guard:
    """The application behind the checks. `token`: "" where none is needed; `hosts`: allowed names, none for any."""

    def __init__(self, app: ASGIApp, token: str, hosts: Collection[str]) -> None:
        self._app, self._token, self._hosts = app, token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        answer = self._refused(scope)
        await (answer or self._app)(scope, receive, _strict(send))

    def _refused(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        try:
            self._require_host(headers)
            if scope["method"] not in _SAFE:
                _require_own(scope, headers)
        except Refusal as why:
            return why.answer()
        path = scope["path"]
        if not self._token or path == LOGIN or path.startswith("/static/") or self._knows(headers):
            return None
        if scope["method"] in _SAFE and "text/html" in headers.get("accept", ""):
            return RedirectResponse(LOGIN, 303)
        text = "this server asks for its token: Authorization: Bearer TOKEN, or the page /login"
        answer = Refusal(401, text).answer()
        answer.headers["www-authenticate"] = "Bearer"
        return answer

    def _require_host(self, headers: Headers) -> None:
        """Refuse the names that another site may have given to this address (DNS rebinding)."""
        if self._hosts and _host(headers.get("host", "")) not in self._hosts:
            raise Refusal(403, "the Host of this request is none of this server; ask for it at the address it told")

    def _knows(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer":
            return same(given.strip(), self._token)
        return same(_cookie(headers.get("cookie", "")), cookie_value(self._token))


def _require_own(scope: Scope, headers: Headers) -> None:
    """Refuse a change that a page of another site may have sent."""
    origin, site = headers.get("origin"), headers.get("sec-fetch-site", "none")
    schemes = (scope["scheme"], "https")  # a proxy with TLS in front hands Host on, and the browser's page is its own
    own = origin is None or origin.lower() in {f"{scheme}://{headers.get('host', '')}".lower() for scheme in schemes}
    if not own or site not in ("none", "same-origin"):
        raise Refusal(403, "changes from pages of another site are refused")
    if scope["path"] != LOGIN and headers.get(OWN_HEADER) != "1":
        raise Refusal(403, "a request that changes something needs the header X-ICH: 1")


def _host(text: str) -> str:
    """The name of `name:port` and `[::1]:port`, in small letters."""
    name, _, port = text.rpartition(":")
    return (name if port.isdecimal() and (name.endswith("]") or ":" not in name) and name else text).lower()


def _cookie(text: str) -> str:
    try:
        found = SimpleCookie(text).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


def _strict(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in STRICT.items():
                headers.setdefault(name, value)
        await send(message)

    return sent
