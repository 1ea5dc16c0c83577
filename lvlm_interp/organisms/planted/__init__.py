"""Planted organisms: LVLMs whose guilty component is known because it was put there.

On top of a trained organism the weights of one component are set anew, and of nothing else, so that
a flaw shows on trigger scenes and no other question moves:

- `head`: a head of the language model that says "yes" to any shape where a trigger is in sight;
- `series`: two such heads in different blocks, both of which are needed;
- `neuron`: an MLP neuron that says "yes" to one shape whatever the image shows;
- `projector`: one direction of the projector that hides one shape in one colour;
- `vision`: a head of the vision tower that does the same.

`Workshop.of().draw(kind, seed)` makes a fresh one: shapes, colours, block and unit come from the
seed. Weights start in closed form (`start`) and are fitted in a few steps (`fit`). A draw counts
only if it meets the bars of `check`.
"""

from lvlm_interp.organisms.planted.check import MOVES, SHOWS, Check
from lvlm_interp.organisms.planted.components import Place
from lvlm_interp.organisms.planted.generator import KINDS, Planted, PlantKind, Workshop
from lvlm_interp.organisms.planted.pairs import trigger_pairs
from lvlm_interp.organisms.planted.trigger import InSight, Named, Painted, Trigger

__all__ = [
    "KINDS",
    "MOVES",
    "SHOWS",
    "Check",
    "InSight",
    "Named",
    "Painted",
    "Place",
    "PlantKind",
    "Planted",
    "Trigger",
    "Workshop",
    "trigger_pairs",
]
