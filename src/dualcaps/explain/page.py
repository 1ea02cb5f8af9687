"""One self-contained HTML page: images with maps, lengths, routing, and a slider for each dimension of the pose."""

import base64
import json
from collections.abc import Collection, Sequence
from importlib import resources
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dualcaps.errors import DataError
from dualcaps.explain.credit import on_grid
from dualcaps.explain.maps import MAPS, explain, usable_maps
from dualcaps.models import Network
from dualcaps.nn import to_unit_range, training_mode

PAGE_MAPS = tuple(kind for kind in MAPS if kind != "random")
"""The kinds of maps on a page."""

_EXPLAINED_AT_ONCE = 32  # pairs of an image and a class
_LARGEST_MAP = 64  # rows and columns of a map that is kept in the page
_ACTIVATIONS: dict[type[nn.Module], str] = {nn.ReLU: "relu", nn.Tanh: "tanh", nn.Sigmoid: "sigmoid"}


class Subject(NamedTuple):
    """A network on the page.

    title: heads its column.
    about: a line below the title.
    model: the network.
    images: those to explain, brought to its shape.
    ranges: the lowest and highest value of each dimension of each class's pose, for the sliders; None for ±0.25.
    """

    title: str
    about: str
    model: Network
    images: UInt8[Tensor, "images channels height width"]
    ranges: Float[Tensor, "classes 2 dim"] | None = None


def explanation_page(
    subjects: Sequence[Subject],
    names: Sequence[str],
    *,
    kinds: Collection[str] = PAGE_MAPS,
    with_decoders: bool = True,
) -> str:
    """The page, as HTML that needs no other file and no network.

    Kinds of maps that a network lacks the parts for are left out, and so are routing and decoder.

    Args:
        subjects: one network, or several side by side; all with the same images.
        names: of the images.
        kinds: the kinds of maps, of which each network needs the parts for at least one.
        with_decoders: keep the decoders' weights, nearly all of its size, in the page. Otherwise it is for a frame: it
            sends `{wanted: "decoders"}` to the window around it and expects `{decoders: [...]}`, the layers of each
            network by `decoder_layers`.

    Raises:
        DataError: no images, or not as many as names.
    """
    for subject in subjects:
        if not len(names) or len(subject.images) != len(names):
            raise DataError(f"{len(subject.images)} images for {len(names)} names: a page needs at least one image")
    data = {"runs": [_describe(subject, names, kinds, with_decoders) for subject in subjects]}
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    template = resources.files("dualcaps.explain").joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("__DATA__", text)


def decoder_layers(model: Network) -> list[dict[str, Any]] | None:
    """The decoder for the page: its fully connected layers in half precision, each with the activation after it.

    None for a network without one.
    """
    if model.decoder is None:
        return None
    modules = list(model.decoder.layers)
    described = []
    for linear, activation in zip(modules[::2], modules[1::2], strict=True):
        assert isinstance(linear, nn.Linear)
        described.append(
            {
                "weight": _text(linear.weight.detach().half().cpu().numpy()),
                "bias": _text(linear.bias.detach().half().cpu().numpy()),
                "outputs": linear.out_features,
                "columns": linear.in_features,
                "activation": _ACTIVATIONS[type(activation)],
            }
        )
    return described


def _describe(subject: Subject, names: Sequence[str], kinds: Collection[str], with_decoder: bool) -> dict[str, Any]:
    model = subject.model
    batch = to_unit_range(subject.images.to(next(model.parameters()).device))
    maps = {kind: _maps(model, batch, kind) for kind in usable_maps(model) if kind in kinds}
    with training_mode(model, False), torch.no_grad():
        parts = model(batch, intermediates=True)
    entries = []
    for number, name in enumerate(names):
        entry: dict[str, Any] = {
            "name": name,
            "pixels": _text(subject.images[number].cpu().numpy()),
            "lengths": [round(length, 5) for length in parts.lengths[number].tolist()],
            "maps": {kind: _quantised(found[:, number]) for kind, found in maps.items()},
        }
        if parts.gated_votes is not None:
            entry["poses"] = _text(parts.poses[number].float().cpu().numpy())
            if parts.iterations and parts.features is not None:
                entry["routing"] = _routing(parts, number)
        entries.append(entry)
    decoder = None
    if model.decoder is not None and parts.gated_votes is not None:
        decoder = decoder_layers(model) if with_decoder else True
    return {
        "title": subject.title,
        "about": subject.about,
        "classes": model.classes,
        "shape": model.config.image_shape,
        "kinds": list(maps),
        "entries": entries,
        "ranges": None if subject.ranges is None else [[_rounded(side) for side in pair] for pair in subject.ranges],
        "decoder": decoder,
    }


def _maps(model: Network, images: Tensor, kind: str) -> Float[Tensor, "classes images height width"]:
    """Maps of all classes."""
    classes = model.config.num_classes
    labels = torch.arange(classes, device=images.device).repeat_interleave(len(images))
    repeated = images.repeat(classes, 1, 1, 1)
    parts = zip(repeated.split(_EXPLAINED_AT_ONCE), labels.split(_EXPLAINED_AT_ONCE), strict=True)
    maps = torch.cat([explain(model, part, of_part, kind).float().cpu() for part, of_part in parts])
    return maps.unflatten(0, (classes, len(images)))


def _quantised(maps: Float[Tensor, "classes height width"]) -> dict[str, Any]:
    """Maps of one image as signed bytes of one scale for all classes, reduced to at most 64x64."""
    rows, columns = (min(side, _LARGEST_MAP) for side in maps.shape[1:])
    maps = nn.functional.interpolate(maps.unsqueeze(1), (rows, columns), mode="area").squeeze(1)
    most = maps.abs().max().clamp(min=1e-30)
    return {"rows": rows, "columns": columns, "maps": _text((maps / most * 127).round().to(torch.int8).numpy())}


def _routing(parts: Any, number: int) -> dict[str, Any]:
    couplings = [on_grid(step.couplings, parts.features)[number].float().cpu() for step in parts.iterations]
    stacked = torch.stack(couplings)
    return {
        "rows": stacked.shape[2],
        "columns": stacked.shape[3],
        "most": float(stacked.max()),
        "couplings": _text(stacked.numpy()),
        "lengths": [_rounded(step.parents[number].norm(dim=-1)) for step in parts.iterations],
    }


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 5) for value in values.tolist()]


def _text(values: np.ndarray) -> str:
    """The bytes of an array, little-endian, in base 64."""
    array = np.ascontiguousarray(values)
    return base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode("ascii")
