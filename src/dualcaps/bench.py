"""Speed on this machine: the short benchmark of `dualcaps bench` and code shared with benchmarks/.

Throughput is reported only after outputs match the plain implementation.
"""

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from dualcaps.config import Compile, ModelConfig, Precision
from dualcaps.data.batches import training_batches
from dualcaps.data.dataset import ImageSplit
from dualcaps.errors import ConfigError, DualcapsError
from dualcaps.inference import choose_device, choose_precision, predict
from dualcaps.losses import margin_loss, reconstruction_loss
from dualcaps.models import CNN, CapsNet, CapsOutput, Network, build_model, create_model
from dualcaps.nn import PositionVotes, PrimaryVotes
from dualcaps.training.step import TrainingStep

Candidates = Mapping[str, Callable[[], None]]
SHAPES = {"32x32x3": (3, 32, 32), "28x28x1": (1, 28, 28)}
_WEIGHT = 0.0005


class ParityError(DualcapsError):
    """Two implementations that should agree do not, so their speeds are not reported."""


@dataclass(frozen=True)
class Timing:
    """Durations of repeated runs.

    Attributes:
        seconds: one duration per run.
        items: number of items, such as images, processed in a run.
    """

    seconds: tuple[float, ...]
    items: int = 1

    @property
    def rate(self) -> float:
        """Items per second, the median of the runs."""
        return self.items / statistics.median(self.seconds)

    @property
    def slowest(self) -> float:
        """Items per second of the slowest run."""
        return self.items / max(self.seconds)

    @property
    def fastest(self) -> float:
        """Items per second of the fastest run."""
        return self.items / min(self.seconds)


class PlainCapsNet(nn.Module):
    """`capsnet` and `da-capsnet` as usually written in PyTorch: float32, one operation after another.

    Votes are computed by an einsum, logits start as a tensor of zeros and routing is the loop of the
    paper. The parameters have the same names and shapes as in this package, so that weights can be copied.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        config = self.config = network.config
        channels, height, width = config.image_shape
        classes, kernel = config.num_classes, 2 if min(height, width) < 32 else 3
        self.conv1, self.conv2 = nn.Conv2d(channels, 64, 3), nn.Conv2d(64, 64, 3)
        self.conv3, self.conv4 = nn.Conv2d(64, 128, kernel), nn.Conv2d(128, 128, kernel)
        self.transform = nn.Linear(128, classes * 16, bias=False)
        if config.conv_attention:
            self.conv_reduce, self.conv_expand = nn.Linear(128, 128), nn.Linear(128, 128)
        if config.caps_attention == "element":
            votes = network.get_submodule("caps_attention.expand").get_parameter("bias").numel()
            self.caps_reduce, self.caps_expand = nn.Linear(votes, classes * 16), nn.Linear(classes * 16, votes)
        if config.decoder:
            self.decoder = nn.Sequential(
                *(nn.Linear(classes * 16, 512), nn.ReLU(), nn.Linear(512, 1024), nn.Tanh()),
                *(nn.Linear(1024, channels * height * width), nn.Sigmoid()),
            )
        renamed = {}
        for name, weight in network.state_dict().items():
            name = name.replace("conv_attention.", "conv_").replace("caps_attention.", "caps_")
            renamed[name.replace("trunk.", "").replace("votes.", "").replace("layers.", "")] = weight
        self.load_state_dict(renamed)

    def forward(self, images: Tensor) -> CapsOutput:
        """Classify images."""
        x = torch.relu(self.conv1(images))
        x = torch.relu(self.conv2(x))
        x = nn.functional.avg_pool2d(x, 2)
        x = torch.relu(self.conv3(x))
        x = torch.relu(self.conv4(x))
        if self.config.conv_attention:
            gate = x.mean(dim=(2, 3))
            gate = torch.tanh(self.conv_expand(torch.relu(self.conv_reduce(gate))))
            x = x + x * gate[:, :, None, None]
        children = x.flatten(2).transpose(1, 2)
        transform = self.transform.weight.view(self.config.num_classes, 16, -1)
        votes = torch.einsum("jdq,bnq->bjnd", transform, children)
        if self.config.caps_attention == "element":
            gate = torch.tanh(self.caps_expand(torch.relu(self.caps_reduce(votes.flatten(1)))))
            votes = votes + votes * gate.view_as(votes)
        logits = torch.zeros(votes.shape[:3], device=votes.device)
        poses = votes[:, :, 0]
        for iteration in range(self.config.iterations):
            couplings = torch.softmax(logits, dim=1)
            poses = (couplings.unsqueeze(-1) * votes).sum(dim=2)
            square = (poses**2).sum(dim=-1, keepdim=True)
            poses = poses * square.sqrt() / (self.config.squash_constant + square)
            if iteration < self.config.iterations - 1:
                agreement = (votes * poses.unsqueeze(2)).sum(dim=-1)
                logits = logits + agreement if self.config.update == "accumulate" else agreement
        return CapsOutput(poses.norm(dim=-1), poses)

    def reconstruct(self, poses: Tensor, labels: Tensor) -> Tensor:
        """Decode the pose of the labelled class."""
        mask = nn.functional.one_hot(labels, self.config.num_classes).unsqueeze(-1)
        return self.decoder((poses * mask).flatten(1)).view(-1, *self.config.image_shape)


def random_split(shape: tuple[int, int, int], count: int, device: torch.device, classes: int = 10) -> ImageSplit:
    """Random images with random labels."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (count, *shape), dtype=torch.uint8, generator=generator)
    return ImageSplit(images, torch.randint(classes, (count,), generator=generator)).to(device)


def plain_training(network: Network, split: ImageSplit, batch_size: int) -> Callable[[], None]:
    """An epoch of plain PyTorch: images converted beforehand, float32 layers, default Adam."""
    model = PlainCapsNet(network).to(split.labels.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-7)
    images = split.images.float() / 255

    def epoch() -> None:
        loss = torch.zeros(())
        for chosen in torch.randperm(len(split), device=split.labels.device).split(batch_size):
            batch, labels = images[chosen], split.labels[chosen]
            output = model(batch)
            loss = margin_loss(output.lengths, labels)
            if model.config.decoder:
                loss = loss + _WEIGHT * reconstruction_loss(model.reconstruct(output.poses, labels), batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()

    return epoch


def our_training(
    network: Network, split: ImageSplit, batch_size: int, precision: Precision, compile: Compile
) -> Callable[[], None]:
    """An epoch as in `fit`, without augmentation; with compile="always" the first epoch compiles.

    The epoch raises ConfigError if compiling fails.
    """
    device = split.labels.device
    model = network.place(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3, eps=1e-7, fused=device.type in ("cpu", "cuda"))
    messages: list[str] = []
    step = TrainingStep(
        model,
        optimizer,
        batch_size=batch_size,
        steps=0,
        reconstruction_weight=_WEIGHT,
        bfloat16=precision == "bfloat16",
        compile=compile,
        log=messages.append,
    )
    generator = torch.Generator(device).manual_seed(0)

    def epoch() -> None:
        model.train()
        loss = torch.zeros(())
        for images, labels, *_ in training_batches(split, batch_size, None, generator):
            loss = step(images, labels).loss
        loss.item()
        if compile == "always" and not step.compiled:
            raise ConfigError(f"the training step is {messages[-1]}")

    return epoch


def check_parity(network: Network, device: torch.device, precision: Precision) -> None:
    """Compare lengths and a gradient with those of `PlainCapsNet` with the same weights.

    Raises:
        ParityError: they differ by more than rounding in this precision.
    """
    network = network.place(device).train()
    split = random_split(network.config.image_shape, 32, device, network.config.num_classes)
    found = []
    for model in (PlainCapsNet(network).to(device), network):
        images = split.images.float() / 255
        model.zero_grad()
        bfloat16 = model is network and precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
            lengths = model(images).lengths
        margin_loss(lengths, split.labels).backward()
        name = "votes.transform.weight" if model is network else "transform.weight"
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        found.append((lengths.detach(), gradient / gradient.norm()))
        model.zero_grad()
    most = 0.03 if precision == "bfloat16" else 1e-4
    for what, plain, ours in zip(("lengths", "gradients"), *found, strict=True):
        if not (apart := (plain - ours).abs().max().item()) <= most:
            raise ParityError(
                f"{network.config.name}: {what} differ by {apart:.2g} from plain PyTorch's: speeds are not reported"
            )


def interleave(
    candidates: Candidates, *, rounds: int = 5, items: int = 1, each: Callable[[], None] = lambda: None
) -> dict[str, Timing]:
    """Time each candidate once per round, after one warm-up run of each.

    Interleaving distributes other load on the machine evenly over the candidates. `each` is called after
    every run, to report progress.
    """
    for run in candidates.values():
        run()
        each()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
            each()
    return {name: Timing(tuple(times), items) for name, times in seconds.items()}


def matrix_rate(device: torch.device, number_type: torch.dtype, size: int = 4096) -> float:
    """Floating-point operations per second in a product of two square matrices, the median of five."""
    return matrix_product(device, number_type, size).rate


def matrix_product(device: torch.device, number_type: torch.dtype, size: int) -> Timing:
    """Durations of five products of two square matrices, with their floating-point operations as items."""
    one, other = (torch.randn(size, size, device=device).to(number_type) for _ in range(2))

    def multiply() -> None:
        torch.mm(one, other)
        _wait(device)

    return interleave({"mm": multiply}, items=2 * size**3)["mm"]


def copy_bandwidth(device: torch.device, megabytes: int = 512) -> float:
    """Bytes per second read and written by a large copy, the median of five."""
    source = torch.empty(megabytes << 20, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source).fill_(2)

    def copy() -> None:
        target.copy_(source)
        _wait(device)

    return interleave({"copy": copy}, items=2 * source.numel())["copy"].rate


def count_operations(config: ModelConfig) -> float:
    """Multiplications and additions of training on one image, in matrix products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode  # takes seconds to import

    with torch.device("meta"), torch.random.fork_rng([]):  # nothing is computed
        images, labels = torch.zeros(2, *config.image_shape), torch.zeros(2, dtype=torch.int64)
        model = build_model(config)
        with FlopCounterMode(display=False) as counter:
            output = model(images)
            loss = output.lengths.sum()
            if model.decoder is not None:
                loss = loss + model.reconstruct(output.poses, labels).sum()
            loss.backward()
    return counter.get_total_flops() / 2


def estimate_operations(model: Network) -> float:
    """An estimate of `count_operations` within 10 %, in milliseconds: three times the forward pass of trained layers.

    Args:
        model: built on the meta device, so that nothing is computed.
    """
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        weight = layer.get_parameter("weight")
        total += (3 if weight.requires_grad else 1) * 2 * weight[0].numel() * output.numel()

    # Behind the trunk of our own networks a layer's cost follows from how often it is applied, which is much faster
    # than running it; other networks are run as a whole, except for the decoder.
    part = model.trunk if isinstance(model, CapsNet | CNN) else model
    hooks = [layer.register_forward_hook(count) for layer in part.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    with torch.inference_mode():
        part.eval()(torch.zeros(1, *model.config.image_shape, device="meta"))
    for hook in hooks:
        hook.remove()
    behind = model.decoder if part is model else model
    applied = {"trunk": 0}
    if isinstance(model, CapsNet):
        applied["votes"] = model.votes.positions if isinstance(model.votes, PrimaryVotes) else model.num_children
        if model.config.caps_attention == "shared":
            applied["caps_attention"] = model.config.num_classes * model.num_children
    for name, layer in behind.named_modules() if behind is not None else ():
        if isinstance(layer, nn.Linear):
            total += 6 * layer.weight.numel() * applied.get(name.partition(".")[0], 1)
        elif isinstance(layer, PositionVotes | PrimaryVotes):
            total += 6 * layer.transform.numel()
    return float(total)


def peak_memory() -> float:
    """Peak memory of this process in megabytes."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, where getrusage counts the parent's memory too
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import psutil

    if (peak := getattr(psutil.Process().memory_info(), "peak_wset", None)) is not None:  # Windows
        return peak / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass(frozen=True)
class Line:
    """A line of the short benchmark: what was measured, how much of it, how far the runs were apart."""

    what: str
    value: float
    unit: str
    slowest: float
    fastest: float


def run_short(
    device: str = "auto", *, model: Literal["capsnet", "da-capsnet"] = "da-capsnet", batch_size: int = 128
) -> Iterator[Line]:
    """The short benchmark: training and prediction of one network in both image shapes.

    Yields:
        One line per measurement, as soon as it is done.

    Raises:
        ConfigError: the machine lacks the device.
        ParityError: the outputs differ from those of the plain network.
    """
    place = choose_device(device)
    precision = choose_precision("auto", place)
    rate = matrix_rate(place, getattr(torch, precision))
    yield Line(f"matrix product, {precision}", rate / 1e9, "GFLOP/s", rate / 1e9, rate / 1e9)
    for text, shape in SHAPES.items():
        torch.manual_seed(0)
        network = create_model(model, shape)
        check_parity(network, place, precision)
        split = random_split(shape, (200 if place.type == "cuda" else 10) * batch_size, place)
        ours, how = our_training(network, split, batch_size, precision, "always"), "compiled"
        try:
            ours()
        except ConfigError:
            ours, how = our_training(network, split, batch_size, precision, "never"), "eager, no compiler found"
        timings = interleave(
            {
                "plain PyTorch, float32": plain_training(network, split, batch_size),
                f"dualcaps, {precision}, {how}": ours,
                f"dualcaps predicts, {precision}": lambda m=network, p=split, s=precision: _predict(m, p, s),
            },
            items=len(split),
        )
        for name, timing in timings.items():
            yield Line(f"{model} {text}: {name}", timing.rate, "images/s", timing.slowest, timing.fastest)
        plain, fast, _ = timings.values()
        ratio = fast.rate / plain.rate
        yield Line(f"{model} {text}: dualcaps / plain PyTorch", ratio, "times", ratio, ratio)
        share = 100 * fast.rate * count_operations(network.config) / rate
        yield Line(f"{model} {text}: of the matrix rate", share, "%", share, share)
    yield Line("peak memory of this benchmark", peak_memory(), "MB", peak_memory(), peak_memory())


def _predict(network: Network, split: ImageSplit, precision: Precision) -> None:
    predict(network, split.images, precision=precision)


def check_routing_parity(
    fast: Callable[[Float[Tensor, "batch parents children dim"]], Float[Tensor, "batch parents dim"]],
    truth: Callable[[Float[Tensor, "batch parents children dim"]], Float[Tensor, "batch parents dim"]],
    votes: Float[Tensor, "batch parents children dim"],
    most: float,
) -> None:
    """Raise ParityError if two routing functions differ, forward or backward, by more than `most`."""
    found = []
    for route in (fast, truth):
        leaf = votes.clone().requires_grad_()
        poses = route(leaf)
        (gradient,) = torch.autograd.grad(poses.square().sum(), leaf)
        found.append((poses.detach().float(), gradient.float() / gradient.float().norm()))
    for one, other in zip(*found, strict=True):
        if not (apart := (one - other).abs().max().item()) <= most:
            raise ParityError(f"routing of {tuple(votes.shape)} votes differs by {apart:.2g}: speeds are not reported")
