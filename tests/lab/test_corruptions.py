import random

import numpy as np
import pytest
import torch
from scipy.fft import dctn, idctn
from scipy.ndimage import gaussian_filter

from eedkit.lab import images
from eedkit.lab.corruptions import CORRUPTIONS, corrupted

KINDS = ["noise", "blur", "contrast", "brightness", "jpeg", "elastic", "pixelate", "static"]
DRAWN = ["noise", "elastic", "static"]
SEVERITIES = range(1, 6)
GREY = torch.full((3, 200, 200), 0.5)
LUMA = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61],
        [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56],
        [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77],
        [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101],
        [72, 92, 95, 98, 112, 100, 103, 99],
    ]
)
"""Steps of JPEG's luminance at quality 50 (ITU-T T.81, table K.1)."""


@pytest.fixture(scope="module")
def pictures():
    specs = ("digits/test?size=17&n=60", "letters/test?size=17&n=60", "patches/test?n=60", "faces/test?n=60&size=17")
    return {spec: images.tensors(images.load(spec))[0] for spec in specs}


@pytest.fixture
def patch():
    return images.load("patches/test")[3]["image"]


def smooth(side):
    """Broad hills and valleys, the same picture at any side."""
    y, x = torch.meshgrid(*[(torch.arange(side) + 0.5) / side] * 2, indexing="ij")
    return (0.5 + 0.25 * torch.sin(5 * x + 3 * y) + 0.2 * torch.cos(7 * y - 2 * x))[None]


def ramp(height, width):
    """Every pixel is its own column's number, as a share of the width."""
    return ((torch.arange(width) + 0.5) / width).expand(1, height, width)


class TestRegistry:
    def test_kinds_are_those_agreed_each_with_five_strengths(self):
        assert list(CORRUPTIONS) == KINDS
        assert all(len(set(kind.strengths)) == 5 for kind in CORRUPTIONS.values())

    @pytest.mark.parametrize("name", KINDS)
    def test_severities_lead_further_and_further_from_the_clean_image(self, pictures, name):
        for spec, clean in pictures.items():
            far = [
                float(np.mean([(corrupted(x, name, s, seed=i) - x).abs().mean() for i, x in enumerate(clean)]))
                for s in SEVERITIES
            ]
            assert all(a < b for a, b in zip([0.004, *far], far, strict=False)), (spec, far)

    @pytest.mark.parametrize("name", KINDS)
    @pytest.mark.parametrize("shape", [(1, 17, 17), (3, 32, 32), (3, 12, 30), (1, 30, 7), (1, 1, 1), (3, 2, 3)])
    def test_result_is_an_image_of_the_same_shape_and_the_argument_stays(self, name, shape):
        image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
        kept = image.clone()
        for severity in SEVERITIES:
            made = corrupted(image, name, severity, seed=1)
            assert (made.shape, made.dtype) == (shape, torch.float32)
            assert 0 <= made.min() <= made.max() <= 1
        assert torch.equal(image, kept)


class TestDraws:
    @pytest.mark.parametrize("name", KINDS)
    def test_only_image_name_severity_and_seed_matter_and_global_state_is_left_as_found(self, patch, name):
        made = []
        for state in (1, 2):
            torch.manual_seed(state)
            before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
            made.append(corrupted(patch, name, 3, seed=7))
            after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
            assert torch.equal(before[0], after[0])
            assert before[1:] == after[1:]
        assert torch.equal(*made)
        assert torch.equal(made[0], corrupted(patch, name, 3, seed=8)) == (name not in DRAWN)

    @pytest.mark.parametrize(("name", "image"), [("noise", GREY), ("elastic", ramp(40, 40))])
    def test_all_severities_are_one_draw_times_a_strength(self, name, image):
        mild, strong = (corrupted(image, name, severity, seed=0).double() - image for severity in (1, 3))
        inside = strong.abs() < 0.499
        ratio = CORRUPTIONS[name].strengths[2] / CORRUPTIONS[name].strengths[0]
        torch.testing.assert_close(strong[inside], ratio * mild[inside], rtol=0, atol=1e-5)

    def test_static_of_a_higher_severity_keeps_what_a_lower_one_replaced(self, patch):
        low, high = (corrupted(patch, "static", severity, seed=0) for severity in (2, 4))
        replaced = low != patch
        assert torch.equal(low[replaced], high[replaced])


class TestKinds:
    @pytest.mark.parametrize("severity", [1, 2])
    def test_noise_is_normal_with_its_standard_deviation(self, severity):
        std = CORRUPTIONS["noise"].strengths[severity - 1]
        noise = (corrupted(GREY, "noise", severity, seed=0).double() - 0.5) / std
        assert abs(noise.mean()) < 0.01
        assert abs(noise.std() - 1) < 0.01
        assert abs((noise.abs() < 1).double().mean() - 0.6827) < 0.01
        assert abs((noise[0] * noise[1]).mean()) < 0.02  # channels apart

    @pytest.mark.parametrize("severity", SEVERITIES)
    @pytest.mark.parametrize("name", ["blur", "contrast", "brightness"])
    def test_it_is_what_its_name_says_written_out(self, name, severity):
        image = torch.rand(3, 40, 50, generator=torch.Generator().manual_seed(0))
        strength, pixels = CORRUPTIONS[name].strengths[severity - 1], image.double().numpy()
        if name == "blur":  # of a width relative to the shorter side
            radius = int(np.ceil(3 * 40 * strength))
            expected = [gaussian_filter(x, 40 * strength, mode="mirror", radius=radius) for x in pixels]
        elif name == "contrast":
            luma = np.mean(0.2989 * pixels[0] + 0.587 * pixels[1] + 0.114 * pixels[2])
            expected = luma + strength * (pixels - luma)
        else:
            expected = strength * pixels
        np.testing.assert_allclose(corrupted(image, name, severity, seed=0), expected, rtol=0, atol=1e-5)

    @pytest.mark.parametrize("severity", SEVERITIES)
    def test_jpeg_rounds_the_cosines_of_blocks_to_multiples_of_the_standard_s_table(self, severity):
        image = images.load("patches/test", channels=1)[3]["image"]
        steps = np.clip((LUMA * (5000 / CORRUPTIONS["jpeg"].strengths[severity - 1]) + 50) // 100, 1, 255)
        expected = image[0].double().numpy() * 255 - 128
        for row in range(0, 32, 8):
            for column in range(0, 32, 8):
                block = expected[row : row + 8, column : column + 8]
                block[:] = idctn(np.round(dctn(block, norm="ortho") / steps) * steps, norm="ortho")
        made = corrupted(image, "jpeg", severity, seed=0)[0] * 255
        off = np.abs(made.numpy() - np.clip(expected + 128, 0, 255))
        # a cosine halfway between two multiples may go either way, and takes its block along
        assert np.mean(off < 2) > 0.9

    def test_elastic_moves_points_by_up_to_its_share_of_the_side_and_not_the_frame(self):
        share = CORRUPTIONS["elastic"].strengths[3]
        for start, side in ((ramp(40, 60), 60), (ramp(60, 40).mT, 40)):
            moves = [corrupted(start, "elastic", 4, seed=seed)[0] - start[0] for seed in range(50)]
            moved = torch.stack(moves) * side
            assert 0.9 * share * 40 < moved.abs().max() <= share * 40 + 1e-3
            assert abs(moved.mean()) < 0.2
            for frame in (moved[:, 0], moved[:, -1], moved[:, :, 0], moved[:, :, -1]):
                assert frame.abs().max() < 1e-3

    @pytest.mark.parametrize(("side", "severity", "blocks"), [(17, 5, 7), (224, 5, 7), (17, 1, 14), (33, 3, 9)])
    def test_pixelate_leaves_constant_blocks_of_nearly_one_size(self, side, severity, blocks):
        image = torch.rand(3, side, side, generator=torch.Generator().manual_seed(0))
        made = corrupted(image, "pixelate", severity, seed=0)
        for axis in (1, 2):
            values, sizes = torch.unique_consecutive(made, dim=axis, return_inverse=True)
            assert values.shape[axis] == blocks
            assert sizes.bincount().max() - sizes.bincount().min() <= 1

    def test_pixelate_averages_about_each_block(self):
        image = torch.rand(1, 32, 32, generator=torch.Generator().manual_seed(0)).double()
        expected = np.zeros((32, 32))
        for row in range(32):
            for column in range(32):
                centres = row // 4 * 4 + 2, column // 4 * 4 + 2
                down, across = ([max(0.0, 1 - abs(i + 0.5 - c) / 4) for i in range(32)] for c in centres)
                down, across = np.array(down) / sum(down), np.array(across) / sum(across)
                expected[row, column] = down @ image[0].numpy() @ across
        np.testing.assert_allclose(corrupted(image, "pixelate", 4, seed=0)[0], expected, rtol=0, atol=1e-5)

    def test_static_replaces_its_share_of_pixels_in_all_channels_together(self):
        for severity, share in zip(SEVERITIES, (0.2, 0.4, 0.6, 0.8, 1.0), strict=True):
            replaced = corrupted(GREY, "static", severity, seed=0) != 0.5
            assert torch.equal(replaced.any(0), replaced.all(0))
            assert abs(replaced.double().mean() - share) < 0.01

    def test_static_at_its_strongest_is_uniform_noise_whatever_the_image(self, patch):
        noise = corrupted(GREY, "static", 5, seed=0).double()
        assert abs(noise.mean() - 0.5) < 0.005
        assert abs(noise.std() - 12**-0.5) < 0.005
        assert abs((noise < 0.1).double().mean() - 0.1) < 0.005
        assert abs(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.02
        assert torch.equal(corrupted(patch, "static", 5, seed=3), corrupted(1 - patch, "static", 5, seed=3))

    @pytest.mark.parametrize("name", ["blur", "elastic", "pixelate"])
    def test_lengths_grow_with_the_image(self, name):
        small, large = (corrupted(smooth(side), name, 5, seed=0) for side in (56, 224))
        coarse = torch.nn.functional.avg_pool2d(large, 4)
        assert (coarse - small).abs().mean() < 0.1 * (small - smooth(56)).abs().mean()


@pytest.mark.parametrize("severity", [0, 6, 2.5, "3", None])
def test_a_severity_that_is_none_is_refused(severity):
    with pytest.raises(ValueError, match=rf"needs a severity from 1 .*, got {severity!r}"):
        corrupted(GREY, "blur", severity, seed=0)


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match=r"no corruption 'blurr'; did you mean 'blur'\? \(all 8: noise, blur"):
        corrupted(GREY, "blurr", 1, seed=0)
