"""What the paper reports: its numbers, its contradictions, and the decisions where it is silent.

Wenkai Huang and Fobao Zhou, "DA-CapsNet: dual attention mechanism capsule network", Scientific
Reports 10, 11383 (2020).
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dualcaps.study.experiments.card import CAPSNET, CNN, DA_CAPSNET, FOUR, DataKey, Variant, variant

EPOCHS = 100
"""Epochs that the paper trained for, except for the 7 of Figs. 8 and 9."""

Quantity = Literal["accuracy", "gain", "first-five gain", "epochs to 100 %"]


@dataclass(frozen=True)
class Printed:
    """One number printed in the paper.

    Attributes:
        where: the table or figure.
        data: the data set.
        network: the network.
        quantity: the highest test accuracy; its gain over the baseline; the gain of the mean over the first
            five epochs; or the first epoch with all test images correct.
        value: in %, in percentage points, or in epochs.
        baseline: for gains, the network compared with.
    """

    where: str
    data: DataKey
    network: Variant
    quantity: Quantity
    value: float
    baseline: Variant | None = None


def recipe(data: DataKey) -> dict[str, Any]:
    """The paper's settings of training and data for a data set, by decisions D11 to D16."""
    return {
        **{
            "batch_size": 16 if data.source == "coil-20" else 128,
            "lr": 1e-3,
            "beta1": 0.9,
            "beta2": 0.999,
            "epsilon": 1e-7,
        },
        **{"reconstruction_weight": 0.0005, "augment": "policy"},
        **{"image_size": None, "channels": None, "camera": None, "objects": None, "extra": False},
    }


class Decision(NamedTuple):
    """A decision where the paper is silent or contradicts itself."""

    number: str
    paper: str
    here: str
    setting: str


_WEAKER_SQUASH = variant("capsnet", squash_constant=1.0)


def _table_1() -> list[Printed]:
    """Without those of `capsnet` with the paper's squash, which Table 2 prints again."""
    numbers = []
    for data, weaker, gain in (("cifar-10", 82.45, 0.50), ("fashion-mnist", 90.82, 1.59), ("svhn", 90.78, 0.58)):
        numbers += [
            Printed("Table 1", DataKey(data), _WEAKER_SQUASH, "accuracy", weaker),
            Printed("Table 1", DataKey(data), CAPSNET, "gain", gain, _WEAKER_SQUASH),
        ]
    return numbers


def _table_2() -> list[Printed]:
    numbers = []
    for data, accuracies, gains in (
        ("cifar-10", (82.95, 84.71, 83.47, 85.47), (1.76, 0.52, 2.52)),
        ("svhn", (91.36, 94.37, 94.26, 94.82), (3.01, 2.90, 3.46)),
        ("fashion-mnist", (92.41, 93.21, 93.60, 93.98), (0.80, 1.19, 1.57)),
    ):
        numbers += [
            Printed("Table 2", DataKey(data), name, "accuracy", value)
            for name, value in zip(FOUR, accuracies, strict=True)
        ]
        numbers += [
            Printed("Table 2", DataKey(data), name, "gain", value, CAPSNET)
            for name, value in zip(FOUR[1:], gains, strict=True)
        ]
    return numbers


def _table_4() -> list[Printed]:
    """The rows that are not in Table 2; our copy of the text lacks the CNN's numbers on Table 2's data sets."""
    rows: tuple[tuple[str, tuple[float, ...], Quantity, float], ...] = (
        ("mnist", (100.0, 100.0, 100.0), "first-five gain", 0.15),
        ("smallnorb", (91.28, 96.93, 98.26), "gain", 1.33),
        ("coil-20", (100.0, 98.38, 100.0), "gain", 1.16),
    )
    numbers = []
    for data, accuracies, quantity, gain in rows:
        numbers += [
            Printed("Table 4", DataKey(data), name, "accuracy", value)
            for name, value in zip((CNN, CAPSNET, DA_CAPSNET), accuracies, strict=True)
        ]
        numbers.append(Printed("Table 4", DataKey(data), DA_CAPSNET, quantity, gain, CAPSNET))
    return numbers


def _figure_10() -> list[Printed]:
    return [
        Printed("Fig. 10", DataKey("mnist"), name, "epochs to 100 %", epochs)
        for name, epochs in zip(FOUR, (25, 16, 13, 8), strict=True)
    ]


PRINTED: tuple[Printed, ...] = (*_table_1(), *_table_2(), *_table_4(), *_figure_10())
"""The results printed in the paper, as far as our copy of its text contains them."""

CONTRADICTIONS: tuple[str, ...] = (
    "The abstract has DA-CapsNet reach 100 % on MNIST after 8 epochs, the text about Fig. 10 after 10.",
    "COIL-20: a gain of 1.16 points is claimed three times, the printed accuracies (98.38 and 100) differ by 1.62.",
    "COIL-20: 98.38 % is no share of 72 or of 144 test images (71 of 72 are 98.61 %, 141 of 144 are 97.92 %).",
    'COIL-20: the "top ten categories" are used, the CNN has a 20-way softmax.',
    "Table 3 lists a Conv2D(256, 3×3) for 32×32 images, which gives 8×8×256; the text says [10, 10, 128].",
    'Conv-Attention: the text adds "u3 and u2", Eq. 11 adds u_pc and u3.',
    "Eq. 8 divides by M·N, but its sums start at 0 and have M+1 and N+1 terms.",
    'DA-CapsNet "improves the accuracy significantly" over the CNN, which has 100 % on COIL-20, as DA-CapsNet has.',
    "All networks are said to end at 100 % on MNIST; no published network has reached it, nor any ensemble (99.91 %).",
)
"""Where the paper contradicts itself or known results."""

DECISIONS: tuple[Decision, ...] = (
    Decision(
        "D1",
        '"the official network model for keras" with attention added',
        "`capsnet` is the Keras 2.2.4 example on CIFAR-10 with the paper's sizes; Sabour et al.'s network is "
        "`sabour-capsnet`",
        "`--model`",
    ),
    Decision(
        "D2",
        "the CNN baseline's padding is not given",
        '"same" padding, which gives the 4.2 M parameters of the paper it was taken from (Hinton et al. 2018)',
        "",
    ),
    Decision(
        "D3",
        "Table 3 lists a convolution 256 3×3 at 32×32, the text a tensor [10, 10, 128]",
        "left out",
        "`--extra-conv`",
    ),
    Decision("D4", "Conv-Attention's widths are not given", "both layers as wide as the channels", ""),
    Decision("D5", "the text adds a where Eq. 11 adds u", "Eq. 11", ""),
    Decision("D6", "bias and squash of the children are not mentioned", "neither", ""),
    Decision(
        "D7",
        "Caps-Attention's widths are not given",
        "`element`: J·N·D → J·D → J·N·D; the network with its decoder then has 6.7 M parameters, where a later survey "
        "(Mazzia et al. 2021) quotes 7 M",
        "`--caps-attention`",
    ),
    Decision("D8", "the number of routing iterations is not given", "3, the example's", "`--iterations`"),
    Decision("D9", "Eq. 7 accumulates the logits, the Keras example overwrites them", "accumulate", "`--update`"),
    Decision(
        "D10",
        'the decoder is "controlled by ReLU and tanh"',
        "512 ReLU, 1024 tanh, then a sigmoid; for `sabour-capsnet` too, where Sabour et al. used ReLU twice",
        "`--no-decoder`",
    ),
    Decision(
        "D11",
        "the reconstruction loss's weight is not given",
        "0.0005 × sum of squared differences of pixels in [0, 1]",
        "`--reconstruction-weight`",
    ),
    Decision(
        "D12",
        "optimiser and rate are not given",
        "Adam, 1e-3, β 0.9 and 0.999, ε 1e-7, batch 128 (16 for COIL-20, which the paper names), 100 epochs, no decay: "
        "the example's",
        "`--lr`, …",
    ),
    Decision(
        "D13",
        "Table 3 feeds grey sets of 32×32 pixels as three channels",
        "grey images repeated",
        "`--channels 1`",
    ),
    Decision(
        "D14",
        "which of smallNORB's two cameras is not said; 24,300 is the number of pairs",
        "the left one",
        "`--camera right`, `both`",
    ),
    Decision(
        "D15",
        "flips are named for all six data sets",
        "not for digits, whose mirror image is none; nor for one's own images",
        "`--augment paper-literal`",
    ),
    Decision(
        "D16",
        'COIL-20: "top ten categories", 9:1',
        "the first ten objects, a seeded random tenth of each as test part; neighbouring views are 5° apart, so this "
        "nearly tests on duplicates, and `--split views` holds out a quarter turn of every object instead",
        "`--objects 20`, `--split`",
    ),
    Decision(
        "D17",
        "accuracy is the highest on the test set over the epochs",
        "protocol `clean`: selection on a held-out tenth of the training set, the test set read once; protocol "
        "`paper`: the paper's",
        "`--protocol`",
    ),
)
"""The numbered decisions, as docs/replication.md lists them."""

DIFFERENCES: tuple[tuple[str, str], ...] = (
    (
        "D18",
        "Images are moved by whole pixels, up to 10 % of each side, with the nearest edge repeated; the Keras "
        "generator interpolates between pixels.",
    ),
    (
        "D19",
        "torch's Adam adds ε to the corrected root of the second moment, Keras 2.2.4 to the uncorrected one.",
    ),
    (
        "D20",
        "Any image whose smaller side is below 32 pixels gets the 2×2 kernels of Table 3's second column, any other "
        "the 3×3 kernels of the first.",
    ),
    ("D21", "Among epochs of equal accuracy the last is selected."),
    (
        "D22",
        "Images are stretched to their size with Pillow: by area where they shrink, bilinearly where they grow.",
    ),
    (
        "D23",
        "`digits`, which is not in the paper, is scikit-learn's 1,797 handwritten digits of 8×8 pixels, enlarged to "
        "28×28.",
    ),
    (
        "D24",
        "smallNORB's novel viewpoints (`--split azimuth`, `elevation`) follow Hinton et al. 2018: azimuths of 300° to "
        "40°, or the three lowest elevations, of the training toys are trained on, the others of the test toys tested.",
    ),
    (
        "D25",
        "A network wider than the paper's (`--width`, which the paper does not have) is trained at a rate that is "
        "lower in proportion.",
    ),
)
"""Minor differences from the paper, as listed in docs/replication.md."""
