"""Conditions of a clip besides its text. A new one is a file in this folder and a row here; nothing else.

The file has a class that holds its fields, with their help, and prepares what goes on the pipeline
(`base.Condition`); it imports no torch when it is imported. Flag, JSON, metadata, `--help`, the name in
`stillmotion` and the table in docs/reference.md come of the row.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for editors; while running, classes are imported when they are used
    from stillmotion.sampling.conditions.controlnet import ControlNet as ControlNet

CONDITIONS: dict[str, str] = {
    "controlnet": "stillmotion.sampling.conditions.controlnet:ControlNet",
}
"""Name in JSON -> module:Class. Imported when it is used."""
