"""Draws the PNG icons from icon.svg with Chromium, by hand when the drawing changes: python scripts/icons.py."""

from pathlib import Path

from playwright.sync_api import sync_playwright

ICONS = Path(__file__).resolve().parents[1] / "public/icons"
# Name, side, and how much of it the drawing takes; a maskable icon may be cut to a circle of 80 %.
KINDS = [("icon-192", 192, 1.0), ("icon-512", 512, 1.0), ("icon-maskable-512", 512, 1.25)]

with sync_playwright() as playwright:
    browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox", "--disable-gpu"])
    for name, side, scale in KINDS:
        page = browser.new_page(viewport={"width": side, "height": side})
        svg = (ICONS / "icon.svg").read_text()
        if scale != 1:
            svg = svg.replace('rx="112"', 'rx="0"').replace("0 0 512 512", "-64 -64 640 640")
            svg = svg.replace('<rect width="512" height="512"', '<rect x="-64" y="-64" width="640" height="640"')
        page.set_content(f"<style>body{{margin:0}}svg{{display:block;width:{side}px}}</style>{svg}")
        page.screenshot(path=ICONS / f"{name}.png", omit_background=True)
    browser.close()
