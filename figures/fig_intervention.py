"""The head ranked first on trigger pairs, replaced by its mean on other scenes; random heads."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    write(li.plotting.intervention(read("intervention").drop(columns="metric")), "intervention")
