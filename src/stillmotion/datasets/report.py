"""What could not be used and why: each file once, counted, said in one sentence. Prints nothing itself."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from stillmotion.atomic import write_text


class Report:
    """Skipped files with their reasons, in the order they were met."""

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def skip(self, path: str | Path, reason: str) -> bool:
        """Notes a file once; False when it was known already."""
        new = str(path) not in self.skipped
        self.skipped.setdefault(str(path), reason)
        return new

    def sentence(self) -> str:
        """For example: "3 files skipped: 2 too short, 1 damaged"; empty when nothing was skipped."""
        if not self.skipped:
            return ""
        kinds = Counter(self.skipped.values()).most_common()
        listed = "; ".join(f"{count} x {reason}" for reason, count in kinds[:5])
        more = f"; and {len(kinds) - 5} more reasons" if len(kinds) > 5 else ""
        count = len(self.skipped)
        return f"{count} {'file' if count == 1 else 'files'} skipped: {listed}{more}."

    def save(self, path: str | Path) -> None:
        """One JSON object per skipped file."""
        lines = [json.dumps({"file": file, "reason": why}) for file, why in self.skipped.items()]
        write_text(path, "".join(f"{line}\n" for line in lines))
