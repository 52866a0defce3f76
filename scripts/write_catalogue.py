"""Write docs/catalogue/ and the records behind it: `python scripts/write_catalogue.py [--laws] [--pictures]`.

Costs are counted again where a variant's source changed; with --laws the laws are run where there is no verdict, which
takes minutes and can be stopped and gone on with.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from gptlab import cards, files, listing, recording

DOCS = Path(__file__).resolve().parent.parent / "docs" / "catalogue"


def main() -> None:
    """Records, then text, then pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--laws", action="store_true", help="judge variants whose source has no verdict")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures again")
    wanted = parser.parse_args()
    with Console(stderr=True).status("reading") as status:
        recording.renew(cards.deck(), wanted.laws, status.update)
    for name, text in listing.pages(cards.deck(any_source=True)).items():
        files.write_atomically(DOCS / name, text.encode())
    if wanted.pictures:
        from pictures import draw  # beside this file

        draw(DOCS)


if __name__ == "__main__":
    main()
