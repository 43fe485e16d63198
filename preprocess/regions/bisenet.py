"""Face parsing by BiSeNet: the 19-class network that the AD-NeRF line uses (its file is called 79999_iter.pth).

A ResNet-18 context path with attention refinement at 1/16 and 1/32, fused with its 1/8 features; parameter names are
those of the published file, so its state dict loads as it is (weights only, no pickled code). Pictures go in at 512x512
with the ImageNet mean and deviation; classes 1-13, 17 and 18 are head, 14 and 15 neck, 16 clothes (er-nerf.md §2).
"""

import functools

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from tkjax.contract import LABEL_BACKGROUND, LABEL_HEAD, LABEL_NECK, LABEL_TORSO
from tkjax.errors import UserError

N_CLASSES = 19
INPUT_PX = 512
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
LABEL_OF_CLASS = np.full(N_CLASSES, LABEL_HEAD, np.uint8)
LABEL_OF_CLASS[0] = LABEL_BACKGROUND
LABEL_OF_CLASS[[14, 15]] = LABEL_NECK
LABEL_OF_CLASS[16] = LABEL_TORSO


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, n_in: int, n_out: int, size: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, size, padding=size // 2, bias=False)
        self.bn = nn.BatchNorm2d(n_out)

    def forward(self, x):
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Residual block of ResNet-18."""

    def __init__(self, n_in: int, n_out: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.downsample = None
        if stride != 1 or n_in != n_out:
            self.downsample = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x):
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet18(nn.Module):
    """Features at 1/8, 1/16 and 1/32."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        widths = (64, 64, 128, 256, 512)
        for k in range(1, 5):
            stride = 1 if k == 1 else 2
            layer = nn.Sequential(Block(widths[k - 1], widths[k], stride), Block(widths[k], widths[k], 1))
            setattr(self, f"layer{k}", layer)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        x8 = self.layer2(self.layer1(x))
        x16 = self.layer3(x8)
        return x8, x16, self.layer4(x16)


class Refine(nn.Module):
    """Attention refinement: features scaled by a gate made of their mean."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.conv = ConvBN(n_in, n_out)
        self.conv_atten = nn.Conv2d(n_out, n_out, 1, bias=False)
        self.bn_atten = nn.BatchNorm2d(n_out)

    def forward(self, x):
        x = self.conv(x)
        return x * torch.sigmoid(self.bn_atten(self.conv_atten(x.mean((2, 3), keepdim=True))))


class ContextPath(nn.Module):
    """1/8 features of the backbone, and refined context at 1/8."""

    def __init__(self):
        super().__init__()
        self.resnet = ResNet18()
        self.arm16, self.arm32 = Refine(256, 128), Refine(512, 128)
        self.conv_head32, self.conv_head16 = ConvBN(128, 128), ConvBN(128, 128)
        self.conv_avg = ConvBN(512, 128, 1)

    def forward(self, x):
        x8, x16, x32 = self.resnet(x)
        y = self.arm32(x32) + self.conv_avg(x32.mean((2, 3), keepdim=True))
        y = self.conv_head32(F.interpolate(y, x16.shape[2:], mode="nearest"))
        y = self.arm16(x16) + y
        return x8, self.conv_head16(F.interpolate(y, x8.shape[2:], mode="nearest"))


class Fuse(nn.Module):
    """Joins the two 1/8 feature maps, with a gate per channel."""

    def __init__(self, n: int):
        super().__init__()
        self.convblk = ConvBN(n, n, 1)
        self.conv1 = nn.Conv2d(n, n // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(n // 4, n, 1, bias=False)

    def forward(self, a, b):
        x = self.convblk(torch.cat([a, b], 1))
        return x + x * torch.sigmoid(self.conv2(F.relu(self.conv1(x.mean((2, 3), keepdim=True)))))


class Output(nn.Module):
    """Class scores."""

    def __init__(self, n_in: int, n_middle: int):
        super().__init__()
        self.conv = ConvBN(n_in, n_middle)
        self.conv_out = nn.Conv2d(n_middle, N_CLASSES, 1, bias=False)

    def forward(self, x):
        return self.conv_out(self.conv(x))


class BiSeNet(nn.Module):
    """Scores [B,19,H,W] of normalised pictures [B,3,H,W]. Two heads that only training used are there to load."""

    def __init__(self):
        super().__init__()
        self.cp = ContextPath()
        self.ffm = Fuse(256)
        self.conv_out, self.conv_out16, self.conv_out32 = Output(256, 256), Output(128, 64), Output(128, 64)

    def forward(self, x):
        scores = self.conv_out(self.ffm(*self.cp(x)))
        return F.interpolate(scores, x.shape[2:], mode="bilinear", align_corners=True)


@functools.lru_cache(1)
def load(path: str) -> BiSeNet:
    """The network with the weights of a file; UserError when it is no state dict of this network."""
    model = BiSeNet()
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError(f"it holds a {type(state).__name__}")
        state = {k.removeprefix("module."): v for k, v in state.items()}
        model.load_state_dict(state)
    except Exception as e:  # the unpickler raises whatever a foreign file makes it stumble over
        reason = f"{type(e).__name__}: {' '.join(str(e).split())[:120]}".rstrip(".")
        raise UserError(f"{path} cannot be used as BiSeNet weights ({reason}); give the file 79999_iter.pth") from e
    return model.eval()


def parse(model: BiSeNet, rgb: np.ndarray) -> np.ndarray:
    """Labels uint8 [H,W] of a picture uint8 [H,W,3]."""
    h, w = rgb.shape[:2]
    x = cv2.resize(rgb, (INPUT_PX, INPUT_PX), interpolation=cv2.INTER_LINEAR).astype(np.float32) / 255
    x = torch.from_numpy(((x - np.float32(MEAN)) / np.float32(DEVIATION)).transpose(2, 0, 1)[None])
    with torch.inference_mode():
        classes = model(x)[0].argmax(0).numpy()
    return cv2.resize(LABEL_OF_CLASS[classes], (w, h), interpolation=cv2.INTER_NEAREST)
