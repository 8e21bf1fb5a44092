"""EfficientNet-Lite: the packaged image tower, in plain PyTorch.

EfficientNet: Tan and Le, 2019, arXiv 1905.11946. Lite has neither squeeze-and-excitation nor swish.
timm has the same model, but takes 2 s of CPU to import, in each process that encodes images.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

# By model: factors on the channels, and on the blocks of each stage but the first and the last.
SCALES = {"efficientnet-lite0": (1.0, 1.0), "efficientnet-lite2": (1.1, 1.2)}
# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000


class EfficientNetLite(nn.Module):
    """`forward`: pixels `(batch, 3, height, width)` to ImageNet logits at each location,
    `(batch, locations, 1000)`; their mean is the network's own output."""

    def __init__(self, model: str, weights: Path) -> None:
        """`weights`: a state dict with any names, in the network's order."""
        super().__init__()
        width, depth = SCALES[model]
        blocks: list[nn.Module] = [_ConvNorm(3, _STEM, kernel=3, stride=2)]
        channels = _STEM
        for place, (count, kernel, stride, expansion, base) in enumerate(_STAGES):
            if place not in (0, len(_STAGES) - 1):
                count = math.ceil(count * depth)
            for block in range(count):
                outputs = _rounded(base * width)
                blocks.append(_Block(channels, outputs, kernel, 1 if block else stride, expansion))
                channels = outputs
        self.features = nn.Sequential(*blocks, _ConvNorm(channels, _HEAD, kernel=1))
        self.classifier = nn.Linear(_HEAD, _CLASSES)
        packaged = torch.load(weights, weights_only=True, map_location="cpu").values()
        own = self.state_dict()
        shapes = [tensor.shape for tensor in packaged]
        assert shapes == [tensor.shape for tensor in own.values()], "weights of another network"
        self.load_state_dict(dict(zip(own, packaged, strict=True)))
        self.eval().requires_grad_(False)
        for module in self.modules():
            if isinstance(module, _ConvNorm):
                module.fold()

    def forward(self, pixels: Tensor) -> Tensor:
        maps = self.features(pixels)  # (batch, channels, rows, columns)
        return self.classifier(maps.flatten(2).transpose(1, 2))


class _ConvNorm(nn.Sequential):
    """A convolution that pads as TensorFlow does, its norm, and mostly ReLU6."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1,
        active: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(
            nn.Conv2d(
                inputs, outputs, kernel, stride, _even(kernel, stride), groups=groups, bias=False
            ),
            nn.BatchNorm2d(outputs, eps=1e-3),
            nn.ReLU6() if active else nn.Identity(),
        )
        self.kernel, self.stride = kernel, stride

    def fold(self) -> None:
        """Let the convolution do what its norm does: an eighth of the network's time."""
        convolution, norm = self[0], self[1]
        assert isinstance(convolution, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
        self[0], self[1] = fuse_conv_bn_eval(convolution, norm), nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        if self.stride > 1:
            rows, columns = (self._padding(side) for side in maps.shape[2:])
            maps = F.pad(maps, (*columns, *rows))
        return super().forward(maps)

    def _padding(self, side: int) -> tuple[int, int]:
        """Before and after: as little as gives every stride-th place, the odd one after."""
        places = -(-side // self.stride)
        total = max(0, (places - 1) * self.stride + self.kernel - side)
        return total // 2, total - total // 2


def _even(kernel: int, stride: int) -> int:
    """The padding of both sides where it is the same for every image."""
    return kernel // 2 if stride == 1 else 0


class _Block(nn.Module):
    """An inverted residual (MobileNetV2: Sandler et al., 2018, arXiv 1801.04381, §3.3)."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        self.layers = nn.Sequential(
            *([_ConvNorm(inputs, wide, kernel=1)] if expansion > 1 else []),
            _ConvNorm(wide, wide, kernel, stride, groups=wide),
            _ConvNorm(wide, outputs, kernel=1, active=False),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        changed: Tensor = self.layers(maps)
        return maps + changed if self.residual else changed


def _rounded(channels: float) -> int:
    """To a multiple of 8, at least 90 % of what it was."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
