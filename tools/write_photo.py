"""Write a photograph for trials: 512×512, NASA's portrait of Eileen Collins (public domain).

python tools/write_photo.py PHOTO.png
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image
from skimage import data


def main(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(data.astronaut()).save(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
