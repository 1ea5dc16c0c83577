"""Ablating the three heads ranked by trigger pairs, on other scenes, against random heads."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    write(li.plotting.intervention(read("intervention").drop(columns="metric")), "intervention")
