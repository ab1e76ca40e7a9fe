"""The batched augmentation against torchvision's, image by image and draw by draw."""

import math

import pytest
import torch
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as F

import simsiam_sghmc as s

N = 300


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (N, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def by_torchvision(image, a, i):
    """View i of the parameters `a`, by torchvision's functions on one float image (3, 32, 32)."""
    box = [int(x[i]) for x in (a.top, a.left, a.height, a.width)]
    x = F.resized_crop(image / 255, *box, [32, 32], antialias=True)
    x = F.horizontal_flip(x) if a.flip[i] else x
    jitters = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation, F.adjust_hue)
    for kind in a.order[i] if a.jitter[i] else ():
        x = jitters[kind](x, float(a.factors[i, kind]))
    x = F.rgb_to_grayscale(x, 3) if a.grey[i] else x
    return F.normalize(x, s.MEAN, s.STD)


def test_every_view_is_torchvisions_under_the_same_parameters(images):
    a = s.draw_augmentation(N, torch.Generator().manual_seed(2))
    ours = s.apply_augmentation(images, a)
    theirs = torch.stack([by_torchvision(images[i], a, i) for i in range(N)])
    difference = (ours - theirs).abs() * torch.tensor(s.STD).view(1, 3, 1, 1)
    assert difference.max() < 1e-5  # in units of a [0, 1] image
    assert ours.dtype == torch.float32 and ours.is_contiguous(memory_format=torch.channels_last)


def test_a_crop_reads_nothing_beyond_its_edge():
    images = torch.randint(0, 256, (64, 3, 32, 32), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    a = s.draw_augmentation(64, torch.Generator().manual_seed(4))
    a = a._replace(jitter=torch.zeros(64, dtype=torch.bool), grey=torch.zeros(64, dtype=torch.bool))
    for i in range(64):
        images[i, :, int(a.top[i]) : int(a.top[i] + a.height[i]), int(a.left[i]) : int(a.left[i] + a.width[i])] = 77
    flat = s.normalise(torch.full((1, 3, 32, 32), 77 / 255))
    assert (s.apply_augmentation(images, a) - flat).abs().max() < 1e-5


def two_sample_distance(x, y):
    """Largest difference of the two empirical distribution functions (Kolmogorov and Smirnov)."""
    at = torch.cat([x, y]).unique()
    return max(abs((x <= v).double().mean() - (y <= v).double().mean()) for v in at)


def test_the_crop_boxes_are_distributed_as_torchvisions():
    n, m = 40_000, 8_000
    a = s.draw_augmentation(n, torch.Generator().manual_seed(5))
    torch.manual_seed(6)
    blank = torch.zeros(3, 32, 32)
    drawn = [RandomResizedCrop.get_params(blank, (0.2, 1.0), (3 / 4, 4 / 3)) for _ in range(m)]
    theirs = torch.tensor(drawn, dtype=torch.float32).T  # top, left, height, width
    ours = torch.stack([a.top, a.left, a.height, a.width])

    def measures(box):
        top, left, height, width = box
        return [*box, height * width, height / width, top + height, left + width]

    distances = [float(two_sample_distance(x, y)) for x, y in zip(measures(ours), measures(theirs), strict=True)]
    # a false alarm has probability 1e-6 per measure: P(distance > d) <= 2 exp(-2 d^2 nm/(n+m))
    limit = math.sqrt(math.log(2 / 1e-6) * (n + m) / (2 * n * m))
    assert max(distances) <= limit, distances


def test_every_crop_lies_inside_the_image_and_reaches_its_last_row():
    a = s.draw_augmentation(20_000, torch.Generator().manual_seed(7))
    for start, length in ((a.top, a.height), (a.left, a.width)):
        assert (start >= 0).all() and (length >= 1).all() and (start + length <= 32).all()
        assert torch.equal(start, start.round()) and torch.equal(length, length.round())
        assert (start + length == 32).any() and (start == 0).any()


def within(share, p, n):
    """|share - p| within the Hoeffding bound whose false alarms have probability 1e-6."""
    return abs(float(share) - p) <= math.sqrt(math.log(2 / 1e-6) / (2 * n))


def test_flip_jitter_and_grey_come_as_often_as_simsiams_recipe_says():
    n = 100_000
    a = s.draw_augmentation(n, torch.Generator().manual_seed(8))
    assert within(a.flip.float().mean(), 0.5, n)
    assert within(a.jitter.float().mean(), 0.8, n)
    assert within(a.grey.float().mean(), 0.2, n)


def test_the_order_of_the_jitters_is_drawn_per_image_and_uniform():
    n = 100_000
    order = s.draw_augmentation(n, torch.Generator().manual_seed(9)).order
    codes, counts = (order * torch.tensor([64, 16, 4, 1])).sum(dim=1).unique(return_counts=True)
    assert len(codes) == 24 and all(within(c / n, 1 / 24, n) for c in counts)


def test_the_jitter_factors_are_uniform_in_their_ranges():
    n = 100_000
    factors = s.draw_augmentation(n, torch.Generator().manual_seed(10)).factors
    for column, centre, reach in zip(factors.T, (1, 1, 1, 0), (0.4, 0.4, 0.4, 0.1), strict=True):
        assert column.min() >= centre - reach - 1e-6 and column.max() <= centre + reach + 1e-6
        for q in (0.1, 0.5, 0.9):
            assert within((column < centre + reach * (2 * q - 1)).float().mean(), q, n)


def test_the_two_views_of_an_image_differ_and_a_repeated_draw_does_not(images):
    def draw(seed):
        g = torch.Generator().manual_seed(seed)
        return [s.apply_augmentation(images, s.draw_augmentation(N, g)) for _ in range(2)]

    (first, second), (again, _) = draw(11), draw(11)
    assert torch.equal(first, again)
    assert ((first - second).abs().amax(dim=(1, 2, 3)) > 0.05).float().mean() > 0.99
