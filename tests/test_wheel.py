"""What a wheel of the project holds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parent.parent


def test_wheel_brings_the_recipes(tmp_path: Path) -> None:
    """Taken from the wheel alone, every recipe and configuration of the source tree is known, and no test shipped.

    What is no Python, as the report's template, comes along.
    """
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as archive:
        packages = {name.split("/")[0] for name in archive.namelist()}
        archive.extractall(tmp_path / "site")
        shipped = set(archive.namelist())
    ours = ("surgery", "evalkit", "trainers")
    others = {path.relative_to(ROOT).as_posix() for package in ours for path in (ROOT / package).rglob("*.j2")}
    others |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "evalkit" / "demo" / "checkpoints").glob("*/*")}
    others |= {f"surgery/_{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "recipes").rglob("*.yaml")}
    assert others
    assert others <= shipped
    assert {name for name in packages if not name.endswith(".dist-info")} == set(ours)
    for words, folder in ((["recipes"], "recipes"), (["train", "configs"], "recipes/train")):
        done = subprocess.run(
            [sys.executable, "-m", "surgery", *words],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
            check=True,
            capture_output=True,
            text=True,
        )
        listed = [line.split()[0] for line in done.stdout.splitlines()]
        known = sorted(path.stem for path in (ROOT / folder).glob("*.yaml"))
        known += sorted(f"accelerate/{path.stem}" for path in (ROOT / folder / "accelerate").glob("*.yaml"))
        assert listed == known
