"""Internal confidence as a detector of absent objects and of wrong answers, with baselines."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    frame = read("detection")
    asks = {"present": "present/absent", "answer right": "right/wrong"}
    figure = li.plotting.forest(
        frame.assign(
            label=frame["label"].replace(asks),
            score=frame["score"].replace("shuffled", "shuffled labels"),
        ),
        rows="score",
        panels="label",
        hue="model",
        reference=0.5,
        limits=(0, 1.03),
        label="AUROC",
        unit="questions",
    )
    write(figure, "detection")
