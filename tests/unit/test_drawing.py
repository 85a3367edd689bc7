"""Annotated pictures, looked at pixel by pixel. The canvas is grey, so that every drawn pixel shows."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from custody.wire import Box, Detection
from wharfinger import DrawingError
from wharfinger.drawing import annotate, colour_of, save_annotated

GREY = (128, 128, 128)
WHITE = (255, 255, 255)
# A class whose labels are written in white.
PERSON = 0


def detection(
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    *,
    label: str = "person",
    class_id: int = PERSON,
    confidence: float = 0.9,
) -> Detection:
    return Detection(class_id=class_id, label=label, confidence=confidence, box=Box(x1=x1, y1=y1, x2=x2, y2=y2))


def canvas(width: int = 400, height: int = 300) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def count(picture: Image.Image, matches: Callable[[tuple[int, int, int]], bool]) -> int:
    return sum(number for number, colour in picture.getcolors(1 << 24) or [] if matches(colour))


def white_text(picture: Image.Image) -> int:
    """Pixels, those of softened edges included as far as they are bright."""
    return count(picture, lambda colour: min(colour) > 190)


def black_text(picture: Image.Image) -> int:
    return count(picture, lambda colour: max(colour) < 60)


def test_the_box_is_outlined_in_the_colour_of_its_class() -> None:
    drawn = annotate(canvas(), [detection(100, 80, 300, 220)])
    for corner in [(100, 80), (300, 80), (100, 220), (300, 220), (200, 80), (100, 150), (300, 150), (200, 220)]:
        assert drawn.getpixel(corner) == colour_of(PERSON)
    assert drawn.getpixel((200, 150)) == GREY
    assert drawn.getpixel((305, 150)) == drawn.getpixel((200, 225)) == GREY


def test_the_label_stands_on_a_filled_plate_above_the_box() -> None:
    drawn = annotate(canvas(), [detection(100, 80, 300, 220)])
    above = drawn.crop((0, 0, 400, 80))
    assert count(above, lambda colour: colour == colour_of(PERSON)) > 500
    assert white_text(above) > 50
    assert white_text(drawn.crop((0, 80, 400, 300))) == 0


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 399, 299),
        (0, 0, 30, 30),
        (390, 0, 399, 10),
        (390, 290, 399, 299),
        (0, 295, 5, 299),
        (380, 100, 399, 200),
        (150, 5, 250, 299),
        (-50, -50, 500, 500),
    ],
)
def test_the_whole_label_stays_inside_the_picture(box: tuple[float, float, float, float]) -> None:
    free = white_text(annotate(canvas(), [detection(100, 80, 300, 220)]))
    assert white_text(annotate(canvas(), [detection(*box)])) == free > 50


def test_labels_of_boxes_at_one_place_do_not_cover_each_other() -> None:
    one = white_text(annotate(canvas(), [detection(100, 80, 300, 220)]))
    three = [detection(100, 80, 300, 220, confidence=each) for each in (0.9, 0.9, 0.9)]
    assert white_text(annotate(canvas(), three)) == 3 * one


def test_text_grows_with_the_picture() -> None:
    small = annotate(canvas(400, 300), [detection(100, 80, 300, 220)])
    large = annotate(canvas(4000, 3000), [detection(1000, 800, 3000, 2200)])
    assert white_text(large) > 5 * white_text(small)


def test_dark_plates_have_white_text_and_bright_ones_black() -> None:
    bright = [each for each in range(20) if min(colour_of(each)[:2]) > 180]
    assert bright
    for class_id in bright:
        drawn = annotate(canvas(), [detection(100, 80, 300, 220, class_id=class_id)])
        assert black_text(drawn) > 50
        assert white_text(drawn) == 0


def test_a_class_has_one_colour_and_its_neighbours_others() -> None:
    assert colour_of(3) == colour_of(3)
    assert len({colour_of(each) for each in range(20)}) == 20
    colour_of(10_000)


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_boxes_are_drawn_on_the_upright_picture(orientation: int, tmp_path: Path) -> None:
    upright = canvas(60, 100)
    upright.putpixel((0, 0), WHITE)
    back = {1: None, 3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    turn = back[orientation]
    stored = upright if turn is None else upright.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "turned.png", exif=exif)
    with Image.open(tmp_path / "turned.png") as picture:
        drawn = annotate(picture, [detection(20, 60, 50, 90, label="a very long label that does not fit")])
    assert drawn.size == (60, 100)
    assert drawn.getpixel((0, 0)) == WHITE
    assert drawn.getpixel((20, 60)) == drawn.getpixel((50, 90)) == colour_of(PERSON)
    assert drawn.getpixel((10, 30)) == GREY
    assert drawn.getexif().get(0x0112, 1) == 1


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"])
def test_every_mode_can_be_drawn_on_and_keeps_its_brightness(mode: str) -> None:
    sixteen_bit = mode in ("I", "I;16")
    picture = Image.new("I", (80, 60), 0x8000) if sixteen_bit else canvas(80, 60)
    picture = picture.convert(mode, palette=Image.Palette.ADAPTIVE)
    drawn = annotate(picture, [detection(20, 20, 60, 50, label="x")])
    assert drawn.mode == "RGB"
    assert drawn.size == (80, 60)
    assert drawn.getpixel((20, 40)) == colour_of(PERSON)
    if mode != "1":
        assert all(abs(channel - 128) <= 2 for channel in drawn.getpixel((75, 55)))


def test_the_picture_handed_in_stays_as_it_was() -> None:
    picture = canvas()
    annotate(picture, [detection(100, 80, 300, 220)])
    assert count(picture, lambda colour: colour == GREY) == 400 * 300


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_a_picture_too_small_for_text_gets_its_box_alone(size: tuple[int, int]) -> None:
    drawn = annotate(canvas(*size), [detection(0, 0, size[0], size[1])])
    assert drawn.getpixel((0, 0)) == colour_of(PERSON)
    assert white_text(drawn) == 0


@pytest.mark.parametrize("label", ["", "two\nlines", "\x1b[31m", "図", "x" * 500])
def test_no_label_breaks_the_drawing(label: str) -> None:
    drawn = annotate(canvas(), [detection(100, 80, 300, 220, label=label)])
    assert drawn.getpixel((100, 150)) == colour_of(PERSON)


def test_a_label_of_several_lines_is_written_on_one() -> None:
    lines, line = (
        annotate(canvas(), [detection(100, 80, 300, 220, label=label)]) for label in ("two\nlines", "two lines")
    )
    assert lines.tobytes() == line.tobytes()


@pytest.mark.parametrize("box", [(300, 220, 100, 80), (500, 400, 600, 500), (-20, -20, -5, -5), (100, 100, 100, 100)])
def test_no_box_breaks_the_drawing(box: tuple[float, float, float, float]) -> None:
    assert white_text(annotate(canvas(), [detection(*box)])) > 50


def test_a_picture_is_saved_beside_the_one_it_was_drawn_from(tmp_path: Path) -> None:
    canvas().save(tmp_path / "in.png")
    save_annotated(tmp_path / "in.png", [detection(100, 80, 300, 220)], tmp_path / "out.jpg")
    with Image.open(tmp_path / "out.jpg") as saved:
        assert (saved.format, saved.size) == ("JPEG", (400, 300))
        red, green, blue = saved.getpixel((200, 81))
    assert red > 180 > 100 > max(green, blue)


def test_what_cannot_be_read_or_written_is_told_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "note.jpg").write_text("not a picture")
    with pytest.raises(DrawingError, match=r"cannot read .*note\.jpg"):
        save_annotated(tmp_path / "note.jpg", [], tmp_path / "out.jpg")
    with pytest.raises(DrawingError, match=r"cannot read .*missing\.jpg"):
        save_annotated(tmp_path / "missing.jpg", [], tmp_path / "out.jpg")
    canvas().save(tmp_path / "in.png")
    with pytest.raises(DrawingError, match=r"cannot write .*out\.jpg"):
        save_annotated(tmp_path / "in.png", [], tmp_path / "nowhere" / "out.jpg")
    with pytest.raises(DrawingError, match=r"cannot write .*out\.what"):
        save_annotated(tmp_path / "in.png", [], tmp_path / "out.what")
