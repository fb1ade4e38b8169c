from PIL import Image

from eedkit.pictures import opaque


def test_the_background_shows_by_its_name():
    image = Image.new("RGBA", (1, 1), (10, 20, 30, 0))
    assert opaque(image, "blue").getpixel((0, 0)) == (0, 0, 255)
    assert opaque(image).getpixel((0, 0)) == (255, 255, 255)


def test_half_of_the_background_shows_through_a_half():
    image = Image.new("RGBA", (1, 1), (0, 100, 255, 51))
    assert opaque(image).getpixel((0, 0)) == (204, 224, 255)


def test_grey_stays_grey_and_all_else_is_rgb():
    modes = {mode: opaque(Image.new(mode, (1, 1))).mode for mode in ("1", "L", "LA", "P", "PA", "CMYK", "YCbCr")}
    assert modes == {"1": "L", "L": "L", "LA": "L"} | dict.fromkeys(["P", "PA", "CMYK", "YCbCr"], "RGB")
