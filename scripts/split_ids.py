"""Write the identifiers of a crystal table, one file for each of its splits.

    python scripts/split_ids.py crystals.jsonl.gz ids/

A record's field `split` names its part; the files are what `hxrd simulate` reads.
"""

import sys
from collections import defaultdict
from pathlib import Path

from hxrd.sources.jsonl import JsonlSource


def main(table: str, folder: str) -> None:
    """Write FOLDER/SPLIT.txt for every split of TABLE."""
    identifiers = defaultdict(list)
    for record, _ in JsonlSource(Path(table)).iterate():
        identifiers[record["split"]].append(record["id"])
    Path(folder).mkdir(parents=True, exist_ok=True)
    for split, names in identifiers.items():
        (Path(folder) / f"{split}.txt").write_text("\n".join(names) + "\n", encoding="utf-8")
        print(f"{split}: {len(names)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
