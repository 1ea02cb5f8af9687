"""`dualcaps serve`."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from dualcaps.cli.display import describe_run, print_notes
from dualcaps.cli.options import DataDir, Device, PluginFiles, RunFolder, check_port
from dualcaps.config import PrecisionChoice
from dualcaps.errors import ConfigError, DataError, display_path

if TYPE_CHECKING:
    from dualcaps.models import Network
    from dualcaps.runs.run import Run

_TOKEN = "DUALCAPS_TOKEN"
_MOST_CONNECTIONS = 1_000
_GRACE = 30  # seconds for requests in work when the service is stopped


@dataclass(frozen=True)
class Serve:
    """Answer requests by HTTP: POST an image to /predict, JSON comes back."""

    trained: RunFolder
    host: str = "127.0.0.1"
    """The address to listen on; 127.0.0.1 is reachable from this machine only, 0.0.0.0 from all that can reach it."""
    port: int = 8000
    """The port to listen on."""
    token_file: Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")] = None
    """A file with a token that requests need as the header "Authorization: Bearer TOKEN"; or the environment variable
    DUALCAPS_TOKEN."""
    reject: Annotated[bool, tyro.conf.arg(help_behavior_hint="")] = False
    """Say of each image whether it is unlike those of all classes; see predict --reject."""
    batch_size: int = 64
    """Images that are classified together at most."""
    wait_ms: float = 0.0
    """Milliseconds that an image waits for others to be classified with. Images that come while others are classified
    are the next batch in any case."""
    max_mb: int = 32
    """Megabytes of a request at most."""
    max_images: int = 64
    """Images of a request at most."""
    queue: int = 512
    """Images that may wait; further requests are answered by 503."""
    timeout: float = 30.0
    """Seconds until a request must have been sent, and until it must be answered."""
    precision: PrecisionChoice = "auto"
    """Number type of the layers; auto is bfloat16 if the machine is fast at it."""
    data_dir: DataDir = None
    device: Device = "auto"
    plugin: PluginFiles = ()

    def run(self) -> None:
        """Serve until interrupted; requests in work are answered first."""
        check_port(self.port)
        for name in ("batch_size", "max_mb", "max_images", "timeout"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be above 0, got {getattr(self, name)}")
        if self.queue < self.max_images:
            raise ConfigError(f"--queue must be at least --max-images, {self.max_images}, got {self.queue}")
        if self.wait_ms < 0:
            raise ConfigError(f"--wait-ms must be at least 0, got {self.wait_ms:g}")

        from dualcaps.cli.predict import rejection_with_progress
        from dualcaps.inference import choose_precision, load_model
        from dualcaps.runs.run import Run
        from dualcaps.serve.http import Limits, build_service

        token = self._token()
        opened = Run.open(self.trained)
        model = load_model(opened, self.device)
        app = build_service(
            model,
            precision=choose_precision(self.precision, next(model.parameters()).device),
            tta=opened.training.tta,
            temperature=_temperature(opened, model, self.data_dir),
            rejection=rejection_with_progress(opened, model, self.data_dir) if self.reject else None,
            token=token,
            limits=Limits(
                bytes=self.max_mb * 2**20,
                images=self.max_images,
                queue=self.queue,
                seconds=self.timeout,
                batch=self.batch_size,
                wait=self.wait_ms / 1000,
            ),
            about=f"{display_path(opened.path)}: {describe_run(opened)}",
        )
        import uvicorn

        logging.getLogger("python_multipart").setLevel(
            logging.ERROR
        )  # it warns of each damaged form, which 400 answers
        if self.host not in ("127.0.0.1", "::1", "localhost") and token is None:
            print_notes([f"anyone who reaches {self.host}:{self.port} can send images: --token-file asks for a token"])
        print(
            f"{display_path(opened.path)}: http://{self.host}:{self.port}/predict (Ctrl-C ends the service)", flush=True
        )
        uvicorn.run(
            app,
            host=self.host,
            port=self.port,
            log_level="warning",
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=_GRACE,
        )

    def _token(self) -> str | None:
        """The token from the file or the environment."""
        if self.token_file is None:
            return os.environ.get(_TOKEN) or None
        try:
            token = self.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--token-file {display_path(self.token_file)}: cannot be read: {error}") from error
        if not token or any(character.isspace() for character in token):
            raise ConfigError(f"--token-file {display_path(self.token_file)}: must hold one token, without spaces")
        return token


def _temperature(run: "Run", model: "Network", data_dir: Path | None) -> float | None:
    """The temperature of the run's probabilities; None, with a note, where it has none and its images are not here."""
    from dualcaps.calibration import calibration_of

    try:
        return calibration_of(run, model, data_dir=data_dir).temperature
    except (DataError, OSError) as error:
        print_notes([f"answers have no probabilities, whose temperature is fitted on the run's images: {error}"])
        return None
