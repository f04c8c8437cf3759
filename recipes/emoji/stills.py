"""Step 3: every still at 128x128 RGBA in one array, and the moving ones as WebP with a caption beside each.

`stills.npy` (N, 128, 128, 4) uint8 with straight alpha; `stills.jsonl` has one {"code", "style"} a row. A
fluent-3d still is kept only where it is the image that Microsoft released under MIT: close to the SVG of
the same code point, and none of the four that are known to carry a trademark.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import numpy as np
import resvg_py
from concepts import KEPT_OUT, STYLES, Concept, animations, concepts
from fetch import folder
from PIL import Image
from places import CLIPS, STILLS

SIZE = 128
SVG = {
    "fluent-flat": "fluent-emoji-flat",
    "high-contrast": "fluent-emoji-high-contrast",
    "noto": "noto",
    "noto-v1": "noto-v1",
}
TRADEMARKED = {"1f4ce", "1f9d1-200d-1f4bb", "1f468-200d-1f4bb", "1f469-200d-1f4bb"}
"""paperclip (drawn as Clippy) and technologists (with the Windows logo)"""
HELD_OUT_CLIPS = 24
LARGEST_DIFFERENCE = 20.0
"""mean absolute difference (0-255) up to which a fluent-3d still counts as Microsoft's released image"""

_sets: dict[str, dict] = {}


def _icons(package: str) -> dict:
    if package not in _sets:
        _sets[package] = json.loads(
            (folder(f"@iconify-json/{package}") / "icons.json").read_text(encoding="utf-8")
        )
    return _sets[package]


def _names(package: str) -> dict[str, str]:
    key = f"{package}/names"
    if key not in _sets:
        path = folder(f"@iconify-json/{package}") / "chars.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        _sets[key] = {
            "-".join(p for p in code.split("-") if p != "fe0f"): name for code, name in found.items()
        }
    return _sets[key]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower().replace("'", "")).strip("-")


def render(package: str, icon: str) -> np.ndarray | None:
    """One icon of an iconify set as (SIZE, SIZE, 4) uint8, or None where the set has no such icon."""
    data = _icons(package)
    entry = data["icons"].get(icon)
    if entry is None:
        alias = data.get("aliases", {}).get(icon)
        return render(package, alias["parent"]) if alias else None
    width, height = entry.get("width", data.get("width", 16)), entry.get("height", data.get("height", 16))
    box = f"{entry.get('left', 0)} {entry.get('top', 0)} {width} {height}"
    body = entry["body"].replace("currentColor", "#000")
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{box}" width="{SIZE}" height="{SIZE}">{body}</svg>'
    )
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=SIZE, height=SIZE))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    return np.asarray(image if image.size == (SIZE, SIZE) else image.resize((SIZE, SIZE), Image.LANCZOS))


def over(rgba: np.ndarray, colour: tuple[int, int, int] = (255, 255, 255)) -> np.ndarray:
    """(..., 4) uint8 with straight alpha over one colour -> (..., 3) float32 in 0..255."""
    alpha = rgba[..., 3:].astype(np.float32) / 255
    return rgba[..., :3] * alpha + np.asarray(colour, np.float32) * (1 - alpha)


def _fluent_3d(concept: Concept) -> np.ndarray | None:
    assets = folder("@lobehub/fluent-emoji-3d") / "assets"
    path = _file_of(assets, concept.code)
    reference = _by_code("fluent-emoji", concept) if path is not None else None
    if reference is None or concept.code in TRADEMARKED:
        return None
    image = Image.open(path).convert("RGBa").resize((SIZE, SIZE), Image.LANCZOS).convert("RGBA")
    close = np.abs(over(np.asarray(image)) - over(reference)).mean() <= LARGEST_DIFFERENCE
    return np.asarray(image) if close else None


def _file_of(assets: Path, code: str) -> Path | None:
    key = str(assets)
    if key not in _sets:
        _sets[key] = {"-".join(p for p in f.stem.split("-") if p != "fe0f"): f for f in assets.glob("*.webp")}
    return _sets[key].get(code)


def _by_code(package: str, concept: Concept) -> np.ndarray | None:
    names = _names("fluent-emoji-flat" if package == "fluent-emoji" else package)
    return render(package, names.get(concept.code, _slug(concept.name)))


def draw(concept: Concept) -> list[tuple[str, np.ndarray]]:
    """All styles of one concept that exist."""
    found = [("fluent-3d", _fluent_3d(concept))]
    found += [(style, _by_code(package, concept)) for style, package in SVG.items()]
    return [(style, image) for style, image in found if image is not None]


def make_stills() -> None:
    target = STILLS / "stills.npy"
    if target.exists():
        return
    STILLS.mkdir(parents=True, exist_ok=True)
    every = concepts()
    with Pool() as pool:
        drawn = pool.map(draw, every, chunksize=16)
    rows = [(c, s, p) for c, images in zip(every, drawn, strict=True) for s, p in images]
    lines = [json.dumps({"code": c.code, "style": s}) for c, s, _ in rows]
    (STILLS / "stills.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    np.save(STILLS / "part.npy", np.stack([p for _, _, p in rows]))
    (STILLS / "part.npy").rename(target)
    for style in (*STYLES, *KEPT_OUT):
        print(style, sum(s == style for _, s, _ in rows))


def make_clips(released: dict[str, tuple[str, float, bool, bool]]) -> None:
    """Copy the clips that move enough and differ by more than gender, captioned; 24 are held out."""
    folders = [folder(f"@lobehub/fluent-emoji-anim-{i}") / "assets" for i in range(1, 5)]
    by_code = {concept.code: concept for concept in concepts()}
    chosen = [code for code, (_, _, moves, gendered) in released.items() if moves and not gendered]
    chosen.sort(key=lambda code: hashlib.sha256(code.encode()).digest())
    parts = {"held-out": chosen[:HELD_OUT_CLIPS], "train": chosen[HELD_OUT_CLIPS:]}
    for name, codes in parts.items():
        place = CLIPS / name
        place.mkdir(parents=True, exist_ok=True)
        for code in codes:
            source = next(filter(None, map(partial(_file_of, code=code), folders)))
            shutil.copyfile(source, place / f"{code}.webp")
            caption = f"{by_code[code].name}, {STYLES['fluent-3d']} style"
            (place / f"{code}.txt").write_text(caption + "\n", encoding="utf-8")
        print(f"{len(codes)} clips in {name}")


def load() -> tuple[np.ndarray, list[dict[str, str]]]:
    """The stills (memory-mapped) and their rows."""
    rows = [json.loads(line) for line in (STILLS / "stills.jsonl").read_text(encoding="utf-8").splitlines()]
    return np.load(STILLS / "stills.npy", mmap_mode="r"), rows


if __name__ == "__main__":
    make_stills()
    make_clips(animations())
