"""A picture of what an avatar's coefficients do: each at 0, 1/2 and 1 of its range in training, all others at rest.

Every row is one channel of a signal other than sound: its name, then three pictures of the face, in which what differs
from the face at rest keeps its colours and the rest is a little greyer. The pose is the clip's most usual one, sound is
silence (zeros). The rows stand in as many columns as make the picture a little wider than high.
"""

import dataclasses
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont, PngImagePlugin
from tqdm import tqdm

from tkjax.avatar.bundle import Avatar
from tkjax.drive import driver, motion, stream
from tkjax.drive.scene import Scene
from tkjax.errors import UserError
from tkjax.host.files import write_atomic
from tkjax.signals import SOUND, SignalInfo

STEPS = (0.0, 0.5, 1.0)  # shares of a channel's range
STILL = 1e-3  # of a channel's range: less has shown the system nothing
TILE = 128, 176  # least and largest side of a picture in the sheet, pixels
ASPECT = 1.6  # width over height that the sheet comes near
MARGIN = 0.22  # of the face's box that is shown around it
GREY = 0.6  # share of grey where nothing differs from the face at rest
FAINT, PLAIN = 3.0, 16.0  # difference (of 255) that begins to count, and that counts whole
GROUND, INK, DIM, LINE = (18, 19, 23), (236, 236, 240), (138, 141, 150), (52, 54, 62)
GAP, PAD, CAPTION = 22, 36, 26  # between columns, around everything, of a row's name; pixels
ROUND = 6  # radius of a row's corners, pixels


@dataclasses.dataclass(frozen=True)
class Row:
    """A channel to draw: of which signal, its place in it, its name and its range in training."""

    signal: str
    channel: int
    name: str
    low: float
    high: float


def rows_of(avatar: Avatar) -> tuple[list[Row], list[str]]:
    """(the channels that drive an avatar and have a range, the names of those that have none)."""
    rows, still = [], []
    for use in avatar.model().signals():
        if use.name == SOUND:
            continue
        info = avatar.info.signal(use.name)
        low, high = _range(avatar, info)
        for k in range(info.channels):
            name = info.names[k] if info.names else f"{info.name} {k}"
            if high[k] - low[k] > STILL:
                rows.append(Row(use.name, k, name, float(low[k]), float(high[k])))
            else:
                still.append(name)
    return rows, still


def _range(avatar: Avatar, info: SignalInfo) -> tuple[np.ndarray, np.ndarray]:
    if info.low:
        return np.array(info.low), np.array(info.high)
    values = avatar.signals[info.name].values[: avatar.n_train]
    return values.min(0), values.max(0)


# ---------------------------------------------------------------- pictures


class Faces:
    """Draws the face of an avatar for values of its signals, in its most usual pose."""

    def __init__(self, avatar: Avatar):
        self.avatar = avatar
        self.scene = Scene(avatar, motion.plan(avatar), paste_back="none")
        self.variables = avatar.variables(self.scene.model)
        self.frame = _usual(self.scene.plan)
        self.track_frame = self.scene.plan.track_frame(self.frame)
        self.behind, self.torso = self.scene.behind(self.track_frame)
        self.rest = {use.name: driver.rest(avatar, use.name) for use in self.scene.model.signals() if use.name != SOUND}

    def draw(self, change: Row | None = None, share: float = 0.0) -> UInt8[np.ndarray, "h w 3"]:
        """The whole picture at rest, with one channel at a share of its range."""
        values = {name: v.copy() for name, v in self.rest.items()}
        if change is not None:
            values[change.signal][change.channel] = change.low + share * (change.high - change.low)
        windows = {}
        for use in self.scene.model.signals():
            info = self.avatar.info.signal(use.name)
            shape = use.neighbours, info.window, info.channels
            windows[use.name] = (
                np.zeros(shape, np.float32) if use.name == SOUND else np.tile(values[use.name], (*shape[:2], 1))
            )
        batch = stream.frame_batch(self.scene, self.frame, windows, self.behind)
        drawn = self.scene.start(self.variables, batch, self.behind, self.torso)
        return np.asarray(self.scene.finish(drawn, self.track_frame))

    @property
    def box(self) -> tuple[int, int, int, int]:
        """The square around the face that is shown, within the picture as far as it fits."""
        h, w = self.behind.shape[:2]
        x0, y0, x1, y1 = (float(v) for v in self.avatar.face_box_px[self.track_frame])
        if x1 - x0 < 2 or y1 - y0 < 2:
            return (0, 0, w, h)
        side = min(round((1 + 2 * MARGIN) * max(x1 - x0, y1 - y0)), h, w)
        left = min(max(round((x0 + x1 - side) / 2), 0), w - side)
        top = min(max(round((y0 + y1 - side) / 2), 0), h - side)
        return left, top, left + side, top + side


def _usual(plan: motion.Motion) -> int:
    """The frame whose pose is nearest to the mean of all, by where the head's corners lie in the picture."""
    corners = motion.corners_px(plan.cam_to_world, plan.intrinsics)
    return int(np.argmin(((corners - corners.mean(0)) ** 2).sum((1, 2))))


def emphasised(picture: UInt8[np.ndarray, "h w 3"], rest: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h w 3"]:
    """The picture with its colours where it differs from the face at rest, greyer elsewhere, with soft borders."""
    difference = np.abs(picture.astype(np.float32) - rest).max(-1)
    share = np.clip((difference - FAINT) / (PLAIN - FAINT), 0, 1)
    soft = Image.fromarray(np.rint(255 * share).astype(np.uint8)).filter(ImageFilter.MaxFilter(5))
    soft = np.asarray(soft.filter(ImageFilter.GaussianBlur(max(1.0, picture.shape[0] / 48))), np.float32)[..., None]
    keep = 1 - GREY * (1 - soft / 255)
    grey = (picture @ np.array([0.299, 0.587, 0.114], np.float32))[..., None]
    return np.rint(np.clip(keep * picture + (1 - keep) * grey, 0, 255)).astype(np.uint8)


def strips(faces: Faces, rows: Sequence[Row], tile: int) -> Iterator[UInt8[np.ndarray, "t w 3"]]:
    """For every row its pictures side by side, `tile` pixels high."""
    x0, y0, x1, y1 = faces.box
    rest = faces.draw()[y0:y1, x0:x1]
    for row in rows:
        parts = [emphasised(faces.draw(row, share)[y0:y1, x0:x1], rest) for share in STEPS]
        scaled = [Image.fromarray(p).resize((tile, tile), Image.Resampling.LANCZOS) for p in parts]
        yield np.concatenate([np.asarray(p) for p in scaled], 1)


# ---------------------------------------------------------------- the sheet


def columns_for(n: int, tile: int) -> int:
    """Columns of rows that bring a sheet of n rows nearest to `ASPECT`."""

    def aspect(c: int) -> float:
        return c * (len(STEPS) * tile + GAP) / (math.ceil(n / c) * (tile + CAPTION + GAP))

    return min(range(1, n + 1), key=lambda c: (abs(math.log(aspect(c) / ASPECT)), c))


def compose(strips_: Iterator[np.ndarray], rows: Sequence[Row], tile: int, title: str, foot: str) -> Image.Image:
    """The sheet; rows run down a column, then down the next."""
    n, wide = len(rows), len(STEPS) * tile
    columns = columns_for(n, tile)
    down = math.ceil(n / columns)
    small, large = (ImageFont.load_default(size) for size in (15, 26))
    head, tail = 64, 34 if foot else 0
    width = max(2 * PAD + columns * wide + (columns - 1) * GAP, 520)
    height = 2 * PAD + head + down * (tile + CAPTION) + (down - 1) * GAP + tail
    sheet = Image.new("RGB", (width, height), GROUND)
    pen = ImageDraw.Draw(sheet)
    pen.text((PAD, PAD - 8), _fit(pen, title, large, width - 2 * PAD), font=large, fill=INK)
    legend = "each at 0, 1/2 and 1 of what training showed; all others at rest"
    pen.text((PAD, PAD + 28), _fit(pen, legend, small, width - 2 * PAD), font=small, fill=DIM)
    mask = Image.new("L", (4 * wide, 4 * tile), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * wide - 1, 4 * tile - 1), 4 * ROUND, fill=255)
    mask = mask.resize((wide, tile), Image.Resampling.LANCZOS)
    for k, (row, strip) in enumerate(zip(rows, strips_, strict=True)):
        x, y = PAD + k // down * (wide + GAP), PAD + head + k % down * (tile + CAPTION + GAP)
        numbers = f"{row.low:.2g} to {row.high:.2g}"
        room = wide - pen.textlength(numbers, font=small) - 12
        pen.text((x, y + 2), _fit(pen, row.name, small, room), font=small, fill=INK)
        pen.text((x + wide, y + 2), numbers, font=small, fill=DIM, anchor="ra")
        sheet.paste(Image.fromarray(strip), (x, y + CAPTION), mask)
        for j in range(1, len(STEPS)):
            pen.line((x + j * tile, y + CAPTION, x + j * tile, y + CAPTION + tile - 1), fill=GROUND, width=2)
    if foot:
        y = height - PAD - 14
        pen.line((PAD, y - 12, width - PAD, y - 12), fill=LINE)
        pen.text((PAD, y), _fit(pen, foot, small, width - 2 * PAD), font=small, fill=DIM)
    return sheet


def _fit(
    pen: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width: float | int
) -> str:
    """The text, cut to a width with dots."""
    if pen.textlength(text, font=font) <= width:
        return text
    while text and pen.textlength(f"{text}…", font=font) > width:
        text = text[:-1]
    return f"{text}…"


def check_out(out: Path | str) -> None:
    """Refuse a name that is no picture's, before any work."""
    out = Path(out)
    if out.suffix.lower() != ".png" or out.is_dir():
        raise UserError(f"--out={out}: a sheet is a picture; name a .png file")


def draw(avatar: Avatar, out: Path | str) -> int:
    """Write the sheet of an avatar's coefficients as a PNG that says what it is; the number of rows. The same avatar
    gives the same bytes.

    UserError where no coefficient drives the avatar, or none of them has moved in training."""
    check_out(out)
    rows, still = rows_of(avatar)
    if not rows and not still:
        raise UserError(f"{avatar.folder}: no coefficient drives this avatar, so there is nothing to draw on a sheet")
    if not rows:
        raise UserError(f"{avatar.folder}: none of its {len(still)} coefficients has a range in training to draw")
    faces = Faces(avatar)
    side = faces.box[2] - faces.box[0]
    tile = min(max(side, TILE[0]), TILE[1])
    foot = ""
    if still:
        foot = f"without a range in training, and left out: {', '.join(still)}"
        print(f"sheet: {len(still)} of {len(rows) + len(still)} channels are {foot}", flush=True)
    names = list(dict.fromkeys(row.signal for row in rows))
    title = f"{' and '.join(names)} of avatar {avatar.id}"
    drawn = tqdm(strips(faces, rows, tile), total=len(rows), desc="sheet", unit="row", mininterval=0.5)
    sheet = compose(iter(drawn), rows, tile, title, foot)
    facts = PngImagePlugin.PngInfo()
    for key, text in stream.mark(avatar).items():
        facts.add_text(key, text)
    data = io.BytesIO()
    sheet.save(data, "PNG", pnginfo=facts, optimize=True)
    write_atomic(out, data.getvalue())
    return len(rows)
