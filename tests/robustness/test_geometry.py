"""Changed images are moved and turned as said, and affine changes keep within affNIST's ranges."""

import math

import pytest
import torch

from dualcaps.robustness.geometry import affine, rotate, shift


def blob(count: int, side: int, *, top: int, left: int, height: int, width: int) -> torch.Tensor:
    images = torch.zeros(count, 1, side, side, dtype=torch.uint8)
    images[:, :, top : top + height, left : left + width] = 255
    return images


def moments(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centre [N, 2] and covariance [N, 2, 2] of each image's brightness: x, y from the image's centre."""
    weights = images[:, 0].double()
    weights = weights / weights.sum(dim=(1, 2), keepdim=True)
    height, width = images.shape[2:]
    x = torch.arange(width).double() - (width - 1) / 2
    y = torch.arange(height).double() - (height - 1) / 2
    centre = torch.stack([(weights * x).sum(dim=(1, 2)), (weights * y[:, None]).sum(dim=(1, 2))], dim=1)
    dx, dy = x[None, None] - centre[:, 0, None, None], y[None, :, None] - centre[:, 1, None, None]
    entries = [(weights * a * b).sum(dim=(1, 2)) for a in (dx, dy) for b in (dx, dy)]
    return centre, torch.stack(entries, dim=1).view(-1, 2, 2)


def test_every_second_image_is_rotated_to_the_other_side():
    images = blob(4, 41, top=19, left=24, height=3, width=12)
    centre, _ = moments(rotate(images, 30))
    before, _ = moments(images)
    angles = torch.atan2(centre[:, 1], centre[:, 0]) - torch.atan2(before[:, 1], before[:, 0])
    assert torch.allclose(angles.abs().rad2deg(), torch.full((4,), 30.0).double(), atol=0.5)
    assert angles.sign().tolist() in ([1, -1, 1, -1], [-1, 1, -1, 1])
    assert torch.equal(rotate(images, 0), images)
    quarter = rotate(images[:1], 90)
    assert torch.equal(quarter, images[:1].rot90(1, (2, 3))) or torch.equal(quarter, images[:1].rot90(-1, (2, 3)))


def test_images_are_shifted_by_a_share_of_the_side_to_all_corners():
    images = blob(4, 40, top=18, left=18, height=4, width=4)
    centre, _ = moments(shift(images, 0.2))
    assert centre.abs().tolist() == [[8, 8]] * 4
    assert len({tuple(point) for point in centre.sign().tolist()}) == 4


def test_affine_changes_keep_within_affnists_ranges_and_the_image():
    images = blob(400, 40, top=13, left=12, height=14, width=16)
    changed = affine(images, torch.Generator().manual_seed(0))
    before, after = moments(images), moments(changed)
    areas = (torch.linalg.det(after[1]) / torch.linalg.det(before[1])).sqrt()  # of products of two scales
    assert 0.64 - 0.02 <= areas.min() < 0.75
    assert 1.3 < areas.max() <= 1.44 + 0.02
    mass = changed.double().sum(dim=(1, 2, 3)) / images.double().sum(dim=(1, 2, 3))
    assert (mass / areas - 1).abs().max() < 0.03  # nothing is cut off
    assert after[0].abs().max() > 9  # reaches the edges
    assert after[0].mean(dim=0).abs().max() < 1  # to all sides alike
    assert not torch.equal(changed, affine(images, torch.Generator().manual_seed(1)))
    assert torch.equal(changed, affine(images, torch.Generator().manual_seed(0)))


def test_affine_rotations_and_shears_are_as_large_as_published():
    bar = blob(500, 60, top=29, left=15, height=2, width=30)
    _, covariance = moments(affine(bar, torch.Generator().manual_seed(0)))
    angle = 0.5 * torch.atan2(2 * covariance[:, 0, 1], covariance[:, 0, 0] - covariance[:, 1, 1])
    assert 18 < angle.abs().rad2deg().max() < 21  # a horizontal bar is turned by the rotation alone
    upright = blob(500, 60, top=15, left=29, height=30, width=2)
    _, covariance = moments(affine(upright, torch.Generator().manual_seed(0)))
    lean = torch.atan2(covariance[:, 0, 1], covariance[:, 1, 1])
    steepest = 20 + math.degrees(math.atan(0.2 * 1.2 / 0.8)) + 1
    assert 22 < lean.abs().rad2deg().max() < steepest


@pytest.mark.parametrize("value", [0, 255])
def test_images_without_a_margin_are_not_moved_outside(value: int):
    images = torch.full((8, 3, 12, 10), value, dtype=torch.uint8)
    assert torch.equal(affine(images, torch.Generator().manual_seed(0)), images)  # edges are repeated
