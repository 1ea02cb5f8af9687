"""The suite: every change asked for is scored, accuracies are those of the changed images."""

import pytest
import torch

from dualcaps import ConfigError, DataError, ImageSplit, create_model
from dualcaps.inference import predict
from dualcaps.robustness.corruptions import corrupt
from dualcaps.robustness.suite import SUITES, robustness, steps


@pytest.fixture(scope="module")
def setting():
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 14, 14), 3, width=8)
    images = torch.randint(0, 256, (60, 1, 14, 14), dtype=torch.uint8)
    return model, ImageSplit(images, torch.arange(60) % 3)


def test_the_whole_suite_scores_every_change(setting):
    model, split = setting
    seen = []
    found = robustness(model, split, count=40, attacked=6, each=seen.append)
    assert sum(seen) == steps(SUITES, 40, 6)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))[:40]
    right = (predict(model, split.images[order]).argmax(dim=1) == split.labels[order]).float().mean()
    assert found.scores[0] == ("clean", "none", 0.0, 40, pytest.approx(float(right)))
    counts = {suite: sum(score.suite == suite for score in found.scores) for suite in SUITES}
    assert counts == {"rotation": 5, "shift": 5, "affine": 1, "corruption": 60, "attack": 10, "overlap": 0}
    assert len({score[:3] for score in found.scores}) == len(found.scores)
    assert all(0 <= score.accuracy <= 1 for score in found.scores)
    assert all(score.images == (6 if score.suite == "attack" else 40) for score in found.scores)
    assert found.gradients is not None
    assert found.overlap is not None
    assert found.overlap.images == 40
    attacks = {(score.change, score.strength): score.accuracy for score in found.scores if score.suite == "attack"}
    assert attacks["PGD", 0.3] <= attacks["FGSM", 0.3]


def test_scores_are_those_of_the_changed_images(setting):
    model, split = setting
    found = robustness(model, split, ["corruption"], count=len(split))
    assert found.gradients is found.overlap is None
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    changed = corrupt(split.images[order], "contrast", 4, torch.Generator().manual_seed(0))
    expected = (predict(model, changed).argmax(dim=1) == split.labels[order]).float().mean()
    score = next(score for score in found.scores if (score.change, score.strength) == ("contrast", 4))
    assert score.accuracy == pytest.approx(float(expected))


def test_unknown_suites_and_no_images_are_refused(setting):
    model, split = setting
    with pytest.raises(ConfigError, match="unknown suite 'rotations': did you mean 'rotation'"):
        robustness(model, split, ["rotations"])
    with pytest.raises(DataError, match="no images"):
        robustness(model, ImageSplit(split.images[:0], split.labels[:0]))
