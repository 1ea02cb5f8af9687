"""Probes find what can be read linearly, and nothing where there is nothing."""

import numpy as np
import pytest
import torch

from dualcaps import DataError, ImageSplit, ModelError, create_model
from dualcaps.explain.probes import probe, probe_all, representations


def attributes(count: int, random: np.random.Generator) -> dict[str, np.ndarray]:
    return {
        "azimuth": random.integers(0, 36, count) * 10,
        "elevation": random.integers(6, 15, count) * 5,
        "lighting": random.integers(0, 6, count),
    }


def test_what_is_there_linearly_is_found_and_noise_is_not():
    random = np.random.default_rng(0)
    truth, labels = attributes(1_500, random), np.arange(1_500) % 3
    angle = np.deg2rad(truth["azimuth"])
    linear = np.stack([np.cos(angle), np.sin(angle), truth["elevation"]], axis=1)
    linear = np.concatenate([linear, np.eye(6)[truth["lighting"]]], axis=1)
    # Each class has a mixture of its own, so one regression for all classes would fail.
    mixed = np.stack(
        [row @ mixture for row, mixture in zip(linear, random.normal(size=(3, 9, 12))[labels], strict=True)]
    )
    found = probe(mixed, truth, labels)
    assert found.values["azimuth"] < 1
    assert found.values["elevation"] < 0.1
    assert found.values["lighting"] > 0.99
    assert (found.dimensions, found.images) == (12, 1_500)
    nothing = probe(random.normal(size=(1_500, 12)), truth, labels).values
    assert 80 < nothing["azimuth"] < 100
    assert abs(nothing["elevation"] - np.abs(truth["elevation"] - truth["elevation"].mean()).mean()) < 1
    assert 0.1 < nothing["lighting"] < 0.25


def test_errors_of_angles_go_the_short_way_round():
    azimuths = np.array([350, 0, 10] * 40)
    found = probe(np.ones((120, 1)), {"azimuth": azimuths}, np.zeros(120, int))
    assert found.values["azimuth"] == pytest.approx(20 / 3, abs=0.5)


def test_groups_are_not_shared_by_training_and_test():
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 50)
    # The light is the same in all images of a group, and is known by the group alone.
    lighting = groups.copy()
    values = np.eye(4)[groups] + 0.01 * random.normal(size=(200, 4))
    assert probe(values, {"lighting": lighting}, np.zeros(200, int)).values["lighting"] == 1
    assert probe(values, {"lighting": lighting}, np.zeros(200, int), groups).values["lighting"] == 0
    with pytest.raises(DataError, match="one instance only"):
        probe(values, {"lighting": lighting}, np.zeros(200, int), np.zeros(200, int))
    with pytest.raises(DataError, match="a class has 1 images"):
        probe(values, {"lighting": lighting}, np.r_[1, np.zeros(199, int)])


def test_representations_are_the_networks():
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 12, 12), 3).eval()
    images = torch.randint(0, 256, (200, 1, 12, 12), dtype=torch.uint8)
    labels = torch.arange(200) % 3
    found = representations(model, ImageSplit(images, labels))
    with torch.no_grad():
        whole = model(images, intermediates=True)
    np.testing.assert_allclose(found["pose"], whole.poses[torch.arange(200), labels], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["all poses"], whole.poses.flatten(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["features"], whole.features.flatten(1), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found["pixels"], images.flatten(1) / 255, rtol=1e-6)
    with pytest.raises(ModelError, match="cnn has no poses to probe"):
        representations(create_model("cnn", (1, 12, 12), 3), ImageSplit(images, labels))


def test_a_gradient_of_light_in_the_images_is_found_by_pixels():
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    model = create_model("capsnet", (1, 12, 12), 2).eval()
    known = {"azimuth": np.where(np.arange(300) < 280, random.integers(0, 36, 300) * 10, -1)}
    angle = np.deg2rad(known["azimuth"])
    rows, columns = np.mgrid[-1:1:12j, -1:1:12j]
    images = 127 + 60 * (np.cos(angle)[:, None, None] * rows + np.sin(angle)[:, None, None] * columns)
    split = ImageSplit(torch.tensor(images[:, None]).byte(), torch.arange(300) % 2, attributes=known)
    found = probe_all(model, split, most=200)
    assert list(found) == ["pose", "all poses", "features", "pixels", "none"]
    assert {probe.images for probe in found.values()} == {200}
    assert found["pixels"].values["azimuth"] < 3
    assert found["none"].values["azimuth"] > 70
    assert probe_all(model, split)["pixels"].images == 280
    with pytest.raises(DataError, match="no viewpoints to probe"):
        probe_all(model, ImageSplit(split.images, split.labels))
