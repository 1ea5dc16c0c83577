"""The top word of each image token over the picture, layer by layer."""

from tables import HERE, read, write

import lvlm_interp as li

if __name__ == "__main__":
    frame = read("words")
    grids = {
        int(layer): part.pivot(index="row", columns="col", values=["word", "probability"])
        for layer, part in frame.groupby("layer")
    }
    figure = li.plotting.lens_grid(
        HERE / "data" / "words.png",
        {layer: grid["word"].to_numpy() for layer, grid in grids.items()},
        {layer: grid["probability"].to_numpy(float) for layer, grid in grids.items()},
        width="full",
        box=[float(edge) for edge in frame["box"].iloc[0].split(",")],
    )
    write(figure, "words")
