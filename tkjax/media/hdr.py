"""Video of a wide range or gamut (PQ, HLG, BT.2020, P3) as ordinary pictures, by one stated formula.

1. Code values R'G'B' (full range) -> light in cd/m²: PQ by the EOTF of SMPTE ST 2084; HLG by the inverse OETF of ITU-R
   BT.2100 and its OOTF for a display of 1000 cd/m² (gamma 1.2); others by sRGB's curve, with 203 cd/m² as white.
2. Relative light: 1 is the reference white of ITU-R BT.2408, 203 cd/m².
3. Primaries to BT.709 by the linear matrix; what lies outside is clipped at 0.
4. Brighter than KNEE, the largest component m becomes KNEE + (1 - KNEE)(1 - exp(-(m - KNEE) / (1 - KNEE))) and the
   others keep their proportion to it: highlights bend towards white instead of breaking off, hues stay.
5. sRGB's curve, 8 bits: what computers show, as all other pictures here are taken to be.
"""

import functools

import numpy as np
from jaxtyping import Float, UInt8, UInt16

WHITE_NITS = 203.0  # ITU-R BT.2408
HLG_PEAK_NITS, HLG_GAMMA = 1000.0, 1.2  # ITU-R BT.2100
KNEE = 0.9
PQ, HLG = 16, 18  # transfer characteristics of ITU-T H.273
NAMES = {PQ: "PQ", HLG: "HLG"}
LUMA_2020 = np.array([0.2627, 0.6780, 0.0593], np.float32)
# Linear light to BT.709 (D65) from the primaries of H.273, by their chromaticities; rows are R, G, B
TO_709 = {
    9: np.array([[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]]),
    12: np.array([[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]]),
}
UNREADABLE = {14: "ICtCp", 15: "IPT-C2 (Dolby Vision profile 5)"}  # colour spaces that nothing here can undo


def kind(transfer: int, primaries: int) -> str:
    """ "PQ", "HLG", "BT.2020" or "P3" for what has to be mapped, "" for ordinary video; numbers of H.273."""
    return NAMES.get(transfer) or {9: "BT.2020", 12: "P3"}.get(primaries, "")


@functools.cache
def _light(transfer: int) -> Float[np.ndarray, "65536"]:
    """Light of each 16-bit code value: relative to white, for HLG the scene's 0…1."""
    v = np.arange(65536) / 65535
    if transfer == PQ:
        m1, m2, c1, c2, c3 = 2610 / 16384, 2523 / 32, 3424 / 4096, 2413 / 128, 2392 / 128
        p = v ** (1 / m2)
        light = 10000 * (np.maximum(p - c1, 0) / (c2 - c3 * p)) ** (1 / m1) / WHITE_NITS
    elif transfer == HLG:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        light = np.where(v <= 0.5, v * v / 3, (np.exp((v - c) / a) + b) / 12)
    else:
        light = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    return light.astype(np.float32)


@functools.cache
def _bytes() -> UInt8[np.ndarray, "65536"]:
    """8-bit code value of light 0…1 in 65536 steps of its square root, which keeps the dark ones apart."""
    light = (np.arange(65536) / 65535) ** 2
    return np.rint(255 * np.where(light <= 0.0031308, 12.92 * light, 1.055 * light ** (1 / 2.4) - 0.055)).astype(
        np.uint8
    )


def to_sdr(rgb: UInt16[np.ndarray, "H W 3"], transfer: int, primaries: int) -> UInt8[np.ndarray, "H W 3"]:
    """Full-range code values of 16 bits -> 8-bit picture, as the module says; numbers of H.273."""
    light = _light(transfer)[rgb]
    if transfer == HLG:
        scene = np.maximum(light @ LUMA_2020, 1e-6)[..., None]
        light = light * scene ** np.float32(HLG_GAMMA - 1) * np.float32(HLG_PEAK_NITS / WHITE_NITS)
    matrix = TO_709.get(9 if transfer in NAMES and primaries not in TO_709 and primaries != 1 else primaries)
    if matrix is not None:
        light = light @ matrix.T.astype(np.float32)
    light = np.maximum(light, 0)
    top = np.maximum(np.maximum(light[..., 0], light[..., 1]), light[..., 2])
    over = top > KNEE
    if over.any():
        m = top[over]
        bent = KNEE + (1 - KNEE) * (1 - np.exp(-(m - KNEE) / (1 - KNEE)))
        light[over] *= (bent / m)[:, None]
    return _bytes()[(np.sqrt(np.minimum(light, 1)) * 65535 + 0.5).astype(np.uint16)]
