"""Small networks in float64, literally: the MLPs and audio networks that RAD-NeRF and ER-NeRF share."""

import numpy as np

f64 = np.float64


def leaky(x):
    return np.where(x > 0, x, 0.02 * x)


def mlp(params, x):
    """Layers without bias, ReLU between them."""
    kernels = [f64(params[f"kernel_{i}"]) for i in range(len(params))]
    for kernel in kernels[:-1]:
        x = np.maximum(x @ kernel, 0)
    return x @ kernels[-1]


def conv(params, x, stride):
    """x [N,T,C]; zero padding of one on both sides."""
    kernel, bias = f64(params["kernel"]), f64(params["bias"])
    padded = np.pad(x, ((0, 0), (1, 1), (0, 0)))
    steps = range(0, padded.shape[1] - 2, stride)
    return np.stack([np.einsum("nkc,kcd->nd", padded[:, t : t + 3], kernel) + bias for t in steps], 1)


def dense(params, x):
    return x @ f64(params["kernel"]) + f64(params["bias"])


def audio_code(params, audio):
    """Windows [W,T,A] of the neighbouring frames -> the frame's code [C] (rad-nerf §3.1, er-nerf §3)."""
    x = f64(audio)
    for i in range(4):
        x = leaky(conv(params["audio_net"][f"convs_{i}"], x, 2))
    assert x.shape[1] == 1
    codes = dense(params["audio_net"]["fc2"], leaky(dense(params["audio_net"]["fc1"], x[:, 0])))
    y = codes[None]
    for i in range(5):
        y = leaky(conv(params["audio_attention"][f"convs_{i}"], y, 1))
    logits = dense(params["audio_attention"]["fc"], y[0, :, 0])
    weights = np.exp(logits - logits.max())
    return (weights / weights.sum()) @ codes
