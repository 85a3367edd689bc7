"""Annotated pictures, looked at pixel by pixel. The canvas is grey, so that every drawn pixel shows."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from custody.wire import Box, Detection, Keypoint, Mask, Probability, RotatedBox
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
    **more: object,
) -> Detection:
    box = Box(x1=x1, y1=y1, x2=x2, y2=y2)
    return Detection(class_id=class_id, label=label, confidence=confidence, box=box, **more)


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


# What other tasks add


def differs(picture: Image.Image, place: tuple[int, int]) -> bool:
    return picture.getpixel(place) != GREY


def test_a_mask_is_a_tint_within_an_outline_and_its_box_a_thin_line() -> None:
    triangle = Mask(polygons=[[(120, 100), (280, 100), (200, 200)]])
    drawn = annotate(canvas(), [detection(100, 80, 300, 220, mask=triangle)])
    assert drawn.getpixel((200, 100)) == drawn.getpixel((160, 150)) == colour_of(PERSON)
    red, green, blue = drawn.getpixel((200, 140))
    assert GREY[0] < red < colour_of(PERSON)[0]
    assert colour_of(PERSON)[1] < green < GREY[1]
    assert colour_of(PERSON)[2] < blue < GREY[2]
    assert drawn.getpixel((110, 210)) == drawn.getpixel((290, 210)) == GREY
    assert drawn.getpixel((100, 150)) == drawn.getpixel((300, 150)) == colour_of(PERSON)
    assert drawn.getpixel((101, 150)) == GREY


def test_each_part_of_a_mask_is_tinted_and_one_without_parts_is_its_box() -> None:
    squares = [[(x, 100), (x + 40, 100), (x + 40, 140), (x, 140)] for x in (120, 220)]
    drawn = annotate(canvas(), [detection(100, 80, 300, 220, mask=Mask(polygons=squares))])
    assert differs(drawn, (140, 120))
    assert differs(drawn, (240, 120))
    assert drawn.getpixel((190, 120)) == GREY
    drawn = annotate(canvas(), [detection(100, 80, 300, 220, mask=Mask(polygons=[]))])
    assert drawn.getpixel((100, 150)) == colour_of(PERSON)
    assert drawn.getpixel((200, 150)) == GREY


def test_a_turned_box_is_drawn_instead_of_the_upright_one() -> None:
    diamond = RotatedBox(corners=[(200, 80), (300, 150), (200, 220), (100, 150)])
    drawn = annotate(canvas(), [detection(100, 80, 300, 220, rotated_box=diamond)])
    for middle in [(250, 115), (250, 185), (150, 185), (150, 115)]:
        assert drawn.getpixel(middle) == colour_of(PERSON)
    assert drawn.getpixel((104, 100)) == drawn.getpixel((296, 210)) == GREY
    assert white_text(drawn.crop((0, 0, 400, 80))) > 50


def test_keypoints_that_are_seen_are_dots_and_a_body_has_bones() -> None:
    places = [(120 + 40 * (number % 5), 100 + 30 * (number // 5)) for number in range(17)]
    seen = [0.9] * 16 + [0.2]
    points = [Keypoint(x=x, y=y, confidence=sure) for (x, y), sure in zip(places, seen, strict=True)]
    drawn = annotate(canvas(), [detection(100, 80, 300, 220, keypoints=points)])
    for place in places[:16]:
        assert drawn.getpixel(place) == colour_of(PERSON)
    assert drawn.getpixel((140, 100)) == colour_of(PERSON), "from the nose to an eye"
    assert drawn.getpixel(places[16]) == GREY
    some = [Keypoint(x=x, y=y) for x, y in places[:5]]
    drawn = annotate(canvas(), [detection(100, 80, 300, 220, keypoints=some)])
    assert drawn.getpixel(places[4]) == colour_of(PERSON)
    assert drawn.getpixel((140, 100)) == GREY


def classified(*classes: tuple[str, float], width: int = 400, height: int = 300) -> Detection:
    listed = [
        Probability(class_id=number, label=label, confidence=sure) for number, (label, sure) in enumerate(classes)
    ]
    return detection(0, 0, width, height, label=classes[0][0], confidence=classes[0][1], probabilities=listed)


def test_a_classified_picture_lists_its_classes_with_a_bar_each_and_has_no_box() -> None:
    drawn = annotate(canvas(), [classified(("cat", 0.7), ("dog", 0.2))])
    assert drawn.getpixel((399, 299)) == drawn.getpixel((200, 299)) == drawn.getpixel((399, 150)) == GREY
    assert white_text(drawn) > 100
    first, second = (count(drawn, lambda colour, of=number: colour == colour_of(of)) for number in (0, 1))
    assert first / second == pytest.approx(0.7 / 0.2, rel=0.1)
    assert drawn.getpixel((2, 2)) != GREY


def test_a_list_that_does_not_fit_is_shortened_to_the_likeliest_class_or_left_out() -> None:
    many = [(f"class {number}", 0.2) for number in range(5)]
    full, short = (annotate(canvas(200, height), [classified(*many)]) for height in (200, 30))
    assert count(full, lambda colour: colour == colour_of(4)) > 0
    assert count(short, lambda colour: colour == colour_of(4)) == 0
    assert count(short, lambda colour: colour == colour_of(0)) > 0
    assert white_text(annotate(canvas(20, 10), [classified(*many)])) == 0


@pytest.mark.parametrize("size", [(1, 1), (3, 200), (200, 3)])
def test_what_lies_outside_the_picture_breaks_no_drawing(size: tuple[int, int]) -> None:
    outside = [(-500.5, -20.0), (900.0, 40.0), (10.0, 7000.0), (-3.0, 4.0)]
    points = [Keypoint(x=x, y=y) for x, y in outside]
    for more in (
        {"mask": Mask(polygons=[outside])},
        {"rotated_box": RotatedBox(corners=outside)},
        {"keypoints": points},
    ):
        assert annotate(canvas(*size), [detection(0, 0, *size, **more)]).size == size
    assert annotate(canvas(*size), [classified(("x" * 400, 1.0))]).size == size


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
