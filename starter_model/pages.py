"""Pages of handwritten digits and where they are: the starter model's data, drawn from what two packages carry.

The digits are scikit-learn's `load_digits` (8 x 8 pixels each), the grounds scikit-image's brick, grass and gravel, or
noise. Held-out pages share neither a digit nor a piece of ground with the training pages. The same seed and the same
versions of the packages give the same pages.

    python -m starter_model.pages FOLDER     writes the demo page and its truth, page.png and page.json
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as skimage_data
from sklearn.datasets import load_digits

Box = tuple[int, int, int, int]

CLASSES = tuple("0123456789")
PAGE_SIDE = 320

TRAINING_SHARE_OF_DIGITS = 0.8
TRAINING_SHARE_OF_TEXTURE = 0.6
DIGITS_ON_A_PAGE = (4, 12)
DIGIT_SIDE = (28, 80)
MAX_TURN_DEGREES = 15
MIN_PATCH_SIDE = 160  # Texture pixels: at most two page pixels to one of them.
MIN_CONTRAST = 55  # Of 255, between the brightness of a digit and that of the ground under it.

DEMO_SEED = 1778  # Chosen by eye among held-out pages: ten digits that a passer-by can read.
DEMO_SIZE = (640, 480)
DEMO_ZOOM = 2.0  # The model sees the demo page at half its size: there its digits are as large as in training.


@dataclass(frozen=True)
class Stock:
    """What pages are drawn from: `glyphs` (n, 8, 8) from 0 to 1, their `labels` (n,), grey `textures` (height, width)
    with brick as the first."""

    glyphs: np.ndarray
    labels: np.ndarray
    textures: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Digit:
    """One digit on a page. `box` is x1, y1, x2, y2 in pixels, x2 and y2 exclusive, tight around the ink."""

    label: int
    box: Box


@dataclass(frozen=True)
class Page:
    picture: Image.Image
    digits: tuple[Digit, ...]


def write_dataset(folder: Path, seed: int, training_pages: int, held_out_pages: int) -> Path:
    """Writes both splits in YOLO's layout (images/, labels/) and returns the path of the data.yaml that names them."""
    training, held_out = stocks()
    splits = (("train", training, training_pages), ("val", held_out, held_out_pages))
    for place, (split, stock, count) in enumerate(splits):
        images, labels = folder / "images" / split, folder / "labels" / split
        images.mkdir(parents=True)
        labels.mkdir(parents=True)
        for number in range(count):
            # A generator for each page: a page stays the same however many are made.
            page = draw_page(stock, np.random.default_rng((seed, place, number)))
            page.picture.save(images / f"{number:05}.png", compress_level=1)
            (labels / f"{number:05}.txt").write_text(yolo_labels(page))
    description = {"path": str(folder.resolve()), "train": "images/train", "val": "images/val"}
    path = folder / "data.yaml"
    path.write_text(json.dumps(description | {"names": dict(enumerate(CLASSES))}))  # JSON is YAML.
    return path


def write_demo_page(folder: Path) -> None:
    """Writes page.png and page.json: a list of {"label", "box": [x1, y1, x2, y2] in pixels}."""
    page = draw_demo_page()
    page.picture.save(folder / "page.png", optimize=True)
    truth = [{"label": CLASSES[digit.label], "box": digit.box} for digit in page.digits]
    lines = ",\n".join(json.dumps(digit) for digit in truth)
    (folder / "page.json").write_text(f"[\n{lines}\n]\n")


def draw_demo_page() -> Page:
    """Ten held-out digits, one of each, chalked on held-out brick."""
    _, stock = stocks()
    rng = np.random.default_rng(DEMO_SEED)
    brick, *_ = stock.textures
    ground = tint(cut_patch(brick, rng, DEMO_SIZE), np.array([1.2, 0.66, 0.5]))
    chosen = [int(rng.choice(np.flatnonzero(stock.labels == label))) for label in rng.permutation(len(CLASSES))]
    return place_digits(ground, stock, chosen, rng, DEMO_ZOOM)


def stocks() -> tuple[Stock, Stock]:
    """Training stock (the first 80 % of the digits, the left 60 % of each texture) and held-out stock (the rest)."""
    bunch = load_digits()
    glyphs, labels = bunch.images / 16.0, bunch.target
    whole = [skimage_data.brick(), skimage_data.grass(), skimage_data.gravel()]
    digit = int(len(labels) * TRAINING_SHARE_OF_DIGITS)
    column = int(whole[0].shape[1] * TRAINING_SHARE_OF_TEXTURE)
    return (
        Stock(glyphs[:digit], labels[:digit], tuple(texture[:, :column] for texture in whole)),
        Stock(glyphs[digit:], labels[digit:], tuple(texture[:, column:] for texture in whole)),
    )


def draw_page(stock: Stock, rng: np.random.Generator) -> Page:
    """A square page with 4 to 12 digits of any classes on one of the textures or on noise."""
    size = (PAGE_SIDE, PAGE_SIDE)
    kind = rng.integers(len(stock.textures) + 1)
    grey = draw_noise(rng, size) if kind == len(stock.textures) else cut_patch(stock.textures[kind], rng, size)
    contrast, brightness = rng.uniform(0.5, 1.3), rng.uniform(-50, 50)
    ground = tint((grey - grey.mean()) * contrast + grey.mean() + brightness, rng.uniform(0.4, 1.3, 3))
    count = rng.integers(DIGITS_ON_A_PAGE[0], DIGITS_ON_A_PAGE[1] + 1)
    return place_digits(ground, stock, rng.integers(len(stock.labels), size=count).tolist(), rng, zoom=1.0)


def cut_patch(texture: np.ndarray, rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A random piece of a texture, turned or mirrored, enlarged to a page of `size` (width, height)."""
    width, height = size
    texture = np.rot90(texture, rng.integers(4))
    if rng.random() < 0.5:
        texture = texture[:, ::-1]
    largest = min(texture.shape[1] / width, texture.shape[0] / height)
    smallest = min(largest, MIN_PATCH_SIDE / min(size))
    scale = rng.uniform(smallest, largest)
    patch_width, patch_height = int(width * scale), int(height * scale)
    x = rng.integers(texture.shape[1] - patch_width + 1)
    y = rng.integers(texture.shape[0] - patch_height + 1)
    return resize(texture[y : y + patch_height, x : x + patch_width], size)


def draw_noise(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Grey noise of random grain and strength."""
    grain = rng.integers(1, 17)
    coarse = rng.normal(128, rng.uniform(4, 45), (size[1] // grain, size[0] // grain))
    return resize(coarse.clip(0, 255), size)


def tint(grey: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """Grey (height, width) to RGB (height, width, 3), each channel times its share of `colour`."""
    return (grey[..., None] * colour).clip(0, 255)


def place_digits(ground: np.ndarray, stock: Stock, chosen: list[int], rng: np.random.Generator, zoom: float) -> Page:
    """Draws the chosen digits on the ground (RGB, height x width x 3), no box on another; `zoom` enlarges them.

    A digit that finds no room in 60 tries is left out.
    """
    pixels = ground.copy()
    digits: list[Digit] = []
    for index in chosen:
        for _ in range(60):
            ink = draw_ink(stock.glyphs[index], rng, zoom)
            height, width = ink.shape
            x = int(rng.integers(pixels.shape[1] - width + 1))
            y = int(rng.integers(pixels.shape[0] - height + 1))
            box = (x, y, x + width, y + height)
            if not any(overlaps(box, digit.box) for digit in digits):
                under = pixels[y : y + height, x : x + width]
                colour = pick_colour(under.mean(axis=(0, 1)), rng)
                cover = ink[..., None] * rng.uniform(0.8, 1.0)
                pixels[y : y + height, x : x + width] = under * (1 - cover) + colour * cover
                digits.append(Digit(int(stock.labels[index]), box))
                break
    return Page(Image.fromarray(pixels.round().astype(np.uint8)), tuple(digits))


def draw_ink(glyph: np.ndarray, rng: np.random.Generator, zoom: float) -> np.ndarray:
    """How much ink covers each pixel (0 to 1): the glyph enlarged, turned and sharpened, cut where the ink ends."""
    side = round(rng.uniform(*DIGIT_SIDE) * zoom)
    padded = Image.fromarray(np.pad(glyph * 255, 1).astype(np.float32))
    turned = padded.resize((round(side * 10 / 8),) * 2, Image.Resampling.BICUBIC).rotate(
        rng.uniform(-MAX_TURN_DEGREES, MAX_TURN_DEGREES), Image.Resampling.BICUBIC, expand=True
    )
    threshold, softness = rng.uniform(0.35, 0.5), rng.uniform(0.15, 0.5)
    ink = ((np.asarray(turned) / 255 - threshold) / softness + 0.5).clip(0, 1)
    inked = ink > 0.2
    rows, columns = np.flatnonzero(inked.any(axis=1)), np.flatnonzero(inked.any(axis=0))
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def pick_colour(ground: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A random colour (RGB) that stands out from the ground's mean colour."""
    while True:
        colour = rng.uniform(0, 255, 3)
        if abs(brightness_of(colour) - brightness_of(ground)) >= MIN_CONTRAST:
            return colour


def brightness_of(colour: np.ndarray) -> float:
    return float(colour @ (0.299, 0.587, 0.114))


def overlaps(one: Box, other: Box) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def resize(grey: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.asarray(Image.fromarray(grey.astype(np.float32)).resize(size, Image.Resampling.BICUBIC))


def yolo_labels(page: Page) -> str:
    """One line a digit: class, centre x, centre y, width, height, as shares of the page."""
    width, height = page.picture.size
    lines = []
    for digit in page.digits:
        x1, y1, x2, y2 = digit.box
        shares = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
        lines.append(f"{digit.label} " + " ".join(f"{share:.6f}" for share in shares) + "\n")
    return "".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Writes the demo page and its truth, page.png and page.json.")
    parser.add_argument("folder", type=Path)
    write_demo_page(parser.parse_args().folder)
