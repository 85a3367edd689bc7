"""The frames of a message, byte for byte those that pika makes."""

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pika import frame
from pika.spec import Basic, BasicProperties

from custody.transport.frames import FRAME_BYTES, outline

NAMES = st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1, max_size=100)


@given(
    channel=st.integers(1, 65535),
    queue=NAMES,
    ids=st.lists(st.uuids(), min_size=1, max_size=3),
    type=NAMES,
    traceparent=NAMES,
    body=st.binary(max_size=FRAME_BYTES),
)
def test_they_are_those_that_pika_makes(
    channel: int, queue: str, ids: list[UUID], type: str, traceparent: str, body: bytes
) -> None:
    shared = outline(channel, queue, type=type, content_type="application/json", traceparent=traceparent)
    for number in ids:
        properties = BasicProperties(
            message_id=str(number),
            type=type,
            content_type="application/json",
            delivery_mode=2,
            app_id="wharfinger",
            headers={"traceparent": traceparent},
        )
        frames = (
            frame.Method(channel, Basic.Publish(exchange="", routing_key=queue, mandatory=True)),
            frame.Header(channel, len(body), properties),
            frame.Body(channel, body),
        )
        assert shared.fill(str(number), body) == b"".join(each.marshal() for each in frames)


def test_what_would_be_cut_into_several_frames_or_names_no_task_is_refused() -> None:
    shared = outline(1, "a queue", type="", content_type="", traceparent="")
    with pytest.raises(ValueError, match="4089 bytes"):
        shared.fill(str(UUID(int=1)), b"x" * (FRAME_BYTES + 1))
    with pytest.raises(ValueError, match="'1' is no task's id"):
        shared.fill("1", b"{}")
