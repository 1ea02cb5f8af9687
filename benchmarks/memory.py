"""Peak memory of training or routing in a process of its own; prints megabytes.

`memory.py training NETWORK DECODER SHAPE BATCH plain|ours DEVICE` or
`memory.py routing BATCH PARENTS CHILDREN votes|children DEVICE`.
"""

import sys
from collections.abc import Callable

import torch

from dualcaps import create_model
from dualcaps.bench import SHAPES, our_training, peak_memory, plain_training, random_split
from dualcaps.inference import choose_device, choose_precision
from dualcaps.routing import route, route_children


def training(network: str, decoder: str, shape: str, batch: str, how: str, device: str) -> Callable[[], None]:
    """Three steps."""
    place, size = choose_device(device), int(batch)
    model = create_model(network, SHAPES[shape], decoder=decoder == "True").to(place)
    part = random_split(SHAPES[shape], 3 * size, place)
    if how == "plain":
        return plain_training(model, part, size)
    return our_training(model, part, size, choose_precision("auto", place), "never" if how == "eager" else "always")


def routing(batch: str, parents: str, children: str, how: str, device: str) -> Callable[[], None]:
    """Forward and backward once."""
    place = choose_device(device)
    vectors = torch.randn(int(batch), int(children), 128, device=place, requires_grad=True)
    transform = torch.randn(int(parents), 16, 128, device=place).mul_(0.1).requires_grad_()

    def run() -> None:
        if how == "children":
            poses = route_children(vectors, transform).parents
        else:
            poses = route(torch.einsum("jdq,bnq->bjnd", transform, vectors)).parents
        poses.square().sum().backward()

    return run


if __name__ == "__main__":
    work, *arguments = sys.argv[1:]
    device = torch.device(arguments[-1])
    run = (training if work == "training" else routing)(*arguments)
    run()
    print(torch.cuda.max_memory_allocated() / 2**20 if device.type == "cuda" else peak_memory())
