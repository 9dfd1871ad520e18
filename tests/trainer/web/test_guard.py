"""Who may ask: hosts, tokens, cookies, pages of other sites; and the headers of every answer."""

from __future__ import annotations

import hmac

import pytest
import web_server
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient
from web_server import OWN, form, slice_bytes

from trainer.web import guard, server
from trainer.web.guard import Guard

TOKEN = "correct horse battery".replace(" ", "-")
HERE = "127.0.0.1:8000"
STRICT = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


def client(token: str = "", hosts=(), base: str = f"http://{HERE}") -> TestClient:
    """A client of an application that answers everything with `in`."""
    methods = ["GET", "POST", "DELETE", "PUT", "PATCH", "OPTIONS"]
    inside = Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("in"), methods=methods)])
    return TestClient(Guard(inside, token, hosts), base_url=base, follow_redirects=False)


@pytest.mark.parametrize(
    ("host", "answer"),
    [
        ("127.0.0.1:8000", 200),
        ("localhost:8000", 200),
        ("LOCALHOST:8000", 200),
        ("localhost", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example:8000", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost.evil.example:8000", 403),
        ("127.0.0.2:8000", 403),
        ("evil@127.0.0.1:8000", 403),
        ("127.0.0.1:8000:8000", 403),
        ("", 403),
    ],
)
def test_on_loopback_only_names_of_loopback_are_answered(host, answer):
    """A page of another site whose name was made to lead here (DNS rebinding) asks by that name."""
    found = client(hosts=server.hosts("127.0.0.1")).get("/", headers={"host": host})
    assert found.status_code == answer


def test_a_server_for_a_network_is_asked_by_any_name_and_with_a_token():
    assert server.hosts("0.0.0.0") == server.hosts("10.0.0.7") == ()
    bearer = {"authorization": f"Bearer {TOKEN}", "host": "scans.example"}
    assert client(TOKEN).get("/", headers=bearer).status_code == 200


@pytest.mark.parametrize("method", ["POST", "DELETE", "PUT", "PATCH", "OPTIONS"])
@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"x-ich": "1"}, 200),  # a program
        ({"x-ich": "1", "origin": f"http://{HERE}", "sec-fetch-site": "same-origin"}, 200),  # our own page
        ({"x-ich": "1", "origin": f"HTTP://{HERE}"}, 200),
        ({}, 403),  # a form of another site in an old browser
        ({"x-ich": "0"}, 403),
        ({"origin": f"http://{HERE}"}, 403),
        ({"x-ich": "1", "origin": "http://evil.example"}, 403),
        ({"x-ich": "1", "origin": "null"}, 403),  # a sandboxed frame
        ({"x-ich": "1", "origin": "https://127.0.0.1:8000"}, 200),  # behind a proxy with TLS that hands Host on
        ({"x-ich": "1", "origin": "https://127.0.0.1"}, 403),
        ({"x-ich": "1", "origin": "http://127.0.0.1:9999"}, 403),
        ({"x-ich": "1", "origin": ""}, 403),
        ({"x-ich": "1", "sec-fetch-site": "cross-site"}, 403),
        ({"x-ich": "1", "sec-fetch-site": "same-site"}, 403),
    ],
)
def test_changes_come_from_programs_and_from_our_own_pages_alone(method, headers, answer):
    assert client().request(method, "/api/studies", headers=headers).status_code == answer


def test_a_form_of_another_site_changes_nothing(tmp_path, known):
    """With the cookie of somebody who is logged in, too."""
    with web_server.served(tmp_path / "spool", known, token=TOKEN) as made:
        made.client.cookies.set(guard.COOKIE, guard.cookie_value(TOKEN))
        files = form({"a": slice_bytes("1.2.3.4")})
        for headers in ({"origin": "http://evil.example"}, {}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}):
            assert made.client.post("/api/studies", files=files, headers=headers).status_code == 403
        assert made.spool.entries() == []
        assert made.client.post("/api/studies", files=files, headers=OWN).status_code == 201


@pytest.mark.parametrize(
    ("headers", "answer"),
    [
        ({"authorization": f"Bearer {TOKEN}"}, 200),
        ({"authorization": f"bearer  {TOKEN} "}, 200),
        ({"cookie": f"ich={guard.cookie_value(TOKEN)}"}, 200),
        ({"cookie": f"other=1; ich={guard.cookie_value(TOKEN)}"}, 200),
        ({}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer "}, 401),
        ({"authorization": f"Bearer {TOKEN[:-1]}"}, 401),
        ({"authorization": f"Bearer {TOKEN}x"}, 401),
        ({"authorization": f"Basic {TOKEN}"}, 401),
        ({"authorization": "Bearer \xff\xfe"}, 401),
        ({"cookie": f"ich={TOKEN}"}, 401),  # the token itself is no cookie
        ({"cookie": "ich="}, 401),
        ({"cookie": "ich"}, 401),
        ({"cookie": 'ich="\\777'}, 401),
        ({"x-ich": "1"}, 401),
    ],
)
@pytest.mark.parametrize("path", ["/", "/api/studies", "/api", "/studies/x", "/loginx"])
def test_the_token(headers, answer, path):
    given = {name: value.encode("latin-1") for name, value in headers.items()}
    found = client(TOKEN).get(path, headers=given)
    assert found.status_code == answer
    if answer == 401:
        assert found.headers["www-authenticate"] == "Bearer"
        assert TOKEN not in found.text


def test_secrets_are_compared_in_constant_time(monkeypatch):
    asked = []
    monkeypatch.setattr(hmac, "compare_digest", lambda one, other: asked.append((one, other)) or False)
    assert client(TOKEN).get("/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 401
    assert client(TOKEN).get("/", headers={"cookie": f"ich={guard.cookie_value(TOKEN)}"}).status_code == 401
    cookie = guard.cookie_value(TOKEN).encode()
    assert asked == [(TOKEN.encode(), TOKEN.encode()), (cookie, cookie)]


def test_what_needs_no_token():
    for path in ("/login", "/static/serve.css"):
        assert client(TOKEN).get(path).status_code == 200


def test_a_person_is_led_to_the_page_that_asks_for_the_token():
    found = client(TOKEN).get("/studies/x", headers={"accept": "text/html,*/*"})
    assert (found.status_code, found.headers["location"]) == (303, "/login")


def test_logging_in(tmp_path, known):
    with web_server.served(tmp_path / "spool", known, token=TOKEN) as made:
        visitor = made.client
        assert visitor.get("/api/studies").status_code == 401
        page = visitor.get("/login")
        # with no-referrer a browser would send "Origin: null" with the form
        assert page.headers["referrer-policy"] == "same-origin"
        wrong = visitor.post("/login", data={"token": "another-token-of-some-length"})
        assert (wrong.status_code, wrong.headers.get("set-cookie")) == (401, None)
        assert "That is not the token" in wrong.text
        evil = visitor.post("/login", data={"token": TOKEN}, headers={"origin": "http://evil.example"})
        assert evil.status_code == 403
        assert visitor.post("/login", data={"token": "x" * 5000}).status_code == 413
        right = visitor.post("/login", data={"token": TOKEN}, follow_redirects=False)
        assert (right.status_code, right.headers["location"]) == (303, "/")
        cookie = right.headers["set-cookie"]
        assert TOKEN not in cookie
        assert {"HttpOnly", "SameSite=strict", "Path=/"} == set(cookie.split("; ")[1:])
        assert visitor.get("/api/studies").status_code == 200
        behind = {"origin": f"https://{visitor.base_url.netloc.decode()}"}  # a proxy with TLS
        secure = visitor.post("/login", data={"token": TOKEN}, headers=behind, follow_redirects=False)
        assert "Secure" in secure.headers["set-cookie"].split("; ")


def test_without_a_token_there_is_nothing_to_log_in_to(server):
    assert server.client.post("/login", data={"token": ""}).status_code == 401


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/", {}),
        ("GET", "/static/serve.css", {}),
        ("GET", "/api/studies", {}),
        ("GET", "/api/studies", {"host": "evil.example"}),
        ("POST", "/api/studies", {}),
        ("PUT", "/api/studies", OWN),
        ("GET", "/nowhere", {}),
        ("GET", "/nowhere", {"accept": "text/html"}),
    ],
)
def test_every_answer_bears_strict_headers(tmp_path, known, method, path, headers):
    with web_server.served(tmp_path / "spool", known, hosts=server.hosts("127.0.0.1")) as made:
        found = made.client.request(method, path, headers=headers)
        assert {name: found.headers.get(name) for name in STRICT} == STRICT
        assert "access-control-allow-origin" not in found.headers
        assert "server" not in found.headers
