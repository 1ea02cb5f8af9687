"""Several processes that train one network: started by torchrun, one per GPU or per share of the cores.

Each process takes its share of every batch; gradients are averaged by torch's DistributedDataParallel. The first
process alone reads and writes the run folder.
"""

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from dualcaps.data.dataset import ImageSplit
from dualcaps.errors import DualcapsError, RunError

_T = TypeVar("_T")
_TIMEOUT = datetime.timedelta(hours=2)  # the others wait while the first process compiles, evaluates and writes
_LOST = ("closed by peer", "reset by peer", "broken pipe", "connection refused", "timed out", "timeout")


class Team:
    """The processes of a training and this one's place among them.

    Attributes:
        rank: this process's number, from 0.
        size: how many there are.
        device: that this process trains on.
    """

    def __init__(self, device: torch.device, rank: int = 0, size: int = 1) -> None:
        self.device, self.rank, self.size = device, rank, size

    @property
    def leads(self) -> bool:
        """Whether this is the first process."""
        return self.rank == 0

    def lead(self, work: Callable[[], _T]) -> _T:
        """Let the first process work; all get the result, or its error."""
        if self.size == 1:
            return work()
        outcome: list[Any] = [None, None]
        if self.leads:
            try:
                outcome = [work(), None]
            except (DualcapsError, OSError) as error:
                dist.broadcast_object_list([None, error])
                raise
        dist.broadcast_object_list(outcome)
        if outcome[1] is not None:
            outcome[1].reported = True  # by the first process
            raise outcome[1]
        return outcome[0]

    def share_of(self, count: int) -> int:
        """How many of so many images of a batch this process takes."""
        return (count - self.rank + self.size - 1) // self.size

    def share(self, count: int) -> slice:
        """Which of so many images of a batch this process takes; the first, with weight 0, if there are too few."""
        if self.share_of(count) == 0:
            return slice(0, 1)
        first = self.rank * (count // self.size) + min(self.rank, count % self.size)
        return slice(first, first + self.share_of(count))

    def weight(self, count: int) -> float:
        """The weight of this process's mean loss over a batch of so many images in the mean over all processes."""
        return self.share_of(count) * self.size / count

    def part(self, split: ImageSplit) -> ImageSplit:
        """This process's part of images to evaluate."""
        return split.part(self.rank, self.size)

    def totals(self, loss: Tensor, correct: Tensor, images: int) -> tuple[Tensor, Tensor]:
        """Sums over all processes of the loss times the images, and of the correct predictions."""
        if self.size == 1:
            return loss * images, correct
        sums = torch.stack([loss.double() * images, correct.double() * (images > 0)])
        dist.all_reduce(sums)
        return sums[0].to(loss.dtype), sums[1].to(correct.dtype)

    def mean(self, value: float, images: int) -> float:
        """The mean over all processes, weighted by their images."""
        if self.size == 1:
            return value
        sums = torch.tensor([value * images, images], dtype=torch.float64, device=self.device)
        dist.all_reduce(sums)
        return float(sums[0] / sums[1])

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        flags = torch.tensor(float(flag), device=self.device)
        dist.all_reduce(flags)
        return bool(flags > 0)

    def equalise(self, model: nn.Module) -> None:
        """Give all processes the first one's buffers, such as the averages of BatchNorm."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)


@contextmanager
def joined(device: torch.device) -> Iterator[Team]:
    """Join the processes that torchrun started; a team of one without it.

    Raises:
        RunError: another process has ended, or cannot be reached.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1 and not dist.is_initialized():
        yield Team(device)
        return
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    own = not dist.is_initialized()
    if own:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Team(device, dist.get_rank(), dist.get_world_size())
        dist.barrier()  # none leaves while another still receives from it
    except RuntimeError as error:
        if not any(words in str(error).lower() for words in _LOST):
            raise
        raise RunError("another process of this training has ended: start all of them again with --resume") from error
    finally:
        if own:
            dist.destroy_process_group()
