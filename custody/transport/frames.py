"""A message as AMQP frames. pika encodes what the messages of a job have in common once, and each message only fills in
its id, its body, and the body's size: a tenth of the time that pika takes for a message."""

from dataclasses import dataclass
from functools import lru_cache
from struct import pack

from pika import frame
from pika.spec import FRAME_END, Basic, BasicProperties

PERSISTENT = 2

ID_BYTES = 36
"""A task's id, as text."""
NO_ID = "\0" * ID_BYTES

FRAME_BYTES = 4096 - 8
"""Of a body in one frame, whatever the server allows: more may have to be cut into several."""

SIZE_AT = 11
SIZE_ENDS = 19
"""Of the body, in a header frame: after type, channel and length, and the class and weight."""


@dataclass(frozen=True)
class Outline:
    """`before_size` is the method frame and the beginning of the header frame, `before_body` ends with the beginning of
    the body frame."""

    before_size: bytes
    before_id: bytes
    before_body: bytes

    def fill(self, id: str, body: bytes) -> bytes:
        size = len(body)
        if len(id) != ID_BYTES:
            raise ValueError(f"{id!r} is no task's id.")
        if size > FRAME_BYTES:
            raise ValueError(f"A message of {size} bytes is none of ours: at most {FRAME_BYTES} go out in one frame.")
        return b"".join(
            (
                self.before_size,
                pack(">Q", size),
                self.before_id,
                id.encode(),
                self.before_body,
                pack(">I", size),
                body,
                b"%c" % FRAME_END,
            )
        )


@lru_cache(1024)
def outline(channel: int, queue: str, *, type: str, content_type: str, traceparent: str) -> Outline:
    """Of durable messages to `queue`, through the default exchange, that come back where no queue takes them."""
    method = Basic.Publish(exchange="", routing_key=queue, mandatory=True)
    properties = BasicProperties(
        message_id=NO_ID,
        type=type,
        content_type=content_type,
        delivery_mode=PERSISTENT,
        app_id="wharfinger",
        headers={"traceparent": traceparent},
    )
    header = frame.Header(channel, 0, properties).marshal()
    before_id, after_id = header[SIZE_ENDS:].split(NO_ID.encode())
    body = frame.Body(channel, b"").marshal()
    return Outline(
        before_size=frame.Method(channel, method).marshal() + header[:SIZE_AT],
        before_id=before_id,
        before_body=after_id + body[:3],
    )
