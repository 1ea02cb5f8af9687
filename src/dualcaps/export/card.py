"""What is written beside an exported network: metadata and model card, from what was measured."""

from collections.abc import Mapping
from typing import Any

from jinja2 import Template

from dualcaps.data.load import source_name
from dualcaps.hub import preprocessing
from dualcaps.models import Network, count_parameters, describe
from dualcaps.runs.run import Run

_CARD = Template(
    """---
library_name: dualcaps
pipeline_tag: image-classification
{% if licence %}license: {{ licence }}
{% endif %}---

# {{ network }} on {{ data }}

| | |
| --- | --- |
| network | {{ network }}, {{ "{:,}".format(parameters) }} parameters |
| classes | {{ classes | join(", ") }} |
| input | {{ preprocessing }} |
| data | {{ data }}, {{ copy }} |
| images | {{ images.train }} training, {{ images.validation }} validation, {{ images.test }} test |
| protocol | {{ protocol }}: {{ protocols[protocol] }} |
| test accuracy | {{ measured }} |
| trained with | {{ versions }} |
| licence of the weights | {{ licence or "not stated" }} |

## Use

```python
import dualcaps

model = dualcaps.{{ load }}
lengths = dualcaps.predict(model, images)  # [images, classes]
```

## Intended use and limits

It answers with one of the classes above for any image, also for images of none of them. The accuracy holds for images
like the test images; for others it was not measured. It comes from one training: other seeds give other numbers.
"""
)
_PROTOCOLS = {
    "clean": "the epoch was selected on validation images, the test images were used once",
    "paper": "the epoch was selected on the test images, so that the accuracy is too high by some tenths of a percent",
    "last": "the last epoch was kept, nothing was selected on the test images",
}


def facts_of(run: Run, model: Network, *, licence: str | None = None) -> dict[str, Any]:
    """What an export says of its origin: network, classes, preprocessing, data, protocol, accuracy, licence."""
    data = run.provenance["data"]
    session = run.provenance["sessions"][-1]
    official = {True: "the official files", False: "not the official files", None: "no official files are known"}
    return {
        "network": describe(run.model),
        "parameters": count_parameters(model),
        "classes": list(model.classes),
        "preprocessing": preprocessing(model),
        "data": source_name(run.data) or "arrays",
        "copy": official[data.get("official")],
        "data_sha256": data.get("sha256"),
        "images": data.get("images", {"train": None, "validation": None, "test": None}),
        "protocol": run.training.protocol,
        "accuracy": run.result["test_accuracy"] if run.result else None,
        "test_time_augmentation": run.training.tta,
        "seed": run.training.seed,
        "versions": ", ".join(f"{name} {version}" for name, version in session["versions"].items()),
        "licence": licence,
    }


def model_card(facts: Mapping[str, Any], *, load: str = 'from_pretrained("FOLDER")') -> str:
    """The model card, in Markdown.

    Args:
        facts: the result of `facts_of`.
        load: the call that loads the network, for the card's example.
    """
    measured = "not measured, as the training is not finished"
    if facts["accuracy"] is not None:
        accuracy, images, seed = 100 * facts["accuracy"], facts["images"]["test"], facts["seed"]
        measured = f"{accuracy:.2f} % of {images:,} images, one training (seed {seed})"
        if facts["test_time_augmentation"] != "none":
            way = facts["test_time_augmentation"]
            measured += f', with test-time augmentation, `predict(..., tta="{way}")`'
    return _CARD.render(**facts, measured=measured, protocols=_PROTOCOLS, load=load)
