"""Table in, `Figure` out: nothing is computed here beyond the mean of a tidy table.

Importing this package also registers what results show in Jupyter.
"""

from lvlm_interp.plotting import display as _display
from lvlm_interp.plotting.alignment import alignment_map, trajectory
from lvlm_interp.plotting.bars import behaviour, forest, intervention
from lvlm_interp.plotting.curves import layer_curve, probe_flow
from lvlm_interp.plotting.graphs import circuit
from lvlm_interp.plotting.heat import head_map, role_map
from lvlm_interp.plotting.images import lens_grid, overlay
from lvlm_interp.plotting.page import lens_page, write_lens_page
from lvlm_interp.plotting.spoken import spoken
from lvlm_interp.plotting.style import save, venues

_display.register()

__all__ = [
    "alignment_map",
    "behaviour",
    "circuit",
    "forest",
    "head_map",
    "intervention",
    "layer_curve",
    "lens_grid",
    "lens_page",
    "overlay",
    "probe_flow",
    "role_map",
    "save",
    "spoken",
    "trajectory",
    "venues",
    "write_lens_page",
]
