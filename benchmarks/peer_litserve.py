"""A run served by LitServe with batching; for service.py.

python peer_litserve.py RUN PORT BATCH WAIT_SECONDS
"""

import sys

import litserve
import numpy as np
import torch
from fastapi import UploadFile

from dualcaps import load_model, predict
from dualcaps.data.images import read_image
from dualcaps.inference import choose_precision


class Api(litserve.LitAPI):
    """One image a request, as the file of a form; the class and the lengths come back."""

    def setup(self, device):
        """Load the network."""
        self.model = load_model(sys.argv[1], device)
        self.precision = choose_precision("auto", torch.device(device))

    def decode_request(self, request: UploadFile):
        """Read the image."""
        content = request.file.read()
        return read_image(content, self.model.config.image_shape, request.filename, self.model.value_range)

    def batch(self, inputs):
        """Stack the images."""
        return np.stack(inputs)

    def predict(self, x):
        """Classify."""
        pixels = torch.tensor(x if x.ndim == 4 else x[None])
        lengths = predict(self.model, pixels, precision=self.precision).numpy()
        return lengths if x.ndim == 4 else lengths[0]

    def unbatch(self, output):
        """One answer an image."""
        return list(output)

    def encode_response(self, output):
        """JSON as ours."""
        names = self.model.classes
        lengths = dict(zip(names, (round(float(length), 5) for length in output), strict=True))
        best = int(output.argmax())
        return [{"class": names[best], "length": round(float(output[best]), 5), "lengths": lengths}]


if __name__ == "__main__":
    _, run, port, batch, wait = sys.argv
    api = Api(max_batch_size=int(batch), batch_timeout=float(wait))
    litserve.LitServer(api, accelerator="cpu").run(
        port=int(port), host="127.0.0.1", log_level="warning", generate_client_file=False
    )
