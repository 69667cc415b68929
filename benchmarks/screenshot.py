"""A picture of a report's first screen, for the documents.

    tempspec report runs/smollm2
    python benchmarks/screenshot.py runs/smollm2/report/report.html docs/smollm2-report.png

It needs `pip install playwright pillow` and a `chromium` on the path. The page is opened 1,000 pixels wide, as a reader
opens it, and saved with 128 colours.
"""

import argparse
import io
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

WIDTH, HEIGHT, COLOURS = 1000, 1180, 128


def picture(page: Path) -> bytes:
    """What a browser shows of a page when it is opened, as PNG."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        shown.goto(page.resolve().as_uri())
        taken = shown.screenshot()
        browser.close()
    return taken


def smaller(png: bytes) -> bytes:
    """The same picture with few colours."""
    buffer = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").quantize(COLOURS).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def main() -> None:
    """Take the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument("picture", type=Path)
    options = parser.parse_args()
    options.picture.write_bytes(smaller(picture(options.page)))
    print(f"{options.picture}: {options.picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
