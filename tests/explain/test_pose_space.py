"""Poses in two dimensions."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from dualcaps import DataError, ImageSplit, create_model
from dualcaps.explain.pose_space import pose_space, pose_space_figure


def test_poses_are_projected_and_drawn():
    torch.manual_seed(0)
    model = create_model("capsnet", (1, 12, 12), 3).eval()
    images = torch.randint(0, 256, (60, 1, 12, 12), dtype=torch.uint8)
    azimuths = np.arange(60) * 5
    split = ImageSplit(images, torch.arange(60) % 3, attributes={"azimuth": azimuths})
    space = pose_space(model, split)
    assert space.together.shape == space.own.shape == (60, 2)
    poses = model(images).poses.detach()[torch.arange(60), split.labels].numpy()
    components = PCA(2).fit(poses[1::3])
    np.testing.assert_allclose(space.own[1::3], components.transform(poses[1::3]), atol=1e-4)
    assert space.explained[1] == pytest.approx(components.explained_variance_ratio_.sum(), abs=1e-4)
    assert space.azimuths.tolist() == azimuths.tolist()
    figure = pose_space_figure(space, ("cup", "box", "duck"), most=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0] == "all poses by class, t-SNE"
    assert titles[1].startswith("cup: PCA, ")
    assert len([title for title in titles if "variance" in title]) == 2
    points = figure.axes[2].collections[0]
    np.testing.assert_allclose(points.get_offsets(), space.own[1::3], atol=1e-6)
    np.testing.assert_allclose(points.get_array(), azimuths[1::3])


def test_without_azimuths_only_the_classes_are_drawn():
    model = create_model("capsnet", (1, 12, 12), 3).eval()
    images = torch.randint(0, 256, (30, 1, 12, 12), dtype=torch.uint8)
    space = pose_space(model, ImageSplit(images, torch.arange(30) % 3), most=20)
    assert len(space.labels) == 20
    figure = pose_space_figure(space, ("cup", "box", "duck"))
    assert len(figure.axes) == 1
    assert sorted(text.get_text() for text in figure.axes[0].get_legend().get_texts()) == ["box", "cup", "duck"]
    with pytest.raises(DataError, match="4 images are too few"):
        pose_space(model, ImageSplit(images[:4], torch.arange(4) % 3))
