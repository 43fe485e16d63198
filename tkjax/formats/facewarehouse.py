"""The names of FaceWarehouse's 46 expression coefficients, in the order of NeRFBlendShape's data (its dossier §2.4)."""


def _pairs(*names: str) -> tuple[str, ...]:
    return tuple(f"{name}{side}" for name in names for side in ("Left", "Right"))


FACEWAREHOUSE = (
    *_pairs("eyeClose", "eyeSquint", "eyeLookDown", "eyeLookIn", "eyeWide", "eyeLookOut", "eyeLookUp", "browDown"),
    "browInnerUp", *_pairs("browOuterUp"), "jawForward", "jawLeft", "jawOpen", "jawRight", *_pairs("mouth"),
    *_pairs("mouthFrown", "mouthSmile", "mouthPress", "mouthDimple"),
    "mouthRollUpper", "mouthRollLower", "mouthUpperUp", "mouthLowerDown", "lipLowerDown", "mouthFunnel", "mouthPucker",
    "mouthShrug", "lipUpperUp", "noseWrinkle", "cheekPuff", *_pairs("cheekUp"),
)  # fmt: skip
