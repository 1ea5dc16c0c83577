"""The verdict in words, each sentence by a rule that is written down here.

No word says more than its interval carries: where a bound does not clear the line, the verdict says
"not shown", and where nothing could be tested it says that and why.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lvlm_interp.diagnose.conviction import ALPHA, FEW_GROUPS, FLAW_GAP, LEAST_GROUPS

__all__ = ["CARRIES", "PRESENT", "RULES", "STATES", "headline", "points", "share", "words"]

PRESENT = 0.10
"""Evidence is present where the probe's lower bound exceeds chance by this."""
CARRIES = 0.05
"""A head carries the wrong answer when its recovery (lower bound, acting half) exceeds this."""

STATES: dict[bool | None, str] = {True: "flaw found", False: "no flaw shown", None: "not tested"}
"""What `found` means, in words."""

RULES: tuple[str, ...] = (
    "A flaw is found where, over trigger pairs, errors are more frequent with the trigger in sight "
    "than without it (same question, same truth) by an exact test in which all pairs of a scene "
    f"change sides together, one-sided at {ALPHA:.1%} over the three levels together "
    f"({ALPHA / 3:.2%} each), and where the difference is estimated above {FLAW_GAP:.0%}.",
    f"A level is not tested without trigger pairs, with fewer than {LEAST_GROUPS} scenes of them, "
    "or where the model errs in more than half of the questions (lower bound) without the trigger "
    "as well. Not tested is not innocent.",
    "Evidence is present at a site where the lower bound of the probe's balanced accuracy on "
    f"held-out scenes exceeds chance by {PRESENT:.0%}; chance is the best guess from the question "
    "alone.",
    "A head carries the wrong answer where the lower bound of its recovery on trigger pairs, "
    f"measured on scenes that did not rank it, exceeds {CARRIES:.0%}.",
    "Acting on heads mends the flaw where, in every form of the question, the error after is below "
    "the error before (interval of the paired difference), and below that of every one of 20 draws "
    "of as many random heads.",
    "Cost is the upper bound of the loss of accuracy, the largest over all conditions in which the "
    "flaw does not show: trigger in sight but the flaw right, no trigger, and the questions of the "
    "other levels; what the data do not hold is named as not measured.",
)


def words(level: str, entry: Mapping[str, Any]) -> str:
    """The verdict of a level in words, each sentence by its rule."""
    sentences = [_flaw_words(entry), _probe_words(entry["probe"])]
    if entry["found"]:
        sentences += [_head_words(entry["heads"]), _intervention_words(entry["intervention"])]
    sentences += [f"Left out: {reason}." for reason in entry.get("left_out", ())]
    return " ".join(sentence for sentence in sentences if sentence)


def headline(entry: Mapping[str, Any]) -> str:
    """The figure that a reader keeps."""
    trigger, control = entry["trigger_error"], entry["control_error"]
    if trigger is None or control is None:
        known = "" if control is None else f", {control['estimate']:.0%} wrong"
        return f"no trigger pairs{known}"
    return f"{trigger['estimate']:.0%} wrong with the trigger, {control['estimate']:.0%} without"


def _flaw_words(entry: Mapping[str, Any]) -> str:
    trigger, control = entry["trigger_error"], entry["control_error"]
    if trigger is None:
        text = f"Not tested: {entry['missing']}; its errors are {share(control)}"
        return text + ", which is no finding of innocence."
    text = f"{share(trigger)} wrong with the trigger, {share(control)} without"
    if entry["found"] is None:
        return f"Not tested: {entry['missing']} ({text})."
    few = ""
    if entry["groups"] < FEW_GROUPS:
        few = f" It rests on {entry['groups']} scenes: intervals are wide."
    if entry["found"]:
        return (
            f"With the trigger in sight it says what is not there in {share(trigger)} of scenes, "
            f"without it errs in {share(control)} (exact p = {entry['pvalue']:.2g}).{few}"
        )
    return f"No flaw is shown: {text} (difference {points(entry['gap'])}).{few}"


def _probe_words(probe: Mapping[str, Any] | None) -> str:
    if probe is None:
        return ""
    accuracy = probe["accuracy"]
    if accuracy["low"] is None or accuracy["low"] <= probe["chance"] + PRESENT:
        return "That the truth is linearly there in its activations is not shown."
    text = (
        f"The truth is linearly there at {probe['site']} ({probe['position']}): balanced accuracy "
        f"{share(accuracy)} on held-out scenes"
    )
    last = probe["reaches"].get("last")
    if "last" in probe["reaches"]:
        text += (
            f", and reaches the answer's position by {last}"
            if last
            else (", and is not shown to reach the answer's position")
        )
    return text + "."


def _head_words(heads: list[dict[str, Any]] | None) -> str:
    if not heads:
        return ""
    carrying = [
        head
        for head in heads
        if head["recovery"]["low"] is not None and head["recovery"]["low"] > CARRIES
    ]
    if not carrying:
        return "That single heads carry the wrong answer is not shown."
    named = ", ".join(
        f"{head['layer']}.{head['head']} ({head['recovery']['estimate']:.0%})"
        for head in carrying[:4]
    )
    return f"Heads that carry the wrong answer, with the share of it that each recovers: {named}."


def _intervention_words(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    named = ", ".join(f"{layer}.{head}" for layer, head in entry["heads"])
    change, forms = entry["change"], entry["by_form"]
    mended = [name for name, form in forms.items() if form["mended"]]
    if change["high"] is None or change["high"] >= 0 or not entry["beats_random"] or not mended:
        return f"That acting on {named} mends it, better than random heads do, is not shown."
    before_after = f"{share(entry['before'])} to {share(entry['after'])}"
    draws = f"lower than each of {len(entry['random']['draws'])} random draws"
    if entry["mends"]:
        text = f"Acting on {named} ({entry['how']}) lowers the error from {before_after}, {draws}"
        if len(forms) > 1:
            text += f", in every form of the question: {_form_words(forms)}"
        return f"{text}{_cost_words(entry['side_effect'])}."
    return (
        f"Acting on {named} ({entry['how']}) mends some forms of the question and not others: "
        f"{_form_words(forms)}{_cost_words(entry['side_effect'])}."
    )


def _form_words(forms: Mapping[str, Mapping[str, Any]]) -> str:
    return "; ".join(
        f"{name} {share(form['before'])} to {share(form['after'])}"
        f"{'' if form['mended'] else ' (not mended)'}"
        for name, form in forms.items()
    )


def _cost_words(cost: Mapping[str, Any] | None) -> str:
    """The upper bound of the worst condition, and what there was no data for."""
    if cost is None:
        return "; what it costs elsewhere was not measured"
    text = f", at a cost of at most {max(0.0, 100 * cost['high']):.1f} points"
    if cost["not_measured"]:
        text += f" where it was measured (not measured: {', '.join(cost['not_measured'])})"
    return text


def share(entry: Mapping[str, Any] | None) -> str:
    """An estimate of a share in words: `43% [38%, 48%]`."""
    if entry is None or entry["estimate"] is None:
        return "not measured"
    if entry["low"] is None:
        return f"{entry['estimate']:.0%}"
    return f"{entry['estimate']:.0%} [{entry['low']:.0%}, {entry['high']:.0%}]"


def points(entry: Mapping[str, Any] | None) -> str:
    """A difference of shares in percentage points."""
    if entry is None or entry["low"] is None:
        return "not measured"
    estimate, low, high = (100 * entry[name] for name in ("estimate", "low", "high"))
    return f"{estimate:+.1f} points [{low:+.1f}, {high:+.1f}]"
