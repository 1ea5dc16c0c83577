"""Held-out KL to the model's own prediction: tuned lens against logit lens, by layer."""

from tables import read, write

import lvlm_interp as li

if __name__ == "__main__":
    frame = read("tuned_lens")
    names = {"kl_logit": "logit lens", "kl_tuned": "tuned lens"}
    lens = frame["model"] + ", " + frame["metric"].map(names)
    figure = li.plotting.layer_curve(
        frame.assign(lens=lens),
        hue="lens",
        label="KL to the model (nats)",
        unit="scenes",
        width="full",
    )
    figure.axes[0].set_ylim(bottom=0)
    write(figure, "tuned_lens")
