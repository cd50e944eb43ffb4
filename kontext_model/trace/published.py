"""The published configuration of FLUX.1-Kontext-dev, and its four models without weights.

Owns the numbers that the checkpoint's own config.json files hold. Refuses weights: everything is on the meta device,
where tensors have shapes and no memory.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from diffusers import AutoencoderKL, FluxTransformer2DModel
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from kontext_model.checkpoint import silence

CLIP: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 49408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "projection_dim": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
    }
)
T5: Mapping[str, Any] = MappingProxyType(
    {
        "vocab_size": 32128,
        "d_model": 4096,
        "d_kv": 64,
        "d_ff": 10240,
        "num_layers": 24,
        "num_heads": 64,
        "feed_forward_proj": "gated-gelu",
    }
)
TRANSFORMER: Mapping[str, Any] = MappingProxyType(
    {
        "patch_size": 1,
        "in_channels": 64,
        "num_layers": 19,
        "num_single_layers": 38,
        "num_attention_heads": 24,
        "attention_head_dim": 128,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 768,
        "guidance_embeds": True,
        "axes_dims_rope": (16, 56, 56),
    }
)
VAE: Mapping[str, Any] = MappingProxyType(
    {
        "in_channels": 3,
        "out_channels": 3,
        "latent_channels": 16,
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "norm_num_groups": 32,
        "sample_size": 1024,
        "scaling_factor": 0.3611,
        "shift_factor": 0.1159,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
)
SCHEDULER: Mapping[str, Any] = MappingProxyType(
    {
        "base_image_seq_len": 256,
        "base_shift": 0.5,
        "max_image_seq_len": 4096,
        "max_shift": 1.15,
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
    }
)


@dataclass(frozen=True)
class Models:
    """The four models under the names of their folders in a checkpoint."""

    text_encoder: Any
    text_encoder_2: Any
    transformer: Any
    vae: Any


def build_models(dtype: torch.dtype = torch.bfloat16) -> Models:
    """The real classes at full size on the meta device: 16.9 billion parameters, none of them stored."""
    with torch.device("meta"):
        models = Models(
            CLIPTextModel(CLIPTextConfig(**CLIP)),
            T5EncoderModel(T5Config(**T5)),
            FluxTransformer2DModel(**TRANSFORMER),
            AutoencoderKL(**VAE),
        )
    with silence():
        for model in vars(models).values():
            model.to(dtype).eval().requires_grad_(False)
    return models
