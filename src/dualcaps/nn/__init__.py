"""Layers with learned weights: the two attention modules, the votes, the decoder.

Weights start Glorot-uniform and biases at zero, as in Keras 2.2.4, but for `PositionVotes`.
"""

from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dualcaps.routing import squash as squash

CapsAttentionKind = Literal["element", "capsule", "shared"]
Gate = Literal["tanh", "sigmoid", "additive"]


def glorot_conv(inputs: int, outputs: int, kernel: int, *, stride: int = 1, padding: int | str = 0) -> nn.Conv2d:
    """A square 2-D convolution with bias, initialised as in Keras."""
    layer = (GreyConv if inputs == 1 else nn.Conv2d)(inputs, outputs, kernel, stride=stride, padding=padding)
    nn.init.xavier_uniform_(layer.weight)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer


class GreyConv(nn.Conv2d):
    """A convolution of images with one channel, for compiled code on the CPU padded to four.

    With one channel the compiler cannot tell channels last from first, and turns the gradient from
    one to the other and back, which takes longer than the convolution.
    """

    def forward(self, input: Float[Tensor, "batch 1 height width"]) -> Float[Tensor, "batch channels rows columns"]:
        """Convolve as `torch.nn.Conv2d` does."""
        if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or input.device.type != "cpu":
            return super().forward(input)
        channels = (0, 0, 0, 0, 0, 3)
        padded = nn.functional.pad(input, channels).contiguous(memory_format=torch.channels_last)
        return self._conv_forward(padded, nn.functional.pad(self.weight, channels), self.bias)


class Trunk(nn.Sequential):
    """Layers one after the other.

    Without gradients on the CPU a convolution and the ReLU behind it are one operation of oneDNN,
    which spares a walk through memory.
    """

    def forward(
        self, input: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features rows columns"]:
        """Run the layers."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _onednn_takes(input):
            return super().forward(input)
        layers = list(self)
        for layer, following in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.ReLU):
                assert not isinstance(layer.padding, str)
                input = torch.ops.mkldnn._convolution_pointwise(
                    *(input, layer.weight, layer.bias, layer.padding, layer.stride, layer.dilation, layer.groups),
                    *("relu", [], ""),
                )
            elif not isinstance(layer, nn.ReLU):
                input = layer(input)
        return input


def _onednn_takes(images: Tensor) -> bool:
    if images.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return False
    if images.dtype == torch.bfloat16:
        return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return images.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def glorot_linear(inputs: int, outputs: int, *, bias: bool = True) -> nn.Linear:
    """A fully connected layer, initialised as in Keras."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class ConvAttention(nn.Module):
    """Gate each channel by what the whole plane holds (Eqs. 8-12).

    `g = mean over the plane`, `a = tanh(W2 relu(W1 g + b1) + b2)`, output `u + u * a`. Both
    layers are as wide as the channels. The paper's text adds a where Eq. 11 adds u: Eq. 11.
    With the gate "sigmoid" it is squeeze and excitation (Hu et al. 2018) without its narrow
    middle: `a = sigmoid(…)`, output `u * a`. With "additive" the output is `u + a`: the same
    layers as a plain residual branch, to compare attention with.
    """

    def __init__(self, channels: int, gate: Gate = "tanh") -> None:
        super().__init__()
        self.kind_of_gate: Gate = gate
        self.reduce = glorot_linear(channels, channels)
        self.expand = glorot_linear(channels, channels)

    def gate(self, features: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels"]:
        """The gates a: a channel is multiplied by 1 + a, in (0, 2), or with "sigmoid" by a, in (0, 1).

        With "additive" they are in (-1, 1) and added.
        """
        return _open(self.kind_of_gate, self.expand(torch.relu(self.reduce(features.mean(dim=(2, 3))))))

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch channels height width"]:
        """Multiply each channel by what its gate says."""
        gates = self.gate(features)[:, :, None, None]
        if self.kind_of_gate == "additive":
            return features + gates
        return features * (gates if self.kind_of_gate == "sigmoid" else 1 + gates)


class CapsAttention(nn.Module):
    """Gate the votes by all votes together (Eqs. 13-16): output `u + u * a`.

    The paper gives no widths; `kind` names the reading:

    - "element": the votes as one vector, J*N*D -> J*D -> J*N*D, a gate for each number;
    - "capsule": J*N*D -> J*N -> J*N, one gate for each vote;
    - "shared": the same D -> D -> D for every vote, whatever their number.

    Each is two layers, ReLU then tanh. With the gate "sigmoid" the second ends in a sigmoid and
    the output is `u * a`, as in squeeze and excitation; with "additive" it is `u + a`, which is no
    attention but has the same layers.
    """

    def __init__(self, kind: CapsAttentionKind, parents: int, children: int, dim: int, gate: Gate = "tanh") -> None:
        super().__init__()
        votes, numbers = parents * children, parents * children * dim
        inputs, hidden, outputs = {
            "element": (numbers, parents * dim, numbers),
            "capsule": (numbers, votes, votes),
            "shared": (dim, dim, dim),
        }[kind]
        self.kind = kind
        self.kind_of_gate: Gate = gate
        self.reduce = glorot_linear(inputs, hidden)
        self.expand = glorot_linear(hidden, outputs)

    def gate(
        self, votes: Float[Tensor, "batch parents children dim"]
    ) -> Float[Tensor, "batch parents children gate_dim"]:
        """The gates a, in (-1, 1) or with "sigmoid" (0, 1); the last axis has size D, or 1 for "capsule"."""
        batch, parents, children, dim = votes.shape
        inputs = votes if self.kind == "shared" else votes.reshape(batch, -1)
        gates = _open(self.kind_of_gate, self.expand(torch.relu(self.reduce(inputs))))
        return gates.reshape(batch, parents, children, 1 if self.kind == "capsule" else dim)

    def forward(
        self, votes: Float[Tensor, "batch parents children dim"]
    ) -> Float[Tensor, "batch parents children dim"]:
        """Multiply the votes by what their gates say."""
        votes = votes.contiguous()  # once, instead of in each step of routing
        gates = self.gate(votes)
        if self.kind_of_gate == "additive":
            return votes + gates
        return votes * gates if self.kind_of_gate == "sigmoid" else torch.addcmul(votes, votes, gates)


def _open(kind: Gate, logits: Tensor) -> Tensor:
    return torch.sigmoid(logits) if kind == "sigmoid" else torch.tanh(logits)


class GridVotes(nn.Module):
    """Votes of the capsules of a feature map (Eq. 5), one weight matrix for all positions.

    Child i is the vector of channels at grid position (i // width, i % width). The map to the
    votes is linear, without bias and without a squash on the children.
    """

    def __init__(self, channels: int, parents: int, dim: int) -> None:
        super().__init__()
        self.parents, self.dim = parents, dim
        self.transform = glorot_linear(channels, parents * dim, bias=False)

    def child_vectors(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch children channels"]:
        """The vector of channels at each position."""
        return features.flatten(2).transpose(1, 2)

    def matrices(self) -> Float[Tensor, "parents dim channels"]:
        """What takes each child to its vote for each parent."""
        return self.transform.weight.unflatten(0, (self.parents, self.dim))

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch parents children dim"]:
        """Let the vector of channels at each position vote for each parent."""
        return self.transform(self.child_vectors(features)).unflatten(2, (self.parents, self.dim)).transpose(1, 2)


class PositionVotes(nn.Module):
    """Votes with a weight matrix for each (child, parent) pair, of the capsules of a feature map.

    Sabour et al. 2017: the channels at each grid position are `channels / child_dim` squashed
    capsules; child `(row * width + column) * types + type` has its own matrices.
    """

    def __init__(
        self, channels: int, positions: int, child_dim: int, parents: int, dim: int, squash_constant: float
    ) -> None:
        super().__init__()
        self.child_dim, self.parents, self.dim = child_dim, parents, dim
        self.squash_constant = squash_constant
        children = positions * channels // child_dim
        self.transform = nn.Parameter(torch.empty(children, child_dim, parents * dim))
        nn.init.trunc_normal_(self.transform, std=0.1, a=-0.2, b=0.2)  # as in the authors' code

    def forward(
        self, features: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch parents children dim"]:
        """Squash the primary capsules and let each vote for each parent."""
        children = features.permute(0, 2, 3, 1).reshape(features.shape[0], -1, self.child_dim)
        children = squash(children.to(torch.promote_types(children.dtype, torch.float32)), self.squash_constant)
        votes = torch.einsum("bni,nio->bno", children.to(self.transform.dtype), self.transform)
        return votes.unflatten(2, (self.parents, self.dim)).transpose(1, 2)


class Decoder(nn.Module):
    """Image from the pose of one class (Fig. 2): the other poses are zeroed.

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
        """Decode, in [0, 1], the pose that `labels` names in each sample."""
        kept = torch.nn.functional.one_hot(labels, poses.shape[1]).to(poses.dtype)
        return self.layers((poses * kept.unsqueeze(-1)).flatten(1)).unflatten(1, self.image_shape)
