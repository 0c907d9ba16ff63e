"""Stable Diffusion families behind one small interface: detect a base model, load it, encode with it, predict.

Nothing heavy is imported here, so that reading a header or counting tokens loads no torch:

    detection.detect(config)    what the model is, from configs and file headers
    loading.load(config)        the model itself, as a `family.Bundle`
    prompts.count_tokens(...)   how long a caption is
"""

import logging

# diffusers imports bitsandbytes if it is there, and that warns of a missing optional kernel that is never used here
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
