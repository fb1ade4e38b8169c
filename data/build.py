"""Makes every bundled image again, with its card: `python data/build.py`.

Needs scikit-learn, scikit-image and matplotlib (`pip install "eedkit[data]"`), the four files of Fashion-MNIST, and nothing
from the network. Debian's package dataset-fashion-mnist has these files; elsewhere FASHION_MNIST names their folder.
Takes a few seconds. The same packages give the same pixels and ids, whatever the machine.
"""

import gzip
import io
import os
import string
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont

HERE = Path(__file__).parent
SEED = 0


class Row(NamedTuple):
    """One image: (H, W) or (H, W, 3) uint8, the index of its class, and an id that never changes."""

    pixels: np.ndarray
    label: int
    id: str


Splits = dict[str, list[Row]]

DIGITS = list(string.digits)


def digits() -> Splits:
    """scikit-learn's handwritten digits, 8×8, levels 0..16 spread over 0..255; the id is the index there."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    source = load_digits()
    pixels = np.rint(source.images * (255 / 16)).astype(np.uint8)
    train, test = train_test_split(range(len(pixels)), test_size=397, stratify=source.target, random_state=SEED)
    return {
        split: [Row(pixels[i], int(source.target[i]), f"digits-{i:04d}") for i in sorted(chosen)]
        for split, chosen in (("train", train), ("test", test))
    }


LETTERS = list(string.ascii_uppercase)
FONTS = {
    "train": [
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-Oblique", "DejaVuSans-BoldOblique"),
        *("DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique", "DejaVuSansMono-BoldOblique"),
        *("DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic"),
        *("cmr10", "cmb10", "cmti10"),
    ],
    "test": ["STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta", "cmss10"],
}
COPIES = 4  # of each letter in each font, each with its own size and offset
SIDE, FINE = 32, 4  # glyphs are placed on a canvas FINE times larger, so that offsets are quarters of a pixel


def letter(char: str, font: ImageFont.FreeTypeFont, cap: float, shift: tuple[float, float]) -> np.ndarray:
    """One capital, white on black: capitals `cap` pixels high, off centre by `shift`, at most 24 pixels a side."""
    _, top, _, bottom = font.getbbox("H")
    box = font.getbbox(char)
    width, height = box[2] - box[0], box[3] - box[1]
    glyph = Image.new("L", (width, height))
    ImageDraw.Draw(glyph).text((-box[0], -box[1]), char, font=font, fill=255)

    scale = FINE * min(cap / (bottom - top), 24 / width, 24 / height)
    glyph = glyph.resize((round(width * scale), round(height * scale)), Image.Resampling.BILINEAR)
    canvas = Image.new("L", (SIDE * FINE, SIDE * FINE))
    canvas.paste(glyph, tuple(round(FINE * (SIDE / 2 + s) - g / 2) for s, g in zip(shift, glyph.size, strict=True)))
    return np.asarray(canvas.resize((SIDE, SIDE), Image.Resampling.BOX))


def letters() -> Splits:
    """A to Z in matplotlib's fonts; the id names letter, font and copy. No font serves both splits."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    rng = np.random.default_rng(SEED)
    splits: Splits = {"train": [], "test": []}
    for split, fonts in FONTS.items():
        for name in fonts:
            font = ImageFont.truetype(str(folder / f"{name}.ttf"), 200, layout_engine=ImageFont.Layout.BASIC)
            for label, char in enumerate(LETTERS):
                for copy in range(COPIES):
                    cap, *shift = rng.uniform([16, -2, -2], [20, 2, 2])
                    splits[split].append(Row(letter(char, font, cap, shift), label, f"letters-{char}-{name}-{copy}"))
    return splits


PICTURES = {
    "astronaut": "public domain (NASA Great Images; portrait of Eileen Collins)",
    "brick": "CC0 (CC0Textures)",
    "camera": "CC0 by the photographer, Lav Varshney",
    "chelsea": "CC0 by the photographer, Stefan van der Walt",
    "coffee": "CC0 by the photographer, Rachel Michetti; courtesy of Pikolo Espresso Bar",
    "coins": "no known copyright restrictions (Brooklyn Museum Collection)",
    "grass": "CC0 (linolafett, DeviantArt)",
    "gravel": "CC0 (CC0Textures)",
    "hubble_deep_field": "public domain (NASA, HubbleSite)",
    "immunohistochemistry": "no known copyright restrictions (Center for Microscopy and Molecular Imaging)",
    "retina": "CC0 (Mikael Häggström, Wikimedia Commons)",
    "rocket": "public domain (SpaceX Photos; the Flickr page said CC BY-NC in 2020, see scikit-image's issue 5095)",
}
PER_PICTURE = {"train": 60, "test": 25}
FLAT = 8  # a cell whose grey levels have a smaller standard deviation shows nothing to turn


def cells(picture: np.ndarray) -> Iterator[tuple[int, int, np.ndarray]]:
    """Row, column and pixels of each 32×32 cell of the grid that starts in the upper left corner."""
    for row in range(picture.shape[0] // SIDE):
        for column in range(picture.shape[1] // SIDE):
            yield row, column, picture[row * SIDE : (row + 1) * SIDE, column * SIDE : (column + 1) * SIDE]


def split_of(column: int) -> str:
    """The split that owns a column of cells: every third column is the test's."""
    return "test" if column % 3 == 1 else "train"


def picture(name: str) -> np.ndarray:
    """One of scikit-image's pictures, (H, W, 3), shrunk to at most 640 pixels a side."""
    from skimage import data

    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    image.thumbnail((640, 640), Image.Resampling.LANCZOS)
    return np.asarray(image)


def patches() -> Splits:
    """Cells of twelve pictures, the class is the picture; an id names picture, row and column. No two share a pixel."""
    rng = np.random.default_rng(SEED)
    splits: Splits = {"train": [], "test": []}
    for label, name in enumerate(PICTURES):
        found: Splits = {"train": [], "test": []}
        for row, column, pixels in cells(picture(name)):
            if np.asarray(Image.fromarray(pixels).convert("L")).std() >= FLAT:
                found[split_of(column)].append(Row(pixels, label, f"patches-{name}-r{row:02d}c{column:02d}"))
        for split, count in PER_PICTURE.items():
            chosen = rng.choice(len(found[split]), count, replace=False)
            splits[split] += [found[split][i] for i in sorted(chosen)]
    return splits


FACES = ["face", "not_face"]


def faces() -> Splits:
    """scikit-image's 100 faces and 100 backgrounds, 25×25; the id is the index there."""
    from skimage.data import lfw_subset

    pixels = np.rint(lfw_subset() * 255).astype(np.uint8)
    return {"test": [Row(image, int(i >= 100), f"faces-{i:04d}") for i, image in enumerate(pixels)]}


GARMENTS = [
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
]
PER_GARMENT = {"train": 200, "test": 100}
FASHION = Path(os.environ.get("FASHION_MNIST", "/usr/share/datasets/fashion-mnist"))


def idx(name: str) -> np.ndarray:
    """One of Fashion-MNIST's files: the last byte of its first four is the number of sizes that follow them."""
    path = FASHION / name
    if not path.is_file():
        raise SystemExit(
            f"expected {name} of Fashion-MNIST in {FASHION}, found no such file; install Debian's package "
            "dataset-fashion-mnist, or set FASHION_MNIST to the folder of its four .gz files (all other sets are made)"
        )
    content = gzip.decompress(path.read_bytes())
    dimensions = content[3]
    sizes = np.frombuffer(content, ">i4", count=dimensions, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions).reshape(sizes)


def fashion() -> Splits:
    """As many images of every class, drawn from Fashion-MNIST's own splits; an id names split and index there."""
    rng = np.random.default_rng(SEED)
    splits: Splits = {"train": [], "test": []}
    for split, source in {"train": "train", "test": "t10k"}.items():
        images = idx(f"{source}-images-idx3-ubyte.gz")
        labels = idx(f"{source}-labels-idx1-ubyte.gz")
        for label in range(len(GARMENTS)):
            chosen = rng.choice(np.flatnonzero(labels == label), PER_GARMENT[split], replace=False)
            for index in sorted(chosen):
                splits[split].append(Row(images[index], label, f"fashion-{split}-{index:05d}"))
    return splits


CARDS = {
    "digits": """Handwritten digits, 8×8 pixels, grey, bright strokes on black.

* **Origin:** `sklearn.datasets.load_digits`, the test part of the UCI "Optical Recognition of Handwritten Digits"
  (E. Alpaydin and C. Kaynak, 1998), made by 13 writers.
* **Licence:** CC BY 4.0 (UCI Machine Learning Repository, doi:10.24432/C50P49).
* **How made:** counts of ink pixels (0 to 16) multiplied by 255/16 and rounded; split by a seeded draw, stratified by
  class. The number in an id is the image's index in scikit-learn's table.

**Beware.** The source does not say who wrote which digit, so the same hands are in train and test: test accuracy is
optimistic. A 6 turned by 180 degrees is a 9, and 0, 1 and 8 look much the same: under such turns the true label is not
invariant. Eight pixels a side are few: resize before measuring convolutional layers.""",
    "letters": """Capitals A to Z rendered in several fonts, 32×32 pixels, grey, bright strokes on black like the digits.

* **Origin:** the fonts that matplotlib ships. Train: {train_fonts}. Test: {test_fonts}. **No font is in both splits**,
  nor another weight or slant of it. (cmss10 and cmr10 both belong to Computer Modern, one without serifs, one with.)
* **Licence:** the images hold no font software and may be used like the rest of eedkit (MIT). The fonts have their own
  licences: DejaVu (Bitstream Vera's terms, changes in the public domain), STIX (SIL Open Font License 1.1), Computer
  Modern (BaKoMa Fonts Licence, Basil K. Malyshev).
* **How made:** each letter four times per font; capitals 16 to 20 pixels high and up to 2 pixels off centre, both
  drawn with a seed; a glyph wider than 24 pixels is shrunk to fit. An id names letter, font and copy.

**Beware.** The four copies of a letter in one font differ in size and place alone: for an interval over *fonts*, group
them by the name in the id. N turned by 90 degrees is a Z, and H, I, N, O, S, X and Z look much the same upside down:
under such turns the true label is not invariant.""",
    "patches": """Colour patches, 32×32 pixels, of twelve photographs and textures. The class is the picture.

* **Origin:** `skimage.data` (only pictures that ship inside scikit-image's wheel).
* **Licence**, as scikit-image's documentation states it:

{licences}

* **How made:** each picture, shrunk to at most 640 pixels a side, is cut into the cells of a 32-pixel grid; every third
  column of cells (1, 4, 7, … counted from 0) is the test's, the others are train's; of the cells whose grey levels
  have a standard deviation of at least {flat}, as many as the table says are drawn with a seed. An id names picture, row and
  column. **No two patches share a pixel**, within a split or across.

**Beware.** Test patches lie beside train patches of the same picture, with the same light and camera: this set asks what
a network does with natural texture, not how well it generalises. Five pictures are grey (brick, camera, coins, grass,
gravel: three equal channels); the colours of the others give them away to a good part. Some have an upright (rocket,
camera), some hardly any (gravel, immunohistochemistry); scikit-image's brick wall stands on its side.""",
    "faces": """Faces and backgrounds, 25×25 pixels, grey: a far domain for networks trained on anything else here.

* **Origin:** `skimage.data.lfw_subset`: 100 faces drawn at random from "Labeled Faces in the Wild" (Huang et al., 2007)
  and 100 crops of the background of the same set, resized to 25×25. There is a test split only.
* **Licence:** scikit-image states none for this file; it distributes it with the package (BSD 3-clause). The set
  was collected from news photographs for research. Do not use it to identify anybody.
* **How made:** values in 0..1 multiplied by 255 and rounded. The number in an id is the index in scikit-image's array.

**Beware.** Few images, upright, centred, of people in the news of the early 2000s: no basis for a statement about faces
in general. Many backgrounds are smooth: {smooth} of them have a standard deviation under {flat} grey levels.""",
    "fashion": """Pieces of clothing, 28×28 pixels, grey, bright on black: a part of Fashion-MNIST.

* **Origin:** Fashion-MNIST (H. Xiao, K. Rasul and R. Vollgraf, 2017, arXiv 1708.07747; github.com/zalandoresearch/fashion-mnist):
  photographs of Zalando's articles, one article each.
* **Licence:** MIT, © 2017 Zalando SE; its text stands below.
* **How made:** from the 60,000 training images and, for test, from the 10,000 test images, as many of every class as the
  table says are drawn with a seed. Pixels are as they were. An id names split and index there.

**Beware.** Garments hang or stand upright in every image, and shoes point to the left: a turn or a mirror makes an image
that the source never shows, but no garment of another class (unlike digits, where a 6 becomes a 9). Shirts, pullovers,
coats and T-shirts are hard to tell apart, for people as well. Some images in the source are wrongly labelled.

> Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation
> files (the "Software"), to deal in the Software without restriction, including without limitation the rights to use, copy,
> modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit persons to whom the
> Software is furnished to do so, subject to the following conditions:
>
> The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.
>
> THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES
> OF MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE
> LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR
> IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE.""",
}
NAMES = {"digits": DIGITS, "letters": LETTERS, "patches": list(PICTURES), "faces": FACES, "fashion": GARMENTS}
MAKERS = {"digits": digits, "letters": letters, "patches": patches, "faces": faces, "fashion": fashion}


def card(name: str, splits: Splits) -> str:
    """The set's README: what it is, then the counts of its rows per class and split."""
    counts = {split: Counter(row.label for row in rows) for split, rows in splits.items()}
    table = [["class", *splits], ["---"] * (1 + len(splits))]
    table += [[label, *(counts[split][i] for split in splits)] for i, label in enumerate(NAMES[name])]
    table += [["**all**", *(f"**{len(rows)}**" for rows in splits.values())]]
    text = CARDS[name].format(
        train_fonts=", ".join(FONTS["train"]),
        test_fonts=", ".join(FONTS["test"]),
        licences="\n".join(f"  * {picture}: {licence}" for picture, licence in PICTURES.items()),
        flat=FLAT,
        smooth=sum(row.pixels.std() < FLAT for row in splits["test"]),
    )
    lines = "\n".join("| " + " | ".join(map(str, row)) + " |" for row in table)
    return f"# {name}\n\n{text}\n\n{lines}\n\nMade by `data/build.py`. Rows are in a seeded random order.\n"


def write(name: str, splits: Splits, folder: Path) -> None:
    """One parquet file per split, with Hugging Face features, and the card."""
    from datasets import ClassLabel, Dataset, Features, Value
    from datasets import Image as ImageFeature

    features = Features(image=ImageFeature(), label=ClassLabel(names=NAMES[name]), id=Value("string"))
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in splits.items():
        # shuffled, so that whoever takes the first rows, or the next row as "another image", gets all classes
        rows = [rows[i] for i in np.random.default_rng(SEED).permutation(len(rows))]
        images = [{"bytes": png(row.pixels), "path": None} for row in rows]
        columns = {"image": images, "label": [row.label for row in rows], "id": [row.id for row in rows]}
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")
    (folder / "README.md").write_text(card(name, splits), encoding="utf-8")


def png(pixels: np.ndarray) -> bytes:
    """The pixels as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", optimize=True)
    return file.getvalue()


if __name__ == "__main__":
    for name, make in MAKERS.items():
        write(name, make(), HERE / name)
