"""Which checkpoint to take, in words with reasons.

The rule: pass over checkpoints with too many near copies, burned images, lost adherence or held-out images predicted
worse than before; of the others take the earliest that has learned within 2% of what the best of them has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sdlora.errors import RunError
from sdlora.evaluation.report import Recommendation, Scores
from sdlora.words import count

_NEARLY_BEST = 0.02
"""Of the way in likeness from the base to the best: less is within what other seeds would change."""
_MOST_BURNED = 0.25


def recommend(
    base: Scores, checkpoints: Sequence[Scores], most_copies: float, least_adherence: float
) -> Recommendation:
    """The checkpoint to take.

    checkpoints: at least one, in the order of training, each with a file. most_copies: share of images that may be near
    copies. least_adherence: share of the base's that must be left, or of the best checkpoint's where none has it all.
    """
    kept = [one.adherence_of_base for one in checkpoints if one.adherence_of_base is not None]
    limit = least_adherence * min(1.0, max(kept, default=1.0))
    faults = [_faults(one, checkpoints, most_copies, limit) for one in checkpoints]
    sound = [one for one, own in zip(checkpoints, faults, strict=True) if not own]
    # Where all have faults, the fewest of the gravest kind must do.
    candidates = sound or [min(checkpoints, key=lambda one: (len(one.copies) / one.num_images, one.burned))]
    best = max(candidates, key=lambda one: one.likeness)
    chosen = next(one for one in candidates if _learned(one, base, best) >= 1 - _NEARLY_BEST)
    if chosen.file is None:
        raise RunError(f"{chosen.label}: has no file")
    reasons = _reasons(chosen, base, best)
    if not sound:
        reasons.insert(0, "none is without fault, this one has the least")
    return Recommendation(
        chosen.label, chosen.step, chosen.file, tuple(reasons), tuple(_from_when_on(checkpoints, faults, chosen))
    )


def _learned(one: Scores, base: Scores, best: Scores) -> float:
    """How far a checkpoint has come on the way from the base's likeness to the best's, about 0 to 1."""
    way = best.likeness - base.likeness
    return 1.0 if way <= 0 else (one.likeness - base.likeness) / way


def _faults(one: Scores, all_of_them: Sequence[Scores], most_copies: float, least_adherence: float) -> list[str]:
    """What speaks against a checkpoint, as ends of a sentence that begins with "from step 500 on"."""
    found = []
    if len(one.copies) > most_copies * one.num_images:
        names = Counter(copy.of for copy in one.copies)
        of = names.most_common(1)[0][0] if len(names) == 1 else _listed([name for name, _ in names.most_common(2)])
        found.append(f"{len(one.copies)} of {one.num_images} images are near copies of {of}")
    if one.burned > _MOST_BURNED * one.num_images:
        found.append(f"{one.burned} of {one.num_images} images are burned")
    if one.adherence_of_base is not None and one.adherence_of_base < least_adherence:
        found.append(f"adherence falls to {one.adherence_of_base:.0%} of the base")
    best = min((each.held_out for each in all_of_them if each.held_out), key=lambda each: each.value, default=None)
    if best is not None and one.held_out is not None and one.held_out.low > best.high:
        found.append(f"held-out images are predicted worse ({one.held_out.value:.2f} of the base's loss)")
    return found


def _reasons(chosen: Scores, base: Scores, best: Scores) -> list[str]:
    learned = _learned(chosen, base, best)
    reasons = [
        "likeness is the best" if chosen == best else f"likeness within {max(1 - learned, 0.001):.1%} of the best"
    ]
    if chosen.likeness <= base.likeness:
        reasons = ["likeness is no higher than the base model's: nothing of the training images shows yet"]
    if chosen.adherence_of_base is not None:
        reasons.append(f"adherence {chosen.adherence_of_base:.0%} of the base")
    reasons.append(_counted(len(chosen.copies), chosen.num_images, "near copy", "near copies"))
    if chosen.burned:
        reasons.append(f"{chosen.burned} of {count(chosen.num_images, 'image')} burned")
    if chosen.leak is not None:
        reasons.append(f"leak {chosen.leak:.2f}")
    if chosen.held_out is not None:
        held = chosen.held_out
        reasons.append(f"held-out loss {held.value:.2f} of the base ({held.low:.2f} to {held.high:.2f})")
    return reasons


def _counted(count: int, total: int, one: str, several: str) -> str:
    if count == 0:
        return f"no {several}"
    return f"{count} of {total} images is a {one}" if count == 1 else f"{count} of {total} images are {several}"


def _from_when_on(checkpoints: Sequence[Scores], faults: Sequence[list[str]], chosen: Scores) -> list[str]:
    """The first checkpoint after the chosen one from which on all have faults, with what is wrong there."""
    after = list(checkpoints).index(chosen) + 1
    first = len(checkpoints)
    while first > after and faults[first - 1]:
        first -= 1
    if first == len(checkpoints):
        return []
    return [f"from {checkpoints[first].label} on {' and '.join(faults[first])}"]


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
