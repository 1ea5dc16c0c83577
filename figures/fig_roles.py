"""Recovery by token role and layer of the residual stream, trigger pairs of the object level."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    roles = ["edited", "other_image", "question", "last"]
    write(li.plotting.role_map(read("roles"), roles=roles), "roles")
