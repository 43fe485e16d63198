"""The network of pytorch-fid written with PyTorch's own layers, with few channels: `python -m tests.fid_oracle FOLDER`
writes pictures.npy, the weights in the published file's names, and features.npy. A process of its own: no jax here."""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F


class Net:
    """Makes weights as it meets their names."""

    def __init__(self):
        self.state, self.rng = {}, torch.Generator().manual_seed(0)

    def __call__(self, name, x, n, k, **kwargs):
        k = (k, k) if isinstance(k, int) else k
        w = torch.randn((n, x.shape[1], *k), generator=self.rng) * (2 / (x.shape[1] * k[0] * k[1])) ** 0.5
        norm = [1.5 + 0.2 * torch.randn(n, generator=self.rng), 0.1 * torch.randn(n, generator=self.rng)]
        stats = [0.1 * torch.randn(n, generator=self.rng), 0.5 + torch.rand(n, generator=self.rng)]
        parts = zip(("weight", "bias", "running_mean", "running_var"), [*norm, *stats], strict=True)
        self.state |= {f"{name}.conv.weight": w, **{f"{name}.bn.{p}": v for p, v in parts}}
        self.state[f"{name}.bn.num_batches_tracked"] = torch.tensor(0)
        return F.relu(F.batch_norm(F.conv2d(x, w, **kwargs), *stats, *norm, eps=0.001))


def run(x):
    net, c = Net(), 4
    x = F.interpolate(x, size=(299, 299), mode="bilinear", align_corners=False)
    x = 2 * x - 1
    x = net("Conv2d_1a_3x3", x, c, 3, stride=2)
    x = net("Conv2d_2a_3x3", x, c, 3)
    x = F.max_pool2d(net("Conv2d_2b_3x3", x, c, 3, padding=1), 3, 2)
    x = F.max_pool2d(net("Conv2d_4a_3x3", net("Conv2d_3b_1x1", x, c, 1), c, 3), 3, 2)

    def mean(x):
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)

    for b in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
        one = net(f"{b}.branch1x1", x, c, 1)
        five = net(f"{b}.branch5x5_2", net(f"{b}.branch5x5_1", x, c, 1), c, 5, padding=2)
        d = net(f"{b}.branch3x3dbl_2", net(f"{b}.branch3x3dbl_1", x, c, 1), c, 3, padding=1)
        d = net(f"{b}.branch3x3dbl_3", d, c, 3, padding=1)
        x = torch.cat([one, five, d, net(f"{b}.branch_pool", mean(x), c, 1)], 1)
    b = "Mixed_6a"
    d = net(f"{b}.branch3x3dbl_2", net(f"{b}.branch3x3dbl_1", x, c, 1), c, 3, padding=1)
    x = torch.cat(
        [
            net(f"{b}.branch3x3", x, c, 3, stride=2),
            net(f"{b}.branch3x3dbl_3", d, c, 3, stride=2),
            F.max_pool2d(x, 3, 2),
        ],
        1,
    )
    wide, tall = {"k": (1, 7), "padding": (0, 3)}, {"k": (7, 1), "padding": (3, 0)}
    for b in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
        one = net(f"{b}.branch1x1", x, c, 1)
        s = net(f"{b}.branch7x7_2", net(f"{b}.branch7x7_1", x, c, 1), c, **wide)
        s = net(f"{b}.branch7x7_3", s, c, **tall)
        d = net(f"{b}.branch7x7dbl_1", x, c, 1)
        for k, shape in ((2, tall), (3, wide), (4, tall), (5, wide)):
            d = net(f"{b}.branch7x7dbl_{k}", d, c, **shape)
        x = torch.cat([one, s, d, net(f"{b}.branch_pool", mean(x), c, 1)], 1)
    b = "Mixed_7a"
    t = net(f"{b}.branch3x3_2", net(f"{b}.branch3x3_1", x, c, 1), c, 3, stride=2)
    s = net(f"{b}.branch7x7x3_1", x, c, 1)
    s = net(f"{b}.branch7x7x3_3", net(f"{b}.branch7x7x3_2", s, c, **wide), c, **tall)
    x = torch.cat([t, net(f"{b}.branch7x7x3_4", s, c, 3, stride=2), F.max_pool2d(x, 3, 2)], 1)
    for b in ("Mixed_7b", "Mixed_7c"):
        row, column = {"k": (1, 3), "padding": (0, 1)}, {"k": (3, 1), "padding": (1, 0)}
        one, t = net(f"{b}.branch1x1", x, c, 1), net(f"{b}.branch3x3_1", x, c, 1)
        t = torch.cat([net(f"{b}.branch3x3_2a", t, c, **row), net(f"{b}.branch3x3_2b", t, c, **column)], 1)
        d = net(f"{b}.branch3x3dbl_2", net(f"{b}.branch3x3dbl_1", x, c, 1), c, 3, padding=1)
        d = torch.cat([net(f"{b}.branch3x3dbl_3a", d, c, **row), net(f"{b}.branch3x3dbl_3b", d, c, **column)], 1)
        pooled = mean(x) if b == "Mixed_7b" else F.max_pool2d(x, 3, 1, 1)
        x = torch.cat([one, t, d, net(f"{b}.branch_pool", pooled, c, 1)], 1)
    net.state |= {"fc.weight": torch.zeros(3, x.shape[1]), "fc.bias": torch.zeros(3)}
    return net.state, x.mean((2, 3))


def main(folder: Path) -> None:
    rng = np.random.default_rng(0)
    smooth = rng.integers(0, 256, (6, 8, 10, 3)).repeat(5, 1).repeat(5, 2).astype(np.uint8)
    state, found = run(torch.tensor(smooth).permute(0, 3, 1, 2).float() / 255)
    np.save(folder / "pictures.npy", smooth)
    np.save(folder / "features.npy", found.numpy())
    torch.save(state, folder / "pt_inception-2015-12-05-6726825d.pth")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
