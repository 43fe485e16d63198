"""What a stage measures of its own result, held against bounds: good, warn or fail.

A stage writes its checks as `checks.json` beside its output (`write`); the pipeline gathers them, prints them as a
table, stores them in the manifest (`checks`) and stops where one fails that the user has not accepted by name.
"""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from tkjax.images import write_atomic

CHECKS = "checks.json"
GOOD, WARN, FAIL = "good", "warn", "fail"


@dataclasses.dataclass(frozen=True)
class Check:
    """One measure of a stage. value: a number, or null where nothing could be measured; bound: the value from which
    the verdict is no longer good, or words; message: one sentence for a person, with what to do, where not good."""

    stage: str
    measure: str
    value: float | str | None
    bound: float | str
    verdict: str
    message: str = ""


def judge(
    stage: str,
    measure: str,
    value: float,
    *,
    warn: float,
    fail: float | None = None,
    more_is_worse: bool = True,
    message: str = "",
) -> Check:
    """Good up to `warn`, a failure beyond `fail` (None: never), else a warning; NaN is a failure, or a warning where
    nothing fails. With more_is_worse False the bounds are lower ones."""
    sign = 1.0 if more_is_worse else -1.0
    if math.isnan(value):
        verdict = WARN if fail is None else FAIL
    elif fail is not None and sign * value > sign * fail:
        verdict = FAIL
    else:
        verdict = WARN if sign * value > sign * warn else GOOD
    shown = None if math.isnan(value) else round(float(value), 4)
    return Check(stage, measure, shown, warn, verdict, "" if verdict == GOOD else message)


def write(folder: Path, checks: Sequence[Check]) -> None:
    """checks.json of a stage, replaced in one go."""
    write_atomic(Path(folder) / CHECKS, json.dumps([dataclasses.asdict(c) for c in checks], indent=1).encode())


def read(folder: Path) -> list[Check]:
    """The checks that a stage wrote; none where it wrote none."""
    path = Path(folder) / CHECKS
    return [Check(**c) for c in json.loads(path.read_text())] if path.is_file() else []
