"""Error rates of both organisms: the flaw is where the trigger misleads, and nowhere else."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    write(li.plotting.behaviour(read("behaviour").drop(columns="metric")), "behaviour")
