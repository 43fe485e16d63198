"""Programs evaluated in float64 with numpy, sharing no code with the ops."""

import numpy as np

from tests import oracle


def activation(kind, x):
    with np.errstate(over="ignore", invalid="ignore"):
        return {
            "none": lambda: x,
            "relu": lambda: np.where(x < 0, 0.0, x),
            "leaky_relu": lambda: np.where(x < 0, 0.02 * x, x),
            "sigmoid": lambda: 1 / (1 + np.exp(-x)),
            "tanh": lambda: np.tanh(x),
            "exp": lambda: np.exp(x),
            "trunc_exp": lambda: np.exp(x),
            "softplus": lambda: np.logaddexp(x, 0.0),
        }[kind]()


def mlp(x, kernels, biases, hidden, output):
    for k, kernel in enumerate(kernels):
        x = x @ np.float64(kernel) + (0 if biases is None else np.float64(biases[k]))
        x = activation(hidden if k + 1 < len(kernels) else output, x)
    return x


def grid(i, x, tables):
    s, unit = i.spec, (x + i.numbers[0]) / (2 * i.numbers[0])
    if not len(x):
        return np.zeros((0, i.channels))
    planes = np.stack([unit[:, list(columns)] for columns in i.subsets], 1)
    out = oracle.grid_encode(
        planes, np.float64(tables), levels=s.levels, base=s.base, finest=s.finest, log2_entries=s.log2_entries,
        kind=s.kind, interpolation=s.interpolation, pad=s.pad,
    )  # fmt: skip
    return out.reshape(len(x), i.channels)


def step(i, inputs, rows, params):
    x = inputs[0] if inputs else None
    if i.op == "row":
        return rows[i.name]
    if i.op == "grid":
        return grid(i, x, params[i.name]["tables"])
    if i.op == "mlp":
        own, layers = params[i.name], range(len(i.widths) - 1)
        biases = [own[f"bias_{k}"] for k in layers] if i.bias else None
        return mlp(np.concatenate(inputs, 1), [own[f"kernel_{k}"] for k in layers], biases, i.hidden, i.output)
    low, high = i.numbers if i.op == "clip" else (0, 0)
    return {
        "act": lambda: activation(i.output, x),
        "add": lambda: x + inputs[1],
        "mul": lambda: x * inputs[1],
        "affine": lambda: x * np.float64(np.float32(i.numbers[0])) + np.float64(np.float32(i.numbers[1])),
        "clip": lambda: np.clip(x, low, high),
        "slice": lambda: x[:, i.start : i.start + i.channels],
        "concat": lambda: np.concatenate(inputs, 1),
        "stop_gradient": lambda: x,
        "norm": lambda: np.sqrt(np.sum(x * x, 1, keepdims=True)),
        "sum_abs": lambda: np.sum(np.abs(x), 1, keepdims=True),
        "freq": lambda: np.concatenate([x] + [f(x * 2.0**k) for k in range(i.octaves) for f in (np.sin, np.cos)], 1),
    }[i.op]()


def evaluate(program, points, rows, params):
    """[N, channels]; rows as `ops.field` takes them."""
    n = len(points)
    full = {}
    for name, (values, index) in rows.items():
        at = np.zeros(n, int) if index is None else np.clip(np.asarray(index), 0, len(values) - 1)
        full[name] = np.float64(values)[at]
    values = []
    for i in program.instructions:
        inputs = [values[k] for k in i.inputs]
        values.append(np.float64(points) if i.op == "points" else step(i, inputs, full, params))
    return np.concatenate([values[k] for _, k in program.outputs], 1)
