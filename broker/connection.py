"""What comes over a connection before it is a request that a route can answer: so many bytes of head, in so much time.
Whatever else comes is told so, as a problem like every other, and let go. uvicorn itself sets no such limits."""

import asyncio
from typing import Any

import structlog
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from broker import problems
from custody.errors import CustodyError
from custody.ids import new_id

log = structlog.get_logger()

HEAD_BYTES = 64 * 1024
"""Of a request's line and headers; also of trailers, and of whatever a chunked body has between its bytes."""

LINGER_SECONDS = 2.0
"""Closing a connection at once, with bytes on their way in, would take the answer back before it is read."""


class Connection(HttpToolsProtocol):
    """One connection of a client, from its first byte to its last."""

    head_seconds: float
    """From the beginning of the connection, or the first byte after an answer, to the end of the request's head."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._unseen_bytes = 0
        self._refusal: CustodyError | None = None
        self._ended = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_there()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if self._head_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_head()
        self._unseen_bytes += len(data)
        super().data_received(data)
        if self._unseen_bytes > HEAD_BYTES and not self._ended:
            self._refuse(_too_large())

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        # A trailer is no header (RFC 9110, 6.5.1): it comes when the request was judged already.
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._in_head = False
        if len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers) > HEAD_BYTES:
            self._refusal = _too_large()
            raise self._refusal
        self._unseen_bytes = 0
        super().on_headers_complete()
        self._head_is_there()

    def on_body(self, body: bytes) -> None:
        self._unseen_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._unseen_bytes = 0
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for all that its parser cannot read."""
        self._refuse(self._refusal or CustodyError("malformed_request", "What came is no HTTP/1.1 request."))

    def end_with_this_answer(self) -> None:
        """Of a request that waits for its answer: it says that the connection ends."""
        if self.cycle is not None and not self.cycle.response_started:
            self.cycle.keep_alive = False

    def _await_head(self) -> None:
        self._head_timer = self.loop.call_later(self.head_seconds, self._head_is_late)

    def _head_is_there(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._unseen_bytes == 0:
            self._close()  # it never began one
        else:
            self._refuse(CustodyError("request_timeout", "The head of the request did not come in time."))

    def _refuse(self, error: CustodyError) -> None:
        """Answers, unless another answer is under way, and ends the connection and the request that runs on it."""
        self._ended = True
        self._head_is_there()
        answering = self.cycle is not None and not self.cycle.response_complete
        if answering:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.transport.is_closing():
            return
        if answering and self.cycle.response_started:
            self._close()
            return
        request_id = str(new_id())
        response = problems.answer_to(request_id, error)
        response.headers["X-Request-ID"] = request_id
        response.headers["Connection"] = "close"
        lines = b"".join(b"%s: %s\r\n" % header for header in response.raw_headers)
        self.transport.write(STATUS_LINE[response.status_code] + lines + b"\r\n" + response.body)
        log.info("connection_refused", code=error.code, request_id=request_id)
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.flow.resume_reading()
        self.loop.call_later(LINGER_SECONDS, self._close)

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def _too_large() -> CustodyError:
    return CustodyError("request_head_too_large", f"The head of a request may have {HEAD_BYTES} bytes at most.")
