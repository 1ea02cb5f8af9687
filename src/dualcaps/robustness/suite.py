"""The suite: a network's accuracy on its test images changed in many ways, each in several strengths."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dualcaps.data.dataset import ImageSplit
from dualcaps.errors import ConfigError, DataError, unknown_name
from dualcaps.inference import evaluate, predict
from dualcaps.models import Network
from dualcaps.nn import to_unit_range
from dualcaps.robustness.attacks import GradientCheck, check_gradients, fgsm, pgd
from dualcaps.robustness.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from dualcaps.robustness.geometry import affine, rotate, shift
from dualcaps.robustness.overlap import OverlapScore, score_overlap

SUITES = ("rotation", "shift", "affine", "corruption", "attack", "overlap")
DEGREES = (15.0, 30.0, 45.0, 60.0, 90.0)
SHARES = (0.05, 0.1, 0.15, 0.2, 0.25)
SIZES = (2 / 255, 8 / 255, 0.1, 0.2, 0.3)

_STEPS = 40  # of PGD
_ATTACKED_AT_ONCE = 100  # images
_CHECKED_SIZE = 0.1  # of the gradient check


class Score(NamedTuple):
    """Accuracy on images changed in one way.

    suite: one of `SUITES`, or "clean".
    change: its name.
    strength: in degrees (rotation), as a share of the side (shift), as a severity from 1 to 5 (corruption), in units of
        values in [0, 1] (attack); 0 where there is one only.
    images: how many were classified.
    accuracy: 0 to 1.
    """

    suite: str
    change: str
    strength: float
    images: int
    accuracy: float


class SuiteResult(NamedTuple):
    """The suite's results: scores, and of attacks and overlap what belongs to them; None if not asked for."""

    scores: list[Score]
    gradients: GradientCheck | None
    overlap: OverlapScore | None


def robustness(
    model: Network,
    split: ImageSplit,
    suites: Sequence[str] = SUITES,
    *,
    count: int = 1_000,
    attacked: int = 200,
    seed: int = 0,
    each: Callable[[int], object] = lambda _: None,
) -> SuiteResult:
    """Classify changed images.

    Args:
        model: the network, on any device.
        split: its test images.
        suites: which of `SUITES`.
        count: how many images to draw.
        attacked: how many of these to attack; attacks take about 200 times as long.
        seed: of the draw and of random changes.
        each: called after each score with the number of images it took.

    Raises:
        ConfigError: an unknown suite.
        DataError: no images, or labels of unknown classes.
    """
    if unknown := [name for name in suites if name not in SUITES]:
        raise ConfigError(unknown_name("suite", unknown[0], SUITES))
    if not len(split):
        raise DataError("no images to change")
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    drawn = ImageSplit(split.images[order].cpu(), split.labels[order].cpu(), split.classes)
    clean = evaluate(model, drawn)
    labels = torch.from_numpy(clean.labels)
    scores = [Score("clean", "none", 0.0, len(labels), clean.accuracy)]
    each(len(labels))
    for suite, change, strength, changed in changed_images(drawn.images, suites, seed):
        correct = predict(model, changed).argmax(dim=1) == labels
        scores.append(Score(suite, change, strength, len(labels), float(correct.float().mean())))
        each(len(labels))
    gradients = None
    if "attack" in suites:
        device = next(model.parameters()).device
        images, truth = to_unit_range(drawn.images[:attacked]).to(device), labels[:attacked].to(device)
        for name, attack in _ATTACKS.items():
            for size in SIZES:
                correct = 0
                for some, wanted in zip(images.split(_ATTACKED_AT_ONCE), truth.split(_ATTACKED_AT_ONCE), strict=True):
                    changed = attack(model, some, wanted, size)
                    correct += int((predict(model, changed).argmax(dim=1) == wanted.cpu()).sum())
                scores.append(Score("attack", name, size, len(truth), correct / len(truth)))
                each(len(truth))
        gradients = check_gradients(model, images[:_ATTACKED_AT_ONCE], truth[:_ATTACKED_AT_ONCE], size=_CHECKED_SIZE)
    found = None
    if "overlap" in suites:
        found = score_overlap(model, ImageSplit(drawn.images, labels), seed=seed)
        each(found.images)
    return SuiteResult(scores, gradients, found)


def steps(suites: Sequence[str], count: int, attacked: int) -> int:
    """How many images `robustness` classifies: the sum of what it passes to `each`."""
    changed = {"rotation": len(DEGREES), "shift": len(SHARES), "affine": 1, "overlap": 1}
    changed["corruption"] = len(CORRUPTIONS) * len(SEVERITIES)
    total = count * (1 + sum(changed.get(suite, 0) for suite in suites))
    return total + (attacked * len(SIZES) * len(_ATTACKS) if "attack" in suites else 0)


def changed_images(
    images: Tensor, suites: Sequence[str] = SUITES, seed: int = 0
) -> Iterator[tuple[str, str, float, Tensor]]:
    """The images of all suites but attack and overlap: suite, change, strength, and uint8 images on the CPU."""
    if "rotation" in suites:
        for degrees in DEGREES:
            yield "rotation", "rotation", degrees, rotate(images, degrees)
    if "shift" in suites:
        for share in SHARES:
            yield "shift", "shift", share, shift(images, share)
    if "affine" in suites:
        yield "affine", "affine", 0.0, affine(images, torch.Generator().manual_seed(seed))
    if "corruption" in suites:
        for name in CORRUPTIONS:
            for severity in SEVERITIES:
                generator = torch.Generator().manual_seed(seed)
                yield "corruption", name, float(severity), corrupt(images, name, severity, generator)


def _pgd(model: Network, images: Tensor, labels: Tensor, size: float) -> Tensor:
    return pgd(model, images, labels, size, steps=_STEPS)


_ATTACKS = {"FGSM": fgsm, "PGD": _pgd}
