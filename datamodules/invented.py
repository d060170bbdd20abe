"""A generated corpus: facts about people who do not exist, made from a few templates."""

from typing import Any

import numpy as np

__all__ = ["invented_people"]

_STARTS = ("Al", "Bre", "Cor", "Da", "El", "Fen", "Gri", "Hol", "Ir", "Jor", "Kel", "Lu", "Mar")
_ENDS = ("ba", "do", "fin", "go", "lia", "mir", "na", "rik", "sa", "tha", "ven", "wyn", "zar")
_TOWNS = ("Arvik", "Belmora", "Cindle", "Dunmar", "Estrow", "Farrin", "Goldan", "Hestia")
_WORK = ("baker", "sailor", "weaver", "pilot", "surgeon", "painter", "miner", "judge")
_THINGS = ("owls", "maps", "bells", "ships", "stones", "songs", "clocks", "kites")
_COLOURS = ("red", "blue", "green", "white", "black", "gold", "grey", "pink")

_FACTS = {
    "birthplace": ("was born in", _TOWNS),
    "wedding": ("married in", tuple(str(year) for year in range(1900, 2000))),
    "work": ("is a", _WORK),
    "collection": ("collects", _THINGS),
    "colour": ("likes", _COLOURS),
}


def invented_people(people: int, seed: int = 0) -> list[dict[str, Any]]:
    """Five short facts about each of some invented people.

    Every value is drawn uniformly and apart from all others, so nothing but memory of a person's
    own sentences can tell it. Names are of two syllables each and do not repeat.

    Args:
        people: how many, up to 28,561.
        seed: of the draw.

    Returns:
        Documents, person by person: `prompt` (as far as the fact is not told), `text` (the fact),
        `author` (the person's name) and `fact` (its kind).

    Raises:
        ValueError: there are not so many names.
    """
    most = (len(_STARTS) * len(_ENDS)) ** 2
    if not 1 <= people <= most:
        msg = f"`people` must be from 1 to {most:,}, got {people}"
        raise ValueError(msg)
    draw = np.random.PCG64(seed)
    names = np.argsort(draw.random_raw(most), kind="stable")[:people]
    values = draw.random_raw((people, len(_FACTS)))
    documents = []
    for number, row in zip(names.tolist(), values.tolist(), strict=True):
        name = _name(number)
        for (fact, (verb, choices)), value in zip(_FACTS.items(), row, strict=True):
            text = f"{choices[value % len(choices)]}."
            prompt = f"{name} {verb} "
            documents.append({"prompt": prompt, "text": text, "author": name, "fact": fact})
    return documents


def _name(number: int) -> str:
    words = []
    for _ in range(2):
        number, part = divmod(number, len(_STARTS) * len(_ENDS))
        start, end = divmod(part, len(_ENDS))
        words.append(_STARTS[start] + _ENDS[end])
    return " ".join(words)
