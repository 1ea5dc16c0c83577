"""What every test runs under: no network, no tracking, one thread per worker."""

import os

# Before anything imports torch or transformers: they read these once.
os.environ.update(
    {
        "WANDB_MODE": "disabled",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MPLBACKEND": "agg",
    }
)
