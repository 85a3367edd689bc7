"""Detections drawn on their picture: boxes, masks, keypoints, turned boxes and classes, one colour a class."""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from os import PathLike
from typing import TypeAlias

from PIL import Image, ImageDraw, ImageFont, ImageOps

from custody.wire import Box, Detection, Keypoint, Point, Probability
from wharfinger.errors import DrawingError

with suppress(ImportError):  # HEIC, where its decoder is installed.
    from pillow_heif import register_heif_opener

    register_heif_opener()

Colour: TypeAlias = tuple[int, int, int]
Rectangle: TypeAlias = tuple[int, int, int, int]
Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

_LARGEST_TEXT = 48
_SMALLEST_TEXT = 9
_SHADE = 96
"""Of 255: how much of a mask's colour lies on the picture."""
_PANEL = (16, 18, 22, 190)
_WHITE = (255, 255, 255)
_SEEN = 0.5
"""Confidence below which a keypoint is a guess at what is hidden."""
_BODY = (
    *((0, 1), (0, 2), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10)),
    *((5, 11), (6, 12), (11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
)
"""What is joined where an object has 17 keypoints: COCO's person, from the nose to the ankles."""
_COLOURS: tuple[Colour, ...] = tuple(
    (value >> 16, value >> 8 & 0xFF, value & 0xFF)
    for value in (
        *(0xE6194B, 0x2FA84F, 0x3D5BE0, 0xF58231, 0x8E24AA, 0x00B8C4, 0xF032E6, 0x8BC400, 0xFFD60A, 0x0077C8),
        *(0xC75B12, 0xFF7EB6, 0x3B8686, 0xA98BFF, 0x8A8A00, 0xFF4F2E, 0x4ADE9C, 0x5A189A, 0xB0003A, 0x7FC8FF),
    )
)


def save_annotated(source: str | PathLike[str], detections: Sequence[Detection], target: str | PathLike[str]) -> None:
    """Write the picture at `source` with its detections to `target`, in the format of target's suffix.

    Raises DrawingError where the one cannot be read or the other cannot be written.
    """
    try:
        with Image.open(source) as picture:
            annotated = annotate(picture, detections)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DrawingError(f"cannot read {source} as a picture to draw on: {error}") from error
    try:
        annotated.save(target, quality=92)
    except (OSError, ValueError) as error:
        raise DrawingError(f"cannot write {target}: {error}") from error


def annotate(picture: Image.Image, detections: Sequence[Detection]) -> Image.Image:
    """A copy in RGB, upright as its EXIF orientation says, with the detections drawn on it. Labels stay inside the
    picture, and where there is room off each other; a picture too small for text gets the shapes alone. What a
    classifier says stands in a corner."""
    canvas = _in_rgb(ImageOps.exif_transpose(picture))
    draw = ImageDraw.Draw(canvas)
    size = min(_LARGEST_TEXT, max(12, round(sum(canvas.size) / 95)))
    width = max(1, round(size / 5))
    by_confidence = sorted(detections, key=lambda each: each.confidence)
    for detection in by_confidence:
        _outline(canvas, draw, detection, width)
    for detection in by_confidence:
        _join(draw, detection.keypoints or (), colour_of(detection.class_id), width)
    taken: list[Rectangle] = []
    # The surest label is placed first: it gets the place that it wants.
    for detection in reversed(by_confidence):
        if detection.probabilities is not None:
            _list(canvas, detection.probabilities, size)
            continue
        label = f"{_on_one_line(detection.label)} {detection.confidence:.2f}"
        for font in _fonts(size):
            plate = _plate(label, font, detection.box, canvas.size, taken)
            if plate is not None:
                taken.append(plate)
                _write(draw, label, font, plate, colour_of(detection.class_id))
                break
    return canvas


def colour_of(class_id: int) -> Colour:
    """The same class has the same colour in every picture; 20 colours, then they repeat."""
    return _COLOURS[class_id % len(_COLOURS)]


def _in_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16 bits, which a plain conversion would cut off at 255 instead of scaling.
        picture = picture.convert("I").point(lambda value: value / 256).convert("L")
    return picture.convert("RGB")


def _outline(canvas: Image.Image, draw: ImageDraw.ImageDraw, detection: Detection, width: int) -> None:
    """The closest line around the object that is known; a classified picture has none."""
    colour = colour_of(detection.class_id)
    if detection.probabilities is not None:
        return
    if detection.rotated_box is not None:
        _close(draw, detection.rotated_box.corners, colour, width)
    elif detection.mask is not None:
        shade = ImageDraw.Draw(canvas, "RGBA")
        for polygon in detection.mask.polygons:
            shade.polygon(polygon, fill=(*colour, _SHADE))
            _close(draw, polygon, colour, max(1, width // 2))
        draw.rectangle(_drawable(detection.box, canvas.size), outline=colour, width=max(1, width // 4))
    else:
        thickness = max(1, width // 2) if detection.keypoints else width
        draw.rectangle(_drawable(detection.box, canvas.size), outline=colour, width=thickness)


def _close(draw: ImageDraw.ImageDraw, corners: Sequence[Point], colour: Colour, width: int) -> None:
    # Past the first corner again, so that it is as round as the others.
    draw.line([*corners, *corners[:2]], fill=colour, width=width, joint="curve")


def _join(draw: ImageDraw.ImageDraw, points: Sequence[Keypoint], colour: Colour, width: int) -> None:
    """Keypoints that are seen, a body's with its bones, in a white rim that shows on any ground."""
    seen = {
        number: (point.x, point.y)
        for number, point in enumerate(points)
        if point.confidence is None or point.confidence >= _SEEN
    }
    bones = [(one, other) for one, other in _BODY if len(points) == 17 and one in seen and other in seen]
    rim = max(1, width // 3)
    for ink, more in ((_WHITE, rim), (colour, 0)):
        for one, other in bones:
            draw.line([seen[one], seen[other]], fill=ink, width=width + 2 * more)
        for place in seen.values():
            draw.circle(place, width * 1.2 + more, fill=ink)


def _list(canvas: Image.Image, classes: Sequence[Probability], size: int) -> None:
    """The classes in the upper left corner, a bar below each; the likeliest alone where there is no room for all."""
    for shown in (classes, classes[:1]):
        for font in _fonts(size):
            rows = [(_on_one_line(each.label), f"{each.confidence:.2f}") for each in shown]
            padding, bar = _padding(font), max(2, _padding(font) // 2)
            texts = [_extent(f"{label}  {number}", font) for label, number in rows]
            width = max(max(text[0] for text in texts), 8 * texts[0][1]) + 4 * padding
            step = texts[0][1] + bar + 3 * padding
            if width <= canvas.width and step * len(rows) + padding <= canvas.height:
                _write_list(canvas, shown, rows, font, (width, step, bar))
                return


def _write_list(
    canvas: Image.Image,
    classes: Sequence[Probability],
    rows: Sequence[tuple[str, str]],
    font: Font,
    measures: tuple[int, int, int],
) -> None:
    """`measures`: the list's width, the height of a row and of its bar."""
    (width, step, bar), padding = measures, _padding(font)
    draw = ImageDraw.Draw(canvas, "RGBA")
    draw.rectangle((0, 0, width - 1, step * len(rows) + padding - 1), fill=_PANEL)
    left, right = 2 * padding, width - 2 * padding
    for row, (each, (label, number)) in enumerate(zip(classes, rows, strict=True)):
        top = row * step + 2 * padding
        baseline = top - font.getbbox("Ag")[1]
        draw.text((left, baseline), label, fill=_WHITE, font=font)
        draw.text((right - font.getlength(number), baseline), number, fill=_WHITE, font=font)
        line = top + step - 2 * padding - bar
        draw.rectangle((left, line, right, line + bar - 1), fill=(*_WHITE, 48))
        draw.rectangle(
            (left, line, left + (right - left) * each.confidence, line + bar - 1), fill=colour_of(each.class_id)
        )


def _on_one_line(label: str) -> str:
    return " ".join(label.split())


def _drawable(box: Box, size: tuple[int, int]) -> Rectangle:
    """The box in whole pixels of the picture, its corners in order."""
    x1, x2 = (min(max(round(x), 0), size[0] - 1) for x in (box.x1, box.x2))
    y1, y2 = (min(max(round(y), 0), size[1] - 1) for y in (box.y1, box.y2))
    return min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)


def _fonts(size: int) -> Iterator[Font]:
    """The wanted size, then smaller ones down to the smallest that can be read."""
    while size > _SMALLEST_TEXT:
        yield ImageFont.load_default(size)
        size = max(_SMALLEST_TEXT, round(size * 0.8))
    yield ImageFont.load_default(_SMALLEST_TEXT)


def _plate(label: str, font: Font, box: Box, size: tuple[int, int], taken: Sequence[Rectangle]) -> Rectangle | None:
    """Where the label goes: above the box, in its corners, below it; the first place that is free, or else the first
    that the picture has room for. None where the picture cannot hold a label of this size."""
    text_width, text_height = _extent(label, font)
    width, height = text_width + 2 * _padding(font), text_height + 2 * _padding(font)
    if width > size[0] or height > size[1]:
        return None
    x1, y1, x2, y2 = _drawable(box, size)
    x_left, x_right = min(x1, size[0] - width), max(0, x2 - width + 1)
    corners = [(x_left, y1 - height), (x_right, y1 - height), (x_left, y1), (x_right, y1), (x_left, y2 - height + 1)]
    inside = [(x, y) for x, y in [*corners, (x_left, y2 + 1)] if 0 <= y <= size[1] - height]
    plates = [(x, y, x + width - 1, y + height - 1) for x, y in [*inside, (x_left, max(0, y2 - height))]]
    return next((plate for plate in plates if not any(_overlap(plate, other) for other in taken)), plates[0])


def _write(draw: ImageDraw.ImageDraw, label: str, font: Font, plate: Rectangle, colour: Colour) -> None:
    draw.rectangle(plate, fill=colour)
    ink = (0, 0, 0) if _luminance(colour) > 0.3 else _WHITE
    draw.text(
        (plate[0] + _padding(font), plate[1] + _padding(font) - font.getbbox("Ag")[1]), label, fill=ink, font=font
    )


def _extent(label: str, font: Font) -> tuple[int, int]:
    """Width of this label, height of every label, in pixels."""
    _, top, _, bottom = font.getbbox("Ag")
    return math.ceil(font.getlength(label)), math.ceil(bottom - top)


def _padding(font: Font) -> int:
    return max(1, _extent("", font)[1] // 3)


def _overlap(one: Rectangle, other: Rectangle) -> bool:
    return one[0] <= other[2] and other[0] <= one[2] and one[1] <= other[3] and other[1] <= one[3]


def _luminance(colour: Colour) -> float:
    """Relative luminance (WCAG 2.2), 0 to 1."""
    red, green, blue = (math.pow(each / 255, 2.2) for each in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
