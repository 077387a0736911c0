"""How the loss of a method is scored in a phase: in one forward of a text, or token by token.

In: a method and a phase. Out: "prefill" (all tokens of a window in one forward) or "decode" (a
prompt fills the cache, then one token after another). A method of several families is scored in
decode if one of them is: what that one does would not show in one forward.
"""

from __future__ import annotations

from prunescope.taxonomy.families import known
from prunescope.taxonomy.family import Family
from prunescope.taxonomy.method_names import is_function, method_parts


def scoring_of(method: str, phase: str) -> str:
    """Return the scoring of a method that is timed in `phase`.

    One forward shows nothing of a family whose work starts with a filled cache, in any phase. In
    decode, a model that decides nothing at run time gives in one forward what it gives token by
    token, as no token sees a later one. Every other one is scored token by token, a function of the
    user's own too, because what it does is not known.
    """
    if any(family.scored_in == "decode" for family in _families(method)):
        return "decode"
    return "decode" if phase == "decode" and may_decide(method) else "prefill"


def may_decide(method: str) -> bool:
    """Return whether a method may decide at run time, for each input.

    One of its families does, or it is a function of the user's own.
    """
    return is_function(method) or any(family.is_dynamic for family in _families(method))


def _families(method: str) -> list[Family]:
    return known(name for name, _ in method_parts(method))
