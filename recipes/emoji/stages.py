"""The order in which concepts are learnt: what everybody would ask for and what moves comes first.

A small model that draws 300 things well is better than one that draws 1,200 as fog, so training starts with
the first few hundred of this order and takes more in as it goes on.
"""

from __future__ import annotations

import json

from concepts import STYLES, Concept, animations, concepts
from places import CLIPS

FAMOUS = """
red apple|banana|strawberry|cherries|grapes|watermelon|lemon|pineapple|pear|peach|carrot|broccoli
mushroom|tomato|hamburger|pizza|birthday cake|doughnut|cookie|ice cream|hot beverage|beer mug
cheese wedge|french fries|bread|egg|guitar|violin|trumpet|drum|saxophone|musical keyboard|house|castle
tent|hospital|school|factory|light bulb|open book|umbrella|key|locked|hammer|axe|candle|bomb|magnet
telescope|microscope|camera|television|telephone|laptop|robot|alarm clock|hourglass done|gem stone|crown
top hat|glasses|t-shirt|dress|running shoe|high-heeled shoe|backpack|soccer ball|basketball|tennis|trophy
kite|balloon|wrapped gift|teddy bear|party popper|Christmas tree|snowman|bicycle|automobile|bus
fire engine|airplane|helicopter|sailboat|ship|locomotive|tractor|rocket|flying saucer|sun|full moon|star
cloud|rainbow|fire|snowflake|high voltage|globe showing Europe-Africa|volcano|red heart|blue heart
grinning face|smiling face with sunglasses|face with tears of joy|crying face|angry face|ghost|alien
skull|pile of poo|dog face|cat face|mouse face|rabbit face|bear|panda|tiger face|lion|cow face|pig face
frog|monkey face|horse face|unicorn|chicken|penguin|bird|owl|duck|eagle|fish|dolphin|whale|shark|octopus
crab|snail|butterfly|honeybee|lady beetle|spider|turtle|snake|dragon|sauropod|T-Rex|elephant|camel
giraffe|zebra|kangaroo|hedgehog|bat|tulip|rose|sunflower|cactus|palm tree|evergreen tree|deciduous tree
four leaf clover|maple leaf|cherry blossom|red circle|blue circle|green circle|yellow circle|red square
blue square|green square|yellow square|person running|woman dancing|mage|fairy
""".replace("\n", "|").split("|")

_GROUP_ORDER = ("animals", "travel", "food", "activities", "objects", "symbols", "smileys", "people")


def ordered() -> list[Concept]:
    """All concepts, the first to be learnt first."""
    moving = {code for code, (_, _, moves, gendered) in animations().items() if moves and not gendered}
    famous = {name for name in FAMOUS if name}
    return sorted(concepts(), key=lambda c: (_tier(c, famous, moving), _GROUP_ORDER.index(c.group)))


def _tier(concept: Concept, famous: set[str], moving: set[str]) -> int:
    if concept.name in famous:
        return 0
    crowd = concept.group in ("smileys", "people")
    if concept.code in moving:
        return 2 if crowd else 1
    return 4 if crowd else 3


def clip_list(count: int) -> None:
    """Write the training clips of the first `count` concepts to CLIPS/train.jsonl, for the motion run."""
    rows = [
        {"file": f"train/{c.code}.webp", "caption": f"{c.name}, {STYLES['fluent-3d']} style"}
        for c in ordered()[:count]
        if (CLIPS / "train" / f"{c.code}.webp").exists()
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (CLIPS / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"{len(rows)} clips of the first {count} concepts")


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concepts", type=int, default=1209, help="as many as base.py was given")
    clip_list(parser.parse_args().concepts)
