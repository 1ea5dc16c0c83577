"""Does the heat of a word find the object? Lenses, raw attention and chance."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    frame = read("localisation")
    frame = frame[frame["model"] == "scenes-balanced"]
    rows = frame["method"] + ", " + frame["word"]
    rows = rows.mask(frame["method"] == "chance", "chance")
    frame = frame.assign(row=rows).drop_duplicates(["row", "metric"])
    write(li.plotting.forest(frame, rows="row", unit="scenes"), "localisation")
