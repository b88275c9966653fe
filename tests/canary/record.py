"""What the private names were in the releases that all tests passed with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from .names import Name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .names import Findings

__all__ = ["GIS", "Moved", "Record", "compare", "read", "write"]

FILE = Path(__file__).with_name("recorded.json")

GIS = frozenset({"DatabaseWrapper._type_infos"})
"""What is asked for only where GDAL is installed."""


class Record(NamedTuple):
    """The names as they were."""

    names: dict[str, dict[str, Name]]
    versions: dict[str, str]
    python: str

    def with_names(self, names: Mapping[str, Mapping[str, Name]]) -> Record:
        """Return the record with *names* and no others, of which the known ones stay as they were.

        Those of the GIS backend are found only where GDAL is installed.
        """
        kept = {
            distribution: {
                **{name: was for name, was in self.names[distribution].items() if name in GIS},
                **{name: self.names[distribution].get(name, now) for name, now in found.items()},
            }
            for distribution, found in names.items()
        }
        return self._replace(names=kept)


class Moved(NamedTuple):
    """What is not as it was, in one line for each name."""

    broken: list[str]
    """Gone, of another kind, or called in another way."""
    changed: list[str]
    """Doing something else, perhaps."""


def read(file: Path = FILE) -> Record:
    """Return what was recorded last."""
    record = json.loads(file.read_text(encoding="utf-8"))
    names = {
        distribution: {name: Name(*fields) for name, fields in known.items()}
        for distribution, known in record["names"].items()
    }
    return Record(names, record["versions"], record["python"])


def write(record: Record, file: Path = FILE) -> None:
    """Write the names into a file."""
    text = json.dumps(record._asdict(), indent=1, sort_keys=True, ensure_ascii=False)
    # A line for each name, so that a difference shows which.
    text = re.sub(r"\[\n\s*(.+),\n\s*(.+),\n\s*(.+)\n\s*\]", r"[\1, \2, \3]", text)
    file.write_text(text + "\n", encoding="utf-8")


def compare(before: Mapping[str, Mapping[str, Name]], found: Findings) -> Moved:
    """Tell what has moved."""
    moved = Moved([], [])
    for distribution, names in found.names.items():
        for title, now in names.items():
            was = before.get(distribution, {}).get(title)
            purpose = f"(to {found.purposes[title]})"
            what = f"{distribution}: {title}"
            if now.kind == "gone":
                moved.broken.append(f"{what} is gone {purpose}")
            elif was is None:
                moved.changed.append(f"{what} is not recorded {purpose}")
            elif now.kind != was.kind:
                moved.broken.append(f"{what} is a {now.kind}, was a {was.kind} {purpose}")
            elif now.takes != was.takes:
                moved.broken.append(f"{what} takes ({now.takes}), took ({was.takes}) {purpose}")
            elif now.code != was.code:
                moved.changed.append(f"{what} has changed inside {purpose}")
    return moved
