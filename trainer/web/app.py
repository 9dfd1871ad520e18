"""The application: routes behind the guard, and what runs beside them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from trainer.web import routes
from trainer.web.guard import Guard
from trainer.web.limits import THREADS, Limits
from trainer.web.model import Model
from trainer.web.refusal import Refusal
from trainer.web.routes import Routes
from trainer.web.shelf import Shelf
from trainer.worklist.spool import Spool

EXPIRE_EVERY_S = 60.0


def application(spooled: Spool, model: Model, limits: Limits, token: str = "", hosts: Collection[str] = ()) -> ASGIApp:
    """The web application of a spool whose uploads `model` reads.

    `token`: that every request needs, "" for none; `hosts`: names by which it may be asked, none for any.
    """
    shelf = Shelf(spooled, model.about, limits)
    shelf.take_up()

    @contextlib.asynccontextmanager
    async def beside(app: Starlette) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
        task = asyncio.create_task(routes.expiring(shelf, EXPIRE_EVERY_S))
        try:
            yield
        finally:
            task.cancel()

    handlers = {Refusal: routes.refused, HTTPException: routes.unknown, Exception: routes.failed}
    routing = Routes(spooled, shelf, model, limits, token).all()
    # not as middleware, which the answer to a fault of ours would not pass
    return Guard(Starlette(routes=routing, exception_handlers=handlers, lifespan=beside), token, hosts)
