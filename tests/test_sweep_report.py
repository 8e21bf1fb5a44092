"""The page of a sweep: what it says and draws, that it loads nothing and that text stays text."""

from __future__ import annotations

import math
import random
from typing import Any

from orchestrator.sweep_report import Compared, SweepData, SweptPoint

AXES = {
    "tuning.lr": lambda draw: 10 ** draw.uniform(-4, -1),
    "hierarchy.groups": lambda draw: draw.choice(["auto", "builtin", "llm"]),
    "hierarchy.depth": lambda draw: draw.randint(1, 4),
    "losses.order": lambda draw: draw.uniform(0, 1),
    "captions.held_out": lambda draw: draw.choice([0.05, 0.1, 0.2]),
    "prompts.init_std": lambda draw: draw.choice([None, 0.01, 0.02, 0.05]),
    "prompts.global_branch.order": lambda draw: draw.choice(
        [["shared", "fine", "coarse", "category"], ["shared", "coarse", "fine", "category"]]
    ),
    "prompts.global_branch.shared,prompts.local_branch.shared": lambda draw: draw.choice(
        [[4, 8], [16, 32]]
    ),
}
DEFAULT = [0.002, "auto", 3, 0.2, 0.1, 0.02, ["shared", "fine", "coarse", "category"], [16, 32]]
SCENES = "200 composed scenes (not the 200 that selected)"


def fake(points: int = 30, axes: int = 3, halving: bool = True, images: bool = True) -> SweepData:
    """A plausible sweep of three seeds, best near a learning rate of 0.005; point 5 failed."""
    draw = random.Random(points)
    names = list(AXES)[:axes]
    swept = []
    for number in range(points):
        fields: dict[str, Any] = {name: AXES[name](draw) for name in names}
        if number == 0:
            fields = dict(zip(names, DEFAULT, strict=False))
        lr = fields["tuning.lr"]
        reached = 64 - 3 * abs(math.log10(lr / 0.005)) ** 2 + draw.gauss(0, 0.5)
        reached += {"auto": 0.0, "builtin": 0.8, "llm": -0.6}[fields.get("hierarchy.groups", "llm")]
        status, epochs, reason = "finished", 12, ""
        if number == 5:
            status, epochs, reason = "failed", 0, "CUDA out of memory: tried to get 2.00 GiB"
        elif halving and number and reached < 61 + draw.gauss(0, 1):
            status, epochs = "stopped", draw.choice([2, 2, 2, 6])
        curves = [
            [reached - 12 * math.exp(-e / 3) + draw.gauss(0, 0.2) for e in range(1, epochs + 1)]
            for _ in range(3 if epochs else 0)
        ]
        objective = [curve[-1] for curve in curves] if status == "finished" else []
        swept.append(
            SweptPoint(
                number=number,
                fields=fields,
                status=status,
                reason=reason,
                epochs=epochs,
                objective=objective,
                text_map=[90 + (v - 64) / 2 + draw.gauss(0, 0.4) for v in objective],
                selecting_map=objective if images else [],
                curves=curves,
                seconds=epochs * 3 * 4.2,
            )
        )
    done = [point for point in swept if point.finished]
    best = max(done, key=lambda point: (sum(point.objective), -point.number))
    return SweepData(
        name="quickstart-sweep",
        axes=names,
        log_axes=["tuning.lr"],
        objective="mAP on the half of the images that selects"
        if images
        else "mAP on held-out captions",
        points=swept,
        best=best.number,
        compared=Compared(64.1, 62.3, (1.8, 0.7, 2.9), (61.9, 66.2), (60.2, 64.4), SCENES),
        epochs=12,
        halving="ASHA, a third goes on after 2 and 6 epochs" if halving else "",
        seconds={"tuning": 1500.0, "wall": 900.0, "trials": 3.0 * points, "slots": 2.0},
        config_yaml="sweep:\n  base: quickstart.yaml\n  fields: {tuning.lr: [1e-4, 1e-1]}\n",
        best_yaml=f"tuning:\n  lr: {best.fields['tuning.lr']:.4g}\n",
        embedded=True,
        vlm="embedded efficientnet-lite2+minilm",
    )
