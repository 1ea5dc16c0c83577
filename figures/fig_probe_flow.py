"""What linear probes read of an object's presence, from the vision tower to the last layer."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    write(li.plotting.probe_flow(read("probe_flow").drop(columns="metric")), "probe_flow")
