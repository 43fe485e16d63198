"""From blendshape values, gaze and looks to the scalars that the distance functions read (numpy only)."""

import numpy as np

from tkjax.synthetic.shape import JAW_PIVOT

JAW_RADIANS = 0.36  # rotation of the jaw at jawOpen = 1
LIP_LINE_Y = -4.22  # where closed lips meet, cm
MOUTH_HALF_WIDTH = 2.5
# fmt: off
_PROPORTIONS = (
    "narrow", "traits", "hair_top", "hair_side", "hair_part", "hair_long", "hairline", "shoulder_w", "neck_w", "collar",
    "brow_w", "stripe",
)
# fmt: on


def looks(subject_seed: int) -> dict:
    """Everything that makes one subject differ from another: proportions, colours (linear rgb), clothes."""
    rng = np.random.default_rng([int(subject_seed), 7])
    u = rng.uniform
    tone = u(0.0, 1.0)
    skin = (1 - tone) * np.array([0.68, 0.43, 0.315]) + tone * np.array([0.57, 0.335, 0.225])
    hair = np.array([[0.030, 0.017, 0.010], [0.075, 0.036, 0.016], [0.014, 0.012, 0.012], [0.16, 0.085, 0.035]])
    iris = np.array([[0.10, 0.045, 0.016], [0.07, 0.12, 0.17], [0.09, 0.11, 0.05], [0.055, 0.028, 0.013]])
    cloth = np.array(
        [[0.045, 0.075, 0.15], [0.16, 0.035, 0.04], [0.05, 0.11, 0.075], [0.11, 0.11, 0.12], [0.2, 0.16, 0.1]]
    )
    return {
        "skin": skin,
        "hair": hair[rng.integers(len(hair))] * u(0.8, 1.2),
        "iris": iris[rng.integers(len(iris))],
        "cloth": cloth[rng.integers(len(cloth))],
        "stripe": float(rng.integers(2)),
        "narrow": u(0.98, 1.05),
        "traits": u(-1.0, 1.0, 5) * np.array([0.22, 0.30, 0.28, 0.35, 0.18]),
        "hair_top": u(-0.2, 0.6),
        "hair_side": u(-0.15, 0.35),
        "hair_part": u(-2.0, 2.0),
        "hair_long": float(rng.integers(2)),
        "hairline": u(8.3, 9.2),
        "shoulder_w": u(0.9, 1.08),
        "neck_w": u(0.92, 1.04),
        "collar": u(0.1, 0.45),
        "lip_full": u(0.92, 1.12),
        "brow_w": u(0.85, 1.2),
        "lip_red": u(0.85, 1.1),
        "plate_seed": int(rng.integers(1 << 30)),
    }


def lip_drop(jaw_open):
    """How far the lower lip would fall with the jaw alone, cm."""
    return (5.2 - JAW_PIVOT[1]) * np.sin(JAW_RADIANS * jaw_open)


def frame_controls(expression: dict, gaze, look: dict) -> dict:
    """Scalars of one frame. `expression`: MediaPipe names (and `tongue`) -> 0…1; `gaze` (right, up) in radians."""

    def e(name):
        if name in expression:
            return float(expression[name])
        return 0.5 * (float(expression.get(name + "Left", 0.0)) + float(expression.get(name + "Right", 0.0)))

    jaw_open, close = e("jawOpen"), e("mouthClose")
    jaw = JAW_RADIANS * jaw_open
    pucker = np.clip(e("mouthPucker") + 0.65 * e("mouthFunnel"), 0.0, 1.2)
    stretch, smile = e("mouthStretch"), e("mouthSmile")
    up, down, roll, press = e("mouthUpperUp"), e("mouthLowerDown"), e("mouthRollLower"), e("mouthPress")
    drop = lip_drop(jaw_open)
    shut = np.clip(close / max(jaw_open, 1e-3), 0.0, 1.0)  # 1: the lips meet in spite of the jaw
    width = MOUTH_HALF_WIDTH + 0.3 * stretch + 0.3 * smile - 0.8 * pucker - 0.35 * jaw_open * (1 - shut)
    gap = drop * (1 - shut)
    tuck = roll * (1 - shut)
    up_y = LIP_LINE_Y + 0.30 * up + 0.16 * e("mouthFunnel") + 0.05 * gap - 0.30 * drop * shut
    low_y = LIP_LINE_Y - gap - 0.34 * down - 0.10 * e("mouthFunnel") * (1 - shut) - 0.30 * drop * shut + 0.30 * tuck
    low_y = min(low_y, up_y)
    thin = 1.0 - 0.10 * min(gap, 1.5) - 0.22 * press
    return {
        "jaw": jaw,
        "mouth_w": width,
        "corner_y": -4.32 - 0.42 * gap - 0.3 * drop * shut + 0.35 * smile,
        "corner_z": 4.15 + 0.45 * pucker - 0.25 * smile,
        "corner_dx": width - MOUTH_HALF_WIDTH,
        "corner_dy": 0.35 * smile,
        "lip_up_y": up_y,
        "lip_low_y": low_y,
        "lip_h_up": 0.86 * look["lip_full"] * thin * (1 - 0.12 * up),
        "lip_h_low": 1.08 * look["lip_full"] * thin * (1 - 0.45 * tuck),
        "lip_z": 5.30 + 0.55 * pucker,
        "lip_t_up": 0.50 + 0.12 * pucker,
        "lip_t_low": 0.54 + 0.12 * pucker,
        "low_back": 0.45 * (gap + drop) * 0.5 + 0.35 * tuck,
        "protrude": 0.7 * pucker,
        "smile": smile,
        "tongue": float(expression.get("tongue", 0.0)),
        "blink_l": float(expression.get("eyeBlinkLeft", 0.0)),
        "blink_r": float(expression.get("eyeBlinkRight", 0.0)),
        "lid_up": 0.56 + 0.25 * float(gaze[1]) + 0.10 * e("browInnerUp"),
        "lid_low": 0.40,
        "brow": 0.55 * e("browInnerUp"),
        "gaze": np.array([np.sin(gaze[0]) * np.cos(gaze[1]), np.sin(gaze[1]), np.cos(gaze[0]) * np.cos(gaze[1])]),
        **{k: look[k] for k in _PROPORTIONS},
        **{"c_" + k: np.asarray(look[k]) for k in ("skin", "hair", "iris", "cloth")},
        "lip_red": look["lip_red"],
    }


def gaze_names(gaze) -> dict:
    """MediaPipe eyeLook values of a gaze (right, up) in radians, seen in head axes (right = subject's left)."""
    h, v = float(gaze[0]) / 0.6, float(gaze[1]) / 0.5
    left, right, up, down = max(h, 0), max(-h, 0), max(v, 0), max(-v, 0)
    return {
        "eyeLookOutLeft": left, "eyeLookInRight": left, "eyeLookInLeft": right, "eyeLookOutRight": right,
        "eyeLookUpLeft": up, "eyeLookUpRight": up, "eyeLookDownLeft": down, "eyeLookDownRight": down,
    }  # fmt: skip
