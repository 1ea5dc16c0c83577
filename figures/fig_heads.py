"""Recovery by head on trigger pairs, one map per level, the three strongest heads framed."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    frame = read("heads")
    for level, part in frame.groupby("level", sort=False):
        best = part.nlargest(3, "estimate")
        marked = [(int(row.layer), int(row.head)) for row in best.itertuples()]
        label = f"recovery (fraction), {level} level"
        figure = li.plotting.head_map(part, marked=marked, label=label)
        write(figure, f"heads_{level}")
