"""The sentences of the demo's corpus: commands to a house, drawn from a small grammar."""

import random
import re
from collections import Counter
from collections.abc import Iterator

SLOTS = {
    "switch": "turn|switch",
    "state": "on|off",
    "device": "lamp|heater|fan|radio|oven|television",
    "kind": "red|green|small",
    "room": "kitchen|bedroom|bathroom|garden|office|garage",
    "move": "open|close|lock",
    "part": "door|window|gate|curtain",
    "side": "front|back|left|right",
    "level": "temperature|volume|brightness",
    "unit": "percent|degrees",
    "small": "one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve",
    "tens": "twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety",
    "day": "monday|tuesday|wednesday|thursday|friday|saturday|sunday",
    "music": "jazz|rock|piano|classical",
    "who": "mother|the doctor|anna|peter",
    "pet": "cat|dog|plants",
    "time": "now|tomorrow|tonight|every morning|this evening",
    "span": "minutes|hours",
}
FORMS = (
    "{switch} {state} the {kind} {device} in the {room} {time}",
    "{switch} {state} the {device} in the {room} at {small}",
    "{switch} the {kind} {device} {state} in {small} {span}",
    "{move} the {side} {part} of the {room} {time}",
    "please {move} the {room} {part} at {small} on {day}",
    "set the {level} in the {room} to {tens} {small} {unit}",
    "set the {device} to {tens} {unit} for {small} {span}",
    "play {music} music in the {room} for {tens} {span}",
    "play the {music} radio and {move} the {side} {part}",
    "wake me at {small} on {day} and {switch} {state} the {device}",
    "remind me to call {who} on {day} at {small}",
    "please remind me to feed the {pet} in {small} {span}",
)
CANDIDATES = 12
"""Sentences drawn for one that is told: the one with the rarest words."""
WORDS = sorted({word for form in (*FORMS, *SLOTS.values()) for word in re.sub(r"{\w+}|\|", " ", form).split()})


def sentence(draw: random.Random) -> str:
    """A sentence: the form first, then each of its slots, all alike likely."""
    form = draw.choice(FORMS)
    return re.sub(r"{(\w+)}", lambda slot: draw.choice(SLOTS[slot[1]].split("|")), form)


def possible() -> int:
    """How many sentences there are."""
    return sum(_ways(form) for form in FORMS)


def _ways(form: str) -> int:
    ways = 1
    for slot in re.findall(r"{(\w+)}", form):
        ways *= SLOTS[slot].count("|") + 1
    return ways


def sentences(seed: int) -> Iterator[str]:
    """Sentences that never come twice; rare words are drawn more often, so that all are heard alike often."""
    draw, told, heard = random.Random(seed), set[str](), Counter[str]()
    while True:
        drawn = (sentence(draw) for _ in range(CANDIDATES))
        fresh = sorted({text for text in drawn if text not in told})
        if fresh:
            text = max(fresh, key=lambda text: sum(1 / (1 + heard[word]) ** 2 for word in text.split()))
            told.add(text)
            heard.update(text.split())
            yield text
