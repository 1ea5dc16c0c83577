"""Internal confidence as a detector of absent objects and of wrong answers, with baselines."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    frame = read("detection")
    frame = frame.assign(row=frame["model"] + ", " + frame["score"])
    figure = li.plotting.forest(frame, rows="row", panels="label", reference=0.5, unit="examples")
    figure.supxlabel("AUROC with 95% interval", fontsize=7)
    write(figure, "detection")
