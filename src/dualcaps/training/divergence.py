"""Losses that are not finite or explode: training stops and says where."""

import math
import statistics

import torch
from jaxtyping import Float
from torch import Tensor

from dualcaps.data.batches import epoch_seed, places_of_batch
from dualcaps.data.dataset import ImageSplit
from dualcaps.errors import ConfigError
from dualcaps.training.callbacks import TrainingState

_CHECKED_AT_ONCE = 50  # losses on a GPU, which the host does not wait for in between
_FIRST = 10  # steps whose mean loss an exploding one is compared with
_EXPLODED = 1000.0  # times that mean
_NAMED = 5  # images of the batch


class LossWatch:
    """Checks the loss of each step; on a GPU of many steps at once.

    Args:
        state: of the training; the losses of its first steps are kept there, so that they count after a resumption.
        training: the training images.
    """

    def __init__(self, state: TrainingState, training: ImageSplit) -> None:
        self._device, self._training, self._config = state.team.device, training, state.config
        self._waiting: list[tuple[Tensor, int, int]] = []
        self._first = state.first_losses
        if state.history and not self._first:  # resumed without a checkpoint, or from one of an earlier version
            self._first += [state.history[0]["loss"]] * _FIRST

    def add(self, loss: Float[Tensor, ""], epoch: int, number: int) -> None:
        """Check a step's loss now or later.

        Args:
            loss: on the device.
            epoch, number: the step, counted from 1 within its epoch.

        Raises:
            ConfigError: this or an earlier loss is not finite, or has exploded.
        """
        self._waiting.append((loss, epoch, number))
        if len(self._waiting) >= (1 if self._device.type == "cpu" else _CHECKED_AT_ONCE):
            self.check()

    def check(self) -> None:
        """Check all losses that were not checked yet; raises as `add`."""
        if not self._waiting:
            return
        values = torch.stack([loss for loss, _, _ in self._waiting]).tolist()
        for value, (_, epoch, number) in zip(values, self._waiting, strict=True):
            if len(self._first) < _FIRST:
                self._first.append(value)
            limit = _EXPLODED * statistics.fmean(self._first)
            if not math.isfinite(value) or (len(self._first) == _FIRST and value > limit):
                raise ConfigError(self._message(value, epoch, number))
        self._waiting = []

    def _message(self, value: float, epoch: int, number: int) -> str:
        size, count = self._config.batch_size, len(self._training)
        assert size is not None
        generator = torch.Generator(self._device).manual_seed(epoch_seed(self._config.seed, epoch))
        places = places_of_batch(self._training, size, generator, number - 1)
        files = self._training.files
        named = ", ".join(files[place] if files else str(place) for place in places[:_NAMED])
        more = ", …" if len(places) > _NAMED else ""
        return (
            f"the loss is {value:.4g} in epoch {epoch}, step {number} of {math.ceil(count / size)}, training images "
            f"{named}{more}: lower the learning rate (--lr) or limit the gradient (--grad-clip)"
        )
