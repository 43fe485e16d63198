"""The facts of a subject for tests: sound, expression and eyes by their sizes."""

from tkjax.signals import SOUND, SignalInfo
from tkjax.types import SubjectInfo


def subject_info(n, h, w, kind, channels, steps, expression, intrinsics) -> SubjectInfo:
    """steps: of a window of sound, which are as far apart as windows of 16 are by default."""
    hop, left = (2, steps // 2) if steps > 2 else (steps, 0)
    sound = SignalInfo(SOUND, channels, 25.0 * hop, window=steps, hop=hop, left=left, kind=kind)
    plain = {"expression": expression, "eye_closed": 1, "eye_area": 1}
    signals = [sound, *(SignalInfo(name, k, 25.0) for name, k in plain.items() if k)]
    return SubjectInfo(n, h, w, intrinsics, tuple(signals))
