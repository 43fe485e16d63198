"""What a stage measures of its own result, held against bounds: good, warn or fail.

A stage writes its checks as `checks.json` beside its output (`write`). The pipeline gathers them, stops where one fails
that the user has not accepted by the name of its stage (`refuse_failures`), prints them as a table (`table`) and stores
them in the manifest (`rows`). A stage of checks is a topic that a user knows, one of `STAGES`, not a folder's name.
"""

import dataclasses
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tkjax.errors import UserError
from tkjax.host.files import write_atomic

CHECKS = "checks.json"
GOOD, WARN, FAIL = "good", "warn", "fail"
STAGES = ("content", "sound", "poses", "labels", "background")  # tkjax/app/options.py offers the same for --accept


class Failed(UserError):
    """A result that fails its checks: the stages stay, so that `--accept` goes on from there."""


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
    shown = round(float(value), 4) if math.isfinite(value) else None
    return Check(stage, measure, shown, warn, verdict, "" if verdict == GOOD else message)


def write(folder: Path, checks: Sequence[Check]) -> None:
    """checks.json of a stage, replaced in one go."""
    write_atomic(Path(folder) / CHECKS, json.dumps([dataclasses.asdict(c) for c in checks], indent=1).encode())


def read(folder: Path) -> list[Check]:
    """The checks that a stage wrote; none where it wrote none."""
    path = Path(folder) / CHECKS
    return [Check(**c) for c in json.loads(path.read_text())] if path.is_file() else []


def gather(folders: Iterable[Path]) -> list[Check]:
    """The checks of stages in the order of their folders, of equal (stage, measure) the last: a later stage that
    judges the same thing again, having bettered it, has the last word."""
    found: dict[tuple[str, str], Check] = {}
    for folder in folders:
        for check in read(folder):
            found.pop((check.stage, check.measure), None)
            found[check.stage, check.measure] = check
    return list(found.values())


def parse_accept(text: str) -> tuple[str, ...]:
    """`poses,labels` -> names of STAGES; UserError for any other name."""
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    for name in names:
        if name not in STAGES:
            raise UserError(f"--accept={text}: {name} is unknown; choose some of {', '.join(STAGES)}")
    return names


def rows(checks: Iterable[Check], accept: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The checks as the manifest holds them; `accepted` marks failures that the user overrode."""
    out = []
    for check in checks:
        row = {k: v for k, v in dataclasses.asdict(check).items() if k != "message" or v}
        out.append(row | ({"accepted": True} if check.verdict == FAIL and check.stage in accept else {}))
    return out


def table(checks: Sequence[Check], accept: Sequence[str] = ()) -> str:
    """Measure, value, bound and verdict of each, then the sentences of those that are not good."""

    def shown(value: float | str | None) -> str:
        return "–" if value is None else value if isinstance(value, str) else f"{value:g}"

    lines = [("stage", "measure", "value", "bound", "verdict")]
    for c in checks:
        verdict = f"{c.verdict}, accepted" if c.verdict == FAIL and c.stage in accept else c.verdict
        lines.append((c.stage, c.measure, shown(c.value), shown(c.bound), verdict))
    widths = [max(len(line[k]) for line in lines) for k in range(4)]
    out = ["  ".join([*(f"{cell:{w}}" for cell, w in zip(line[:4], widths, strict=True)), line[4]]) for line in lines]
    out += [f"{c.verdict}: {c.stage}: {c.message}" for c in checks if c.verdict != GOOD and c.message]
    return "\n".join(out)


def refuse_failures(checks: Iterable[Check], accept: Sequence[str], source: str) -> None:
    """Failed (a UserError) of one sentence that names every failure which is not accepted and how to accept it."""
    failures = [c for c in checks if c.verdict == FAIL and c.stage not in accept]
    if failures:
        said = "; ".join(f"{c.stage}: {c.message or f'{c.measure} is {c.value}, beyond {c.bound}'}" for c in failures)
        names = ",".join(dict.fromkeys([*accept, *(c.stage for c in failures)]))
        raise Failed(f"{source} fails its checks: {said}; mend the clip, or use it all the same with --accept={names}")
