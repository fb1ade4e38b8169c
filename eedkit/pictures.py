"""What a PIL image shows, for every path by which one reaches a model. Needs Pillow only when an image comes."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import Image


def opaque(image: "Image.Image", background: str = "white") -> "Image.Image":
    """The same image without transparency, in mode L if it is grey and RGB if not.

    Parameters
    ----------
    image : PIL image
        Of at most 8 bits per channel.
    background : str
        The colour that shows where the image is transparent, by a name that Pillow knows.

    Examples
    --------
    >>> from PIL import Image
    >>> opaque(Image.new("RGBA", (1, 1), (255, 0, 0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    from PIL import Image

    is_grey = image.mode in ("1", "L", "LA")
    if image.has_transparency_data:
        behind = Image.new("RGBA", image.size, background)
        image = Image.alpha_composite(behind, image.convert("RGBA"))
    return image.convert("L" if is_grey else "RGB")
