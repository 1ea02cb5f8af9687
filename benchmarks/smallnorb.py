"""Why smallNORB stays behind the printed accuracy: the paper's preparation of its images, and others.

The paper's recipe, shrinking 96x96 pixels to 32x32, against what later work does (Hinton et al. 2018): every
image brought to one brightness and contrast, a closer look at the middle, both cameras. And against the same
images with dark for bright: they are bright all over, and ReLUs whose inputs are all large die in the first
steps. Runs are kept in runs/smallnorb and resumed.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import torch
from common import ROOT, Results, parse, place
from torch import Tensor, nn

from dualcaps import ImageDataset, ImageSplit, TrainConfig, create_model, fit, load_data, load_model
from dualcaps.models import CapsNet
from dualcaps.runs.run import read_metrics

SEED = 0
EPOCHS = 20


def even(images: Tensor) -> Tensor:
    """Each image with mean 128 and standard deviation 40; a flat one keeps its noise small."""
    pixels = images.float()
    mean, deviation = pixels.mean((1, 2, 3), keepdim=True), pixels.std((1, 2, 3), keepdim=True).clamp(min=4)
    return ((pixels - mean) / deviation * 40 + 128).round().clamp(0, 255).to(torch.uint8)


def inverted(images: Tensor) -> Tensor:
    """Dark for bright."""
    return 255 - images


def middle(images: Tensor) -> Tensor:
    """The middle 32x32 of 48x48 pixels."""
    return images[:, :, 8:40, 8:40].contiguous()


def closer(images: Tensor) -> Tensor:
    """Both."""
    return even(middle(images))


CASES: dict[str, tuple[int, Literal["left", "both"], Callable[[Tensor], Tensor] | None]] = {
    "as the paper: 32x32": (32, "left", None),
    "32x32, dark for bright": (32, "left", inverted),
    "32x32, even brightness and contrast": (32, "left", even),
    "48x48, the middle 32x32": (48, "left", middle),
    "48x48, the middle 32x32, even": (48, "left", closer),
    "the same, both cameras": (48, "both", closer),
}
"""Pixels of a side, camera, what is done to the images."""


def change(data: ImageDataset, how: Callable[[Tensor], Tensor]) -> ImageDataset:
    """The data set with all its images changed."""
    parts = {
        name: ImageSplit(how(part.images), part.labels)
        for name, part in (("train", data.train), ("validation", data.validation), ("test", data.test))
    }
    return dataclasses.replace(data, **parts)


@torch.no_grad()
def live_channels(model: CapsNet, images: Tensor) -> float:
    """How many of the channels behind the trunk's ReLUs are above zero anywhere in any of some images, in %."""
    images = model.prepare(images[:512].float() / 255)
    live = []
    for layer in model.trunk:
        images = layer(images)
        if isinstance(layer, nn.ReLU):
            live.append(images.amax((0, 2, 3)) > 0)
    return 100 * torch.cat(live).float().mean().item()


def main() -> None:
    """Train `da-capsnet` once each way, protocol `paper`."""
    options = parse(__doc__ or "")
    results = Results("smallnorb", options.out, place(options.device))
    for number, (case, (size, camera, how)) in enumerate(CASES.items()):
        data = load_data("smallnorb", image_size=(size, size), camera=camera)
        data = change(data, how) if how else data
        official = "official files" if data.provenance["official"] else "not the official files"
        torch.manual_seed(SEED)
        model = create_model("da-capsnet", data.image_shape, len(data.classes))
        config = TrainConfig(epochs=EPOCHS, protocol="paper", seed=SEED, device=options.device)
        folder = ROOT / "runs" / "smallnorb" / str(number)
        result = fit(model, data, config, out=folder, resume=True)
        case = f"{case} ({official}, {EPOCHS} epochs)"
        results.add(case, "da-capsnet", "best epoch", 100 * result.test_accuracy, "% of the test images")
        last = read_metrics(folder)[-1]["test_accuracy"]
        results.add(case, "da-capsnet", "last epoch", 100 * last, "% of the test images")
        trained = load_model(folder, "cpu")
        assert isinstance(trained, CapsNet)
        results.add(case, "da-capsnet", "live channels", live_channels(trained, data.test.images), "%")


if __name__ == "__main__":
    main()
