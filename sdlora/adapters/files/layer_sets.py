"""The layers that an adapter file can speak of, in sets from small to large.

Only what kohya-style tools can address: layers of transformer blocks, resnets, down- and upsamplers in the UNet;
attention and MLP of the text encoders. Never conv_in, conv_out, the time and size embeddings or text_projection, which
several tools ignore.
"""

from __future__ import annotations

import re

from sdlora.adapters.files.kohya import TEXT_MODEL, Part

_IN_BLOCKS = r"(?:down_blocks\.\d+|mid_block|up_blocks\.\d+)\."
_ATTENTION = r"attentions\.\d+\.transformer_blocks\.\d+\.attn[12]\.(?:to_q|to_k|to_v|to_out\.0)"
_FEED_FORWARD = r"attentions\.\d+\.transformer_blocks\.\d+\.ff\.net\.(?:0\.proj|2)"
_PROJECTIONS = r"attentions\.\d+\.(?:proj_in|proj_out)"
_CONVOLUTIONS = r"resnets\.\d+\.(?:conv1|conv2|time_emb_proj|conv_shortcut)|(?:downsamplers|upsamplers)\.\d+\.conv"


def _unet_pattern(*kinds: str) -> re.Pattern[str]:
    return re.compile(_IN_BLOCKS + "(?:" + "|".join(kinds) + ")")


UNET_SETS = {
    "attention": _unet_pattern(_ATTENTION),
    "attention+ff": _unet_pattern(_ATTENTION, _FEED_FORWARD),
    "all": _unet_pattern(_ATTENTION, _FEED_FORWARD, _PROJECTIONS),
    "all+conv": _unet_pattern(_ATTENTION, _FEED_FORWARD, _PROJECTIONS, _CONVOLUTIONS),
}

_TEXT_ATTENTION = r"encoder\.layers\.\d+\.self_attn\.(?:q_proj|k_proj|v_proj|out_proj)"
TEXT_SETS = {
    "attention": re.compile(_TEXT_ATTENTION),
    "attention+ff": re.compile(_TEXT_ATTENTION + r"|encoder\.layers\.\d+\.mlp\.(?:fc1|fc2)"),
}


def addressable(part: Part, path: str) -> bool:
    """Whether kohya-style tools know this module at all."""
    if part == "unet":
        return UNET_SETS["all+conv"].fullmatch(path) is not None
    return TEXT_SETS["attention+ff"].fullmatch(path.removeprefix(TEXT_MODEL)) is not None
