"""Export to ONNX, for onnxruntime and what is built on it."""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from dualcaps.errors import ConfigError, RunError, one_line
from dualcaps.export.graphs import Classifier, Graph, Reconstruction, compare, exporting, on_cpu, poses_of
from dualcaps.models import Network
from dualcaps.runs.files import write_bytes

_EXAMPLES = 2  # with one, the exporter takes the batch for a constant
_CALIBRATED_ON = 200  # images
_EVALUATED_AT_ONCE = 128
_QUANTISED = ("Conv", "MatMul", "Gemm")


class OnnxFiles(NamedTuple):
    """What was written.

    classifier: uint8 images to lengths and poses.
    decoder: poses and class numbers to images; None for a network without a decoder.
    difference: the largest between the network's outputs and the files', before quantisation.
    """

    classifier: Path
    decoder: Path | None
    difference: float


def export_onnx(
    model: Network,
    file: Path,
    images: Tensor,
    *,
    metadata: Mapping[str, Any],
    int8: bool = False,
    calibration: Tensor | None = None,
) -> OnnxFiles:
    """Write a network as an ONNX file, and its decoder beside it as `NAME-decoder.onnx`.

    The classifier takes uint8 images [batch, channels, height, width] of the network's size.

    Args:
        model: the network; it is moved to the CPU.
        file: the file to write, ending in .onnx.
        images: real images, uint8, to compare on.
        metadata: stored in the files, text or what JSON can hold.
        int8: whether convolutions and matrix products of the classifier are quantised to 8 bits.
        calibration: uint8 images that the ranges of the activations are taken from; needed for `int8`.

    Raises:
        ConfigError: onnx, onnxscript or onnxruntime is not installed.
        ModelError: torch cannot export the network, or an export differs from it by more than 1e-4; nothing is
            written then.
    """
    _require()
    model, images = on_cpu(model, images)
    with tempfile.TemporaryDirectory(prefix="dualcaps-") as folder:
        draft = Path(folder) / "classifier.onnx"
        classifier = Classifier(model)
        _export(
            classifier, (images[:1].repeat(_EXAMPLES, 1, 1, 1),), ("images",), ("lengths", "poses"), draft, str(file)
        )
        difference = compare(load_graph(draft), classifier, [images], str(file))
        if int8:
            assert calibration is not None
            draft = _quantise(draft, calibration[:_CALIBRATED_ON].cpu().numpy())
        content = _with_metadata(draft, metadata)
        decoder, decoded = None, b""
        if model.decoder is not None:
            decoder = file.with_name(f"{file.stem}-decoder.onnx")
            poses, labels = poses_of(model, images[:64])
            draft = Path(folder) / "decoder.onnx"
            example = (poses[:1].repeat(_EXAMPLES, 1, 1), labels[:1].repeat(_EXAMPLES))
            _export(Reconstruction(model), example, ("poses", "labels"), ("images",), draft, str(decoder))
            difference = max(
                difference, compare(load_graph(draft), Reconstruction(model), [poses, labels], str(decoder))
            )
            decoded = _with_metadata(draft, metadata)
    write_bytes(file, content)
    if decoder is not None:
        write_bytes(decoder, decoded)
    return OnnxFiles(file, decoder, difference)


def load_graph(file: Path) -> Graph:
    """An ONNX file as a function of arrays, run by onnxruntime on the CPU.

    Raises:
        RunError: the file is missing or damaged; the function, if what it computes cannot be.
    """
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # errors are raised, not printed too
    try:
        session = onnxruntime.InferenceSession(
            str(file), settings, providers=["CPUExecutionProvider"], enable_fallback=0
        )
    except Exception as error:  # it raises errors of its own
        raise RunError(f"{file}: not an ONNX file that can be run ({one_line(error)}): export it again") from error
    names = [part.name for part in session.get_inputs()]

    def run(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
        try:
            return [np.asarray(output) for output in session.run(None, dict(zip(names, inputs, strict=True)))]
        except Exception as error:
            raise RunError(f"{file}: cannot be run ({one_line(error)}): export it again") from error

    return run


def accuracy_of(file: Path, images: Tensor, labels: Tensor) -> float:
    """The share of images whose class a file predicts, 0 to 1."""
    graph, right = load_graph(file), 0
    for part, wanted in zip(images.split(_EVALUATED_AT_ONCE), labels.split(_EVALUATED_AT_ONCE), strict=True):
        lengths = np.asarray(graph([part.cpu().numpy()])[0])
        right += int((lengths.argmax(axis=1) == wanted.cpu().numpy()).sum())
    return right / len(labels)


def _require() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"export to ONNX needs {error.name}: pip install 'dualcaps[export]'") from error


def _export(
    module: nn.Module,
    example: tuple[Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    file: Path,
    what: str,
) -> None:
    batch = torch.export.Dim("batch", min=1)
    with torch.no_grad():
        count = len(module(*example))
    with torch.no_grad(), exporting(what):
        torch.onnx.export(
            module.eval(),
            example,
            str(file),
            dynamo=True,
            dynamic_shapes=tuple({0: batch} for _ in example),
            input_names=list(inputs),
            output_names=list(outputs[:count]),
            external_data=False,
            verbose=False,
        )


def _with_metadata(file: Path, metadata: Mapping[str, Any]) -> bytes:
    import onnx

    model = onnx.load(str(file))
    del model.metadata_props[:]
    for name, value in metadata.items():
        model.metadata_props.add(key=name, value=value if isinstance(value, str) else json.dumps(value))
    return model.SerializeToString()


def _quantise(file: Path, images: np.ndarray) -> Path:
    """The file with 8-bit convolutions and matrix products, its ranges taken from images."""
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Images(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = iter(np.array_split(images, max(1, len(images) // 20)))

        def get_next(self) -> Any:
            batch = next(self._batches, None)
            return None if batch is None else {"images": batch}

    prepared, quantised = file.with_name("prepared.onnx"), file.with_name("quantised.onnx")
    logging.getLogger().setLevel(logging.ERROR)
    quant_pre_process(str(file), str(prepared), skip_symbolic_shape=True)
    quantize_static(
        str(prepared),
        str(quantised),
        Images(),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=list(_QUANTISED),
        per_channel=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    return quantised
