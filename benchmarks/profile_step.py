"""Where the time of a training step goes: plain PyTorch, ours eager, ours compiled."""

import torch
from common import Results, parse, place
from torch.profiler import ProfilerActivity, profile

from dualcaps import create_model
from dualcaps.bench import SHAPES, our_training, plain_training, random_split
from dualcaps.inference import choose_precision

BATCH, STEPS = 128, 10
GROUPS = {
    "convolution forward": ("mkldnn_convolution", "cudnn_convolution"),
    "convolution backward": ("convolution_backward",),
    "matrix products": ("aten::mm", "aten::bmm", "aten::addmm"),
    "copies and casts": ("aten::copy_",),
    "optimiser": ("_fused_adam_", "Adam.step", "_foreach", "addcdiv", "addcmul_"),
    "compiled elementwise kernels": ("CompiledFxGraph", "cpp_fused", "triton_"),
}


def main() -> None:
    """Profile both networks in both shapes."""
    options = parse(__doc__ or "")
    device = place(options.device)
    precision = choose_precision("auto", device)
    results = Results("profile", options.out, device)
    for network, decoder in (("capsnet", False), ("da-capsnet", True)):
        for text, shape in SHAPES.items():
            torch.manual_seed(0)
            model = create_model(network, shape, decoder=decoder)
            part = random_split(shape, STEPS * BATCH, device)
            case = f"{network}{' + decoder' if decoder else ''} {text}, batch {BATCH}"
            for name, epoch in {
                "plain PyTorch float32": plain_training(model, part, BATCH),
                f"dualcaps {precision}, eager": our_training(model, part, BATCH, precision, "never"),
                f"dualcaps {precision}, compiled": our_training(model, part, BATCH, precision, "always"),
            }.items():
                epoch()
                with profile(activities=[ProfilerActivity.CPU]) as recorded:
                    epoch()
                times = dict.fromkeys([*GROUPS, "everything else"], 0.0)
                for event in recorded.key_averages():
                    group = next((g for g, words in GROUPS.items() if any(w in event.key for w in words)), None)
                    times[group or "everything else"] += event.self_cpu_time_total / 1e3 / STEPS
                for group, milliseconds in times.items():
                    results.add(case, name, group, milliseconds, "ms a step")


if __name__ == "__main__":
    main()
