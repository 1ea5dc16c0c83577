"""Does the heat of a word find the object? Lenses, raw attention and chance."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    frame = read("localisation")
    frame = frame[frame["model"] == "scenes-balanced"]
    frame = frame[~frame["method"].str.endswith("minus chance")]
    metrics = {"pointing": "pointing game", "auroc": "AUROC", "iou": "IoU"}
    figure = li.plotting.forest(
        frame.assign(metric=frame["metric"].replace(metrics)),
        hue="word",
        limits=(0, 1.03),
        label="score (hit rate, area, fraction)",
        unit="scenes",
    )
    write(figure, "localisation")
