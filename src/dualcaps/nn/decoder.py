"""The decoder that reconstructs an image from one class's pose."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualcaps.nn.layers import glorot_linear


class Decoder(nn.Module):
    """Reconstruct an image from the pose of one class (Fig. 2); the other poses are set to zero.

    Fully connected 512 ReLU, 1024 tanh, then a sigmoid for each value of the image.
    """

    def __init__(self, parents: int, dim: int, image_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.image_shape = image_shape
        self.layers = nn.Sequential(
            glorot_linear(parents * dim, 512),
            nn.ReLU(),
            glorot_linear(512, 1024),
            nn.Tanh(),
            glorot_linear(1024, channels * height * width),
            nn.Sigmoid(),
        )

    def forward(
        self, poses: Float[Tensor, "batch parents dim"], labels: Int[Tensor, "batch"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Decode the pose of the labelled class of each sample; values in [0, 1]."""
        kept = torch.nn.functional.one_hot(labels, poses.shape[1]).to(poses.dtype)
        return self.layers((poses * kept.unsqueeze(-1)).flatten(1)).unflatten(1, self.image_shape)
