"""The answers: pages, the JSON of the API, octets of slices and maps."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import time
import traceback
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, quote

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from ich_tfrecords.views import html_page
from trainer.prediction.folder import PredictFolder
from trainer.prediction.map_on_slice import MapOnSlice
from trainer.shell.problems import TrainerError, WrongUse
from trainer.web import archives, guard, openapi, uploads
from trainer.web.limits import (
    MOST_KEPT,
    MOST_MAPS,
    MOST_RECEIVING,
    MOST_WAITING,
    RETRY_S,
    Limits,
)
from trainer.web.model import Model
from trainer.web.refusal import Refusal
from trainer.web.shelf import Shelf
from trainer.worklist import spool
from trainer.worklist.spool import Entry, Spool

TEMPLATES = "trainer.web"
MOST_LOGIN_BYTES = 4096
MAP_LABEL = "x-ich-label"  # what the map speaks for, percent-encoded
_OCTETS = "application/octet-stream"


class Routes:
    """Every answer of one server. `token`: "" where none is asked for."""

    def __init__(self, spooled: Spool, shelf: Shelf, model: Model, limits: Limits, token: str) -> None:
        self._spool, self._shelf, self._model, self._limits, self._token = spooled, shelf, model, limits, token
        self._receiving = self._mapping = 0

    def all(self) -> Sequence[BaseRoute]:
        """The routes, each by its method."""
        study, one = "/api/studies/{upload}", "/api/studies/{upload}/slices/{n:int}"
        return [
            Route("/", self._list_page),
            Route("/studies/{upload}", self._study_page),
            Route("/api", self._api_page),
            Route("/api/openapi.json", self._openapi),
            Route("/api/studies", self._list),
            Route("/api/studies", self._take, methods=["POST"]),
            Route(study, self._one),
            Route(study, self._remove, methods=["DELETE"]),
            Route(one, self._slice),
            Route(f"{one}/map", self._map),
            Route(f"{study}/triage.html", self._triage),
            Route(guard.LOGIN, self._login_page),
            Route(guard.LOGIN, self._login, methods=["POST"]),
            Mount("/static", StaticFiles(directory=Path(__file__).parent / "static")),
        ]

    # --- pages ---

    def _list_page(self, request: Request) -> Response:
        most = self._limits.most_upload_bytes
        title = "Head CT, most urgent first"
        model, digest = self._model.about.network, self._model.digest
        return _page("list.html", title=title, most_bytes=most, model=model, digest=digest, notes=self._notes())

    def _study_page(self, request: Request) -> Response:
        entry, state = self._shelf.entry(request.path_params["upload"])
        return _page("study.html", title=state.facts["name"], id=entry.id, notes=self._notes())

    def _notes(self) -> list[str]:
        """What is to be known of the model's probabilities, as `triage.html` says it."""
        return self._model.about.calibration.told()

    def _api_page(self, request: Request) -> Response:
        return _page("api.html", title="For programs", operations=openapi.operations(), errors=openapi.ERRORS)

    def _login_page(self, request: Request) -> Response:
        return _login_page()

    async def _login(self, request: Request) -> Response:
        """Give the cookie to a browser that knows the token."""
        body = b""
        async for piece in uploads.paced(request):
            body += piece
            if len(body) > MOST_LOGIN_BYTES:
                raise Refusal(413, "no token is as long as this")
        given = parse_qs(body.decode("ascii", "replace")).get("token", [""])[0]
        if not self._token or not guard.same(given.strip(), self._token):
            return _login_page("That is not the token of this server.", 401)
        answer = RedirectResponse("/", 303)
        secure = request.headers.get("origin", "").lower().startswith("https:")  # by a proxy with TLS in front
        value = guard.cookie_value(self._token)
        answer.set_cookie(guard.COOKIE, value, httponly=True, samesite="strict", secure=secure)
        return answer

    # --- the API ---

    def _openapi(self, request: Request) -> Response:
        return JSONResponse(openapi.document())

    def _list(self, request: Request) -> Response:
        return JSONResponse({"studies": self._shelf.everything(), "most_upload_bytes": self._limits.most_upload_bytes})

    def _one(self, request: Request) -> Response:
        return JSONResponse(self._shelf.one(request.path_params["upload"]))

    def _remove(self, request: Request) -> Response:
        self._shelf.remove(request.path_params["upload"])
        return Response(status_code=204)

    def _slice(self, request: Request) -> Response:
        upload = request.path_params["upload"]
        opened = self._shelf.opened(upload)
        return Response(self._shelf.slices.octets(upload, opened, request.path_params["n"]), media_type=_OCTETS)

    async def _map(self, request: Request) -> Response:
        """The model is asked for one map at a time; a few may wait."""
        if self._mapping >= MOST_MAPS:
            raise Refusal(429, "the model is busy with other maps; ask again", RETRY_S)
        self._mapping += 1
        try:
            found = await run_in_threadpool(self._mapped, request.path_params["upload"], request.path_params["n"])
        finally:
            self._mapping -= 1
        return Response(found.strength.tobytes(), media_type=_OCTETS, headers={MAP_LABEL: quote(found.label)})

    def _mapped(self, upload: str, n: int) -> MapOnSlice:
        entry, _ = self._shelf.entry(upload)
        row = self._shelf.opened(upload).row(n)
        try:
            return self._model.process.map(entry, row.input, row.stored)
        except WrongUse as error:
            raise Refusal(404, f"no map of this slice: {self._shelf.told(entry, str(error))}") from error
        except TrainerError as error:
            raise Refusal(503, self._shelf.told(entry, str(error)), RETRY_S) from error

    def _triage(self, request: Request) -> Response:
        entry, state = self._shelf.entry(request.path_params["upload"])
        if state.state != spool.DONE:
            raise Refusal(404, f"this study is {state.state}; its page is there once it is done")
        return FileResponse(
            PredictFolder(entry.result).page,
            media_type="text/html",
            headers={"content-security-policy": guard.PAGE_POLICY},
        )

    async def _take(self, request: Request) -> Response:
        """Take an upload in, and answer once it lies whole on the disk and waits."""
        if self._receiving >= MOST_RECEIVING:
            raise Refusal(503, f"{MOST_RECEIVING} uploads arrive already; send this one again later", RETRY_S)
        self._receiving += 1
        try:
            await run_in_threadpool(self._require_room)
            entry = await self._received(request)
        finally:
            self._receiving -= 1
        self._model.process.wake()
        url = f"/studies/{entry.id}"
        return JSONResponse({"id": entry.id, "url": url}, 201, {"location": f"/api/studies/{entry.id}"})

    async def _received(self, request: Request) -> Entry:
        entry = self._spool.entry(uuid.uuid4().hex)
        try:
            await run_in_threadpool(entry.begin, name="", received=time.time())
            names = await uploads.receive(request, entry.files, self._limits.most_upload_bytes)
            await run_in_threadpool(self._settle, entry, names)
        except BaseException as error:
            entry.remove()  # nobody was told that it came
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise uploads.no_room() from error
            raise
        return entry

    def _require_room(self) -> None:
        if self._model.process.fault:
            raise Refusal(503, f"the model cannot be had any more: {self._model.process.fault}; start the server again")
        waiting, kept = self._shelf.counts()
        if waiting >= MOST_WAITING:
            raise Refusal(429, f"{waiting} studies wait for the model already; send this one again later", RETRY_S)
        if kept >= MOST_KEPT:
            raise Refusal(429, f"{kept} studies are kept already; delete some, or send this one later", RETRY_S)

    def _settle(self, entry: Entry, names: list[str]) -> None:
        archives.require_readable(entry, names, self._limits.most_upload_bytes)
        uploads.write_names(entry.path, names)
        entry.turn(spool.WAITING, name=uploads.title(names))


def _page(template: str, status: int = 200, **values: Any) -> Response:
    return HTMLResponse(html_page.page(template, TEMPLATES, **values), status)


def _login_page(problem: str = "", status: int = 200) -> Response:
    found = _page("login.html", status, title="Who is there?", problem=problem)
    found.headers["referrer-policy"] = "same-origin"  # without one a browser calls the origin of a form null
    return found


async def refused(request: Request, refusal: Exception) -> Response:
    """A refusal as the contract says it; a person who opens a page gets one."""
    assert isinstance(refusal, Refusal)
    asks_for_page = request.method == "GET" and not request.url.path.startswith("/api/")
    if asks_for_page and "text/html" in request.headers.get("accept", ""):
        return _page("refused.html", refusal.status, title="Not to be had", text=refusal.text)
    return refusal.answer()


async def unknown(request: Request, error: Exception) -> Response:
    """What no route knows."""
    assert isinstance(error, HTTPException)
    words = {404: "there is nothing at this address", 405: "this address does not take that method"}
    answer = await refused(request, Refusal(error.status_code, words.get(error.status_code, error.detail)))
    answer.headers.update(error.headers or {})  # 405 says which methods it takes
    return answer


async def failed(request: Request, error: Exception) -> Response:
    """A fault of ours: told where the server runs, without the address, and the server goes on."""
    with contextlib.suppress(OSError):  # nobody reads what it prints any more
        traceback.print_exception(error)
    return Refusal(500, "this server made a mistake, and goes on; its own output says which").answer()


async def expiring(shelf: Shelf, every_s: float) -> None:
    """Take away again and again what was kept long enough."""
    while True:
        try:
            await run_in_threadpool(shelf.expire)
        except OSError as error:
            print(f"serve: studies that expired could not be deleted: {error.strerror}", flush=True)
        await asyncio.sleep(every_s)
