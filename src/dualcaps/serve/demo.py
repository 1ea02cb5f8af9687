"""The demo: a web page on which to draw, upload or choose an image and see what the capsules of one or two runs see."""

import base64
import functools
import html
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFilter

from dualcaps.data.images import check_channels, read_image
from dualcaps.errors import ConfigError, DataError, DualcapsError
from dualcaps.explain.page import PAGE_MAPS, Subject, decoder_layers, explanation_page

if TYPE_CHECKING:
    import gradio

LARGEST_UPLOAD = 64 * 2**20
"""Bytes of an uploaded file."""

_THICKENED = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08)  # the strokes of a drawing to both sides, as shares of its side
_MAPS = tuple(kind for kind in PAGE_MAPS if kind != "smoothgrad")  # which takes most of the time of a page
_FRAME = 'style="width:100%;height:1200px;border:0" sandbox="allow-scripts"'
_SIDE = 280  # pixels of the square to draw into; a stroke is as thick in it as MNIST's are
_CANVAS = f"""
<canvas width="{_SIDE}" height="{_SIDE}" role="img" aria-label="Square to draw into with the mouse or a finger"
  style="background:#fff; border:1px solid #8888; border-radius:4px; touch-action:none; cursor:crosshair"></canvas>
<p><button type="button" style="border:1px solid #8888; border-radius:6px; padding:4px 12px">Clear</button></p>
"""
_DRAW = """
const canvas = element.querySelector("canvas"), context = canvas.getContext("2d");
Object.assign(context, { lineWidth: 20, lineCap: "round", lineJoin: "round", strokeStyle: "#111" });
const place = event => [event.offsetX, event.offsetY].map(pixels => pixels * canvas.width / canvas.clientWidth);
canvas.addEventListener("pointerdown", event => {
  canvas.setPointerCapture(event.pointerId);
  context.beginPath(); context.moveTo(...place(event)); context.lineTo(...place(event)); context.stroke();
});
canvas.addEventListener("pointermove", event => {
  if (event.buttons) { context.lineTo(...place(event)); context.stroke(); }
});
canvas.addEventListener("pointerup", () => { props.value = canvas.toDataURL("image/png"); });
element.querySelector("button").addEventListener("click", () => {
  context.clearRect(0, 0, canvas.width, canvas.height);
  props.value = "";
});
"""
_ANSWER_FRAME = """
let decoders;
window.addEventListener("message", async event => {
  const frame = element.querySelector("iframe");
  if (!frame || event.source !== frame.contentWindow) return;
  if (event.data.height) frame.style.height = `${event.data.height}px`;
  if (event.data.wanted === "decoders") {
    decoders ??= server.decoders();
    event.source.postMessage({ decoders: await decoders }, "*");
  }
});
"""


class Style(NamedTuple):
    """How the images of a data set are drawn, so that a drawing can be made alike.

    dark: whether they are bright on a dark background.
    fill: the share of the image's side that a drawing takes, 0 to 1.
    ink: the mean difference from the background, 0 to 1.
    """

    dark: bool = True
    fill: float = 20 / 28  # of MNIST
    ink: float = 0.1


def style_of(images: torch.Tensor) -> Style:
    """The style of images [N, C, H, W]; of none MNIST's.

    The background is taken from the borders: dark if their mean is below the middle of the range.
    """
    if not len(images):
        return Style()
    grey = images.float().mean(dim=1) / 255
    borders = (grey[:, 0], grey[:, -1], grey[..., 0], grey[..., -1])
    dark = float(torch.cat([border.flatten() for border in borders]).mean()) < 0.5
    ink = grey if dark else 1 - grey
    marked = ink > ink.amax((1, 2), keepdim=True) / 2
    extents = [
        torch.maximum(rows.sum(), columns.sum()) for rows, columns in zip(marked.any(2), marked.any(1), strict=True)
    ]
    return Style(dark, float(torch.stack(extents).median()) / max(grey.shape[1:]), float(ink.mean()))


def image_of_strokes(strokes: np.ndarray, style: Style) -> bytes:
    """A drawing as a PNG file, centred in a square and as large and as thick as the data set's.

    Args:
        strokes: how opaque each pixel is, [height, width], 0 to 255.
        style: of the data set's images.

    Raises:
        DataError: nothing is drawn.
    """
    rows, columns = np.flatnonzero(strokes.any(axis=1)), np.flatnonzero(strokes.any(axis=0))
    if not len(rows):
        raise DataError("nothing is drawn yet: draw into the square")
    drawn = strokes[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    side = round(max(drawn.shape) / min(max(style.fill, 0.2), 1))
    top, left = ((side - length) // 2 for length in drawn.shape)
    square = np.zeros((side, side), np.uint8)
    square[top : top + drawn.shape[0], left : left + drawn.shape[1]] = drawn
    thick = square
    for share in _THICKENED:  # the thinnest stroke that has the data set's ink
        if thick.mean() / 255 >= style.ink:
            break
        reach = max(1, round(share * side))
        wide = Image.fromarray(square).filter(ImageFilter.MaxFilter(2 * reach + 1))
        thick = np.asarray(wide.filter(ImageFilter.GaussianBlur(reach)))
    return _png(thick if style.dark else 255 - thick)


def with_image(subject: Subject, content: bytes, name: str) -> Subject:
    """A network with one image to explain, read from the content of an image file.

    Raises:
        DataError: it cannot be read.
    """
    shape = subject.model.config.image_shape
    check_channels(shape[0])
    pixels = read_image(content, shape, name, subject.model.value_range)
    return subject._replace(images=torch.tensor(pixels).unsqueeze(0))


def explanation_frame(subjects: Sequence[Subject], name: str) -> str:
    """The page of explanations of one image as an inline frame."""
    page = html.escape(explanation_page(subjects, [name], kinds=_MAPS, with_decoders=False))
    return f'<iframe title="Explanation of {html.escape(name)}" {_FRAME} srcdoc="{page}"></iframe>'


def require_gradio() -> Any:
    """The module `gradio`, with its telemetry switched off.

    Raises:
        ConfigError: it is not installed.
    """
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    try:
        import gradio
    except ImportError as error:
        raise ConfigError("dualcaps demo needs Gradio: pip install 'dualcaps[demo]'") from error
    return gradio


def build_demo(subjects: Sequence[Subject], names: Sequence[str]) -> "gradio.Blocks":
    """The demo as Gradio's blocks, to launch or to mount.

    Args:
        subjects: one or two networks; the images of the first, if it has any, are offered to choose from.
        names: of these images.

    Raises:
        ConfigError: Gradio is not installed.
    """
    gr = require_gradio()
    first = subjects[0]
    style = style_of(first.images)
    layers = [decoder_layers(subject.model) for subject in subjects]

    def decoders(_: list[Any]) -> list[list[dict[str, Any]] | None]:
        """The decoders, which a browser asks for once: they are a hundred times as large as an explanation."""
        return layers

    def explain(content: bytes, name: str) -> str:
        return explanation_frame([with_image(subject, content, name) for subject in subjects], name)

    @_with_message
    def explain_drawing(drawn: str | None) -> str:
        return explain(image_of_strokes(_strokes(drawn), style), "drawing") if drawn else ""

    @_with_message
    def explain_upload(path: str | None) -> str:
        return explain(Path(path).read_bytes(), Path(path).name) if path else ""

    @_with_message
    def explain_chosen(number: int | None) -> str:
        if number is None:
            return ""
        image, name = first.images[number], names[number]
        others = [with_image(subject, _png(_shown(image)), name) for subject in subjects[1:]]
        return explanation_frame([first._replace(images=image.unsqueeze(0)), *others], name)

    with gr.Blocks(title="dualcaps", analytics_enabled=False, delete_cache=(600, 600)) as demo:
        gr.Markdown("# dualcaps\nDraw, upload or choose an image, and see what the capsules see in it.")
        with gr.Tab("Choose", visible=bool(names)):
            choices = [(name, number) for number, name in enumerate(names)]
            chosen = gr.Dropdown(choices, value=0 if names else None, label="A test image", elem_id="choose")
        with gr.Tab("Draw"):
            drawing = gr.HTML(html_template=_CANVAS, js_on_load=_DRAW, elem_id="draw")
        with gr.Tab("Upload"):
            limit = f"an image file of at most {LARGEST_UPLOAD // 2**20} MB"
            upload = gr.File(label=f"Upload {limit}", type="filepath", elem_id="upload")
        shown = gr.HTML(js_on_load=_ANSWER_FRAME, server_functions=[decoders], elem_id="explanation")
        for event, function, source in (
            (demo.load, explain_chosen, chosen),
            (chosen.input, explain_chosen, chosen),
            (drawing.change, explain_drawing, drawing),
            (upload.change, explain_upload, upload),
        ):
            event(
                function,
                source,
                shown,
                trigger_mode="always_last",
                concurrency_id="explain",  # networks are not used by two threads at once
                show_progress="minimal",  # the full one is animated, which takes a core from the network
                api_visibility="private",
            )
    return demo


def launch(demo: "gradio.Blocks", host: str, port: int | None) -> str:
    """Serve the demo in the background until it is closed; returns its address.

    Args:
        demo: the result of `build_demo`.
        host: the address to listen on; 127.0.0.1 is reachable from this machine only.
        port: the port; by default the first free one from 7860.

    Raises:
        ConfigError: the address or port cannot be used.
    """
    gr = require_gradio()
    os.environ.setdefault("GRADIO_TEMP_DIR", tempfile.mkdtemp(prefix="dualcaps-demo-"))
    system = ["system-ui", "sans-serif"]
    try:
        _, address, _ = demo.launch(
            prevent_thread_lock=True,
            server_name=host,
            server_port=port,
            share=False,
            quiet=True,
            ssr_mode=False,
            max_file_size=LARGEST_UPLOAD,
            theme=gr.themes.Default(font=system, font_mono=["monospace"]),
            footer_links=[],
            enable_monitoring=False,
        )
    except OSError as error:
        raise ConfigError(f"--host {host}, --port {port or 'any'}: cannot listen there: {error}") from error
    return address


def _shown(image: torch.Tensor) -> np.ndarray:
    """An image [C, H, W] as it is shown: in colour, or of other than three channels the first in grey."""
    return (image.permute(1, 2, 0) if image.shape[0] == 3 else image[0]).cpu().numpy()


def _png(pixels: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def _strokes(drawn: str) -> np.ndarray:
    """How opaque each pixel of the canvas is, from the PNG file that the page sends as a data URL."""
    try:
        content = base64.b64decode(drawn.removeprefix("data:image/png;base64,"), validate=True)
        with Image.open(io.BytesIO(content), formats=["PNG"]) as image:
            if image.size != (_SIDE, _SIDE):
                raise ValueError(f"{image.width}x{image.height} pixels")
            return np.asarray(image.convert("RGBA"))[..., 3]
    except (ValueError, OSError, SyntaxError) as error:
        raise DataError(f"the drawing cannot be read ({error}): clear the square and draw again") from error


def _with_message(explain: Callable[[Any], str]) -> Callable[[Any], str]:
    """The function, returning the message of an error that a user can do something about."""

    @functools.wraps(explain)
    def explain_or_say(value: Any) -> str:
        try:
            return explain(value)
        except (DualcapsError, OSError) as error:
            return f'<p role="alert">{html.escape(str(error))}</p>'

    return explain_or_say
