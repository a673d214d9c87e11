"""The report in a browser: it needs no network, fits a phone, and is readable in the dark and on paper."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.browser import DESKTOP, PHONE, ShowPage, sideways
from tests.trainers.reproduce.fabricated import pipeline, write_records, write_seed
from trainers.reproduce.report import make_report
from trainers.reproduce.standing import standings

pytestmark = pytest.mark.browser


@pytest.mark.parametrize("options", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page(show_page: ShowPage, tmp_path: Path, options: dict[str, Any], scheme: Any) -> None:
    """Nothing is fetched, nothing goes wrong, nothing sticks out; figures are shown as large as there is room."""
    made = pipeline()
    for seed in range(3):
        write_records(made, tmp_path, seed)
        write_seed(tmp_path, seed)
    path = make_report(made, tmp_path, standings(made, tmp_path, range(3)))
    page = show_page(path, color_scheme=scheme, **options)
    assert sideways(page) == 0
    assert page.locator("h1").inner_text() == "Numbers that are known."
    assert page.locator("figure img").count() == 5
    for image in page.locator("figure img").all():
        assert image.evaluate("node => node.complete && node.naturalWidth > 0")
    assert page.locator(".cards li").count() == 5
    assert page.locator("tr.average").count() == 3
    background = page.evaluate("getComputedStyle(document.documentElement).backgroundColor")
    assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")
    page.emulate_media(media="print")
    assert page.locator("#paper-1").is_visible()
