"""Put two pictures side by side, at half size, as docs/tour.md shows them.

python tools/write_tour_picture.py photo.png decoded.png docs/images/tour.webp
"""

from __future__ import annotations

import sys

from PIL import Image


def main(left: str, right: str, out: str) -> None:
    pictures = [Image.open(path) for path in (left, right)]
    halves = [picture.resize((picture.width // 2, picture.height // 2)) for picture in pictures]
    both = Image.new("RGB", (sum(half.width for half in halves), max(half.height for half in halves)))
    both.paste(halves[0], (0, 0))
    both.paste(halves[1], (halves[0].width, 0))
    both.save(out, quality=80)


if __name__ == "__main__":
    main(*sys.argv[1:])
