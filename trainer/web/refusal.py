"""A request that is refused: a status, and one line that says why."""

from __future__ import annotations

from starlette.responses import JSONResponse


class Refusal(Exception):
    """What a client is told; `retry_s`: after how many seconds it may ask again."""

    def __init__(self, status: int, text: str, retry_s: int | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.retry_s = status, text, retry_s

    def answer(self) -> JSONResponse:
        """The error of the contract: `{"error": "one line"}`."""
        headers = {"retry-after": str(self.retry_s)} if self.retry_s else None
        return JSONResponse({"error": self.text}, self.status, headers)
