"""One denoising step of a Stable Diffusion UNet, walked block by block.

The walk repeats what `diffusers.UNet2DConditionModel.forward` does, stops after the last tap, and
lets a callback change every block's output. Blocks that would run later are deleted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

Inject = Callable[[str, Tensor], Tensor]

DOWN_BLOCKS = ("DownBlock2D", "CrossAttnDownBlock2D")
UP_BLOCKS = ("UpBlock2D", "CrossAttnUpBlock2D")
# SDXL's refiner, by what its attention reads; SDXL itself reads 2,048.
REFINER_WIDTH = 1280
MID_BLOCKS = (None, "UNetMidBlock2D", "UNetMidBlock2DCrossAttn")


@dataclass(frozen=True)
class Block:
    """A UNet block: name (``down0``, ``mid``, ``up2``), output channels and stride in pixels."""

    name: str
    channels: int
    stride: int


def list_blocks(config: Mapping[str, Any], latent_stride: int) -> tuple[Block, ...]:
    """Blocks of a UNet in the order in which they run.

    Args:
        config: Config of a `diffusers.UNet2DConditionModel`.
        latent_stride: Pixels per latent cell.

    Raises:
        ValueError: The UNet is of a kind that the walk does not reproduce.
    """
    _refuse_unsupported(config)
    channels = tuple(config["block_out_channels"])
    count = len(channels)
    blocks = []
    stride = latent_stride
    for index in range(count):
        if index < count - 1:
            stride *= 2
        blocks.append(Block(f"down{index}", channels[index], stride))
    if config.get("mid_block_type", MID_BLOCKS[-1]) is not None:
        blocks.append(Block("mid", channels[-1], stride))
    for index in range(count):
        if index < count - 1:
            stride //= 2
        blocks.append(Block(f"up{index}", channels[count - 1 - index], stride))
    return tuple(blocks)


def default_taps(blocks: Sequence[Block]) -> tuple[str, ...]:
    """For each of the strides 8, 16 and 32, the first decoder block that reaches it.

    A UNet whose decoder starts at 16 gives its last down block for 32.
    """
    decoder = [block for block in blocks if not block.name.startswith("down")]
    encoder = [block for block in blocks if block.name.startswith("down")]
    taps = []
    for stride in (8, 16, 32):
        block = next((block for block in decoder + encoder[::-1] if block.stride == stride), None)
        if block is not None:
            taps.append(block.name)
    return tuple(taps)


class Denoiser(nn.Module):
    """A UNet cut after its last tap.

    Args:
        unet: The UNet; blocks after the last tap and the output convolution are deleted from it.
        null_embedding: Embedding of the empty prompt, ``[1, length, cross_attention_dim]``.
        timestep: Noise level that the UNet is told.
        taps: Names of the blocks whose outputs are returned.
        latent_stride: Pixels per latent cell.
    """

    null_embedding: Tensor

    def __init__(
        self,
        unet: UNet2DConditionModel,
        null_embedding: Tensor,
        timestep: int,
        taps: Sequence[str],
        latent_stride: int,
    ) -> None:
        super().__init__()
        width = unet.config["cross_attention_dim"]
        if null_embedding.ndim != 3 or null_embedding.shape[-1] != width:
            raise ValueError(
                f"the null prompt's embedding must be [1, length, {width}] for this UNet, got "
                f"{list(null_embedding.shape)}. Is it of another text encoder?"
            )
        self.blocks = list_blocks(unet.config, latent_stride)
        self.latent_stride = latent_stride
        self.timestep = timestep
        self.num_up_blocks = len(unet.up_blocks)
        self.unet = unet
        self.register_buffer("null_embedding", null_embedding)
        del unet.conv_norm_out, unet.conv_act, unet.conv_out
        self.set_taps(taps)

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        # The prompt's length is the text encoder's, which a build with random weights guesses.
        saved, own = state_dict.get(f"{prefix}null_embedding"), self.null_embedding
        if saved is not None and saved.ndim == 3 and saved.shape[-1] == own.shape[-1]:
            self.null_embedding = own.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def set_taps(self, taps: Sequence[str]) -> None:
        """Return these blocks from now on, and delete what runs after the last of them.

        Raises:
            ValueError: A name is unknown, or was cut away; the message lists the valid ones.
        """
        names = [block.name for block in self.blocks]
        unknown = [tap for tap in taps if tap not in names]
        if unknown or not taps:
            raise ValueError(
                f"unknown tap(s) {unknown or taps!r}; this UNet has {', '.join(names)}."
            )
        self.taps = tuple(name for name in names if name in taps)
        self.blocks = self.blocks[: names.index(self.taps[-1]) + 1]
        kept = {block.name for block in self.blocks}
        self.unet.up_blocks = self.unet.up_blocks[: sum(name.startswith("up") for name in kept)]
        self.unet.down_blocks = self.unet.down_blocks[
            : sum(name.startswith("down") for name in kept)
        ]
        if "mid" not in kept:
            self.unet.mid_block = None

    def forward(
        self, latents: Tensor, inject: Inject | None = None, inject_skips: bool = True
    ) -> dict[str, Tensor]:
        """Run one denoising step.

        Args:
            latents: Noisy latents ``[B, 4, h, w]`` of any size.
            inject: Called with a block's name and output; returns what the next block sees.
            inject_skips: Whether a down block's last skip connection is the changed output.

        Returns:
            Output of every tap by name, ``[B, C, h', w']``.
        """
        unet = self.unet
        sample = latents.to(unet.conv_in.weight.dtype)
        prompt = self.null_embedding.to(sample).expand(sample.shape[0], -1, -1)
        embedding = self._embed_timestep(sample)
        outputs: dict[str, Tensor] = {}

        def visit(name: str, hidden: Tensor) -> Tensor:
            if inject is not None:
                hidden = inject(name, hidden)
            if name in self.taps:
                outputs[name] = hidden
            return hidden

        hidden = unet.conv_in(sample)
        skips = [hidden]
        for index, block in enumerate(unet.down_blocks):
            attention = {"encoder_hidden_states": prompt} if _attends(block) else {}
            plain, block_skips = block(hidden_states=hidden, temb=embedding, **attention)
            hidden = visit(f"down{index}", plain)
            skips.extend(block_skips)
            if inject_skips:
                skips[-1] = hidden
        if unet.mid_block is not None:
            attention = {"encoder_hidden_states": prompt} if _attends(unet.mid_block) else {}
            hidden = visit("mid", unet.mid_block(hidden, embedding, **attention))
        for index, block in enumerate(unet.up_blocks):
            count = len(block.resnets)
            block_skips, skips = tuple(skips[-count:]), skips[:-count]
            # Sizes that halve unevenly (42, 21, 11, 6) do not double back to themselves.
            size = skips[-1].shape[-2:] if index < self.num_up_blocks - 1 else None
            attention = {"encoder_hidden_states": prompt} if _attends(block) else {}
            hidden = block(
                hidden_states=hidden,
                res_hidden_states_tuple=block_skips,
                temb=embedding,
                upsample_size=size if self._is_uneven(latents) else None,
                **attention,
            )
            hidden = visit(f"up{index}", hidden)
        return outputs

    def _is_uneven(self, latents: Tensor) -> bool:
        factor = 2 ** (self.num_up_blocks - 1)
        return bool(latents.shape[-2] % factor or latents.shape[-1] % factor)

    def _embed_timestep(self, sample: Tensor) -> Tensor:
        unet = self.unet
        # Filled in place: of a number diffusers makes a copy that waits for all a GPU has begun.
        timestep = torch.full((1,), self.timestep, dtype=torch.float32, device=sample.device)
        embedding = unet.time_embedding(unet.get_time_embed(sample, timestep))
        if unet.config["addition_embed_type"] == "text_time":
            # Of an absent prompt SDXL's pooled embedding is zeros, as the tokens are.
            pooled_width = (
                unet.config["projection_class_embeddings_input_dim"]
                - 6 * unet.config["addition_time_embed_dim"]
            )
            height, width = (side * self.latent_stride for side in sample.shape[-2:])
            batch = sample.shape[0]
            sizes = (height, width, 0, 0, height, width)
            conditions = {
                "text_embeds": sample.new_zeros(batch, pooled_width),
                "time_ids": torch.cat([timestep.new_full((batch, 1), side) for side in sizes], 1),
            }
            embedding = embedding + unet.get_aug_embed(embedding, None, conditions)
        if unet.time_embed_act is not None:
            embedding = unet.time_embed_act(embedding)
        result: Tensor = embedding
        return result


def _attends(block: nn.Module) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _refuse_unsupported(config: Mapping[str, Any]) -> None:
    problems = []
    for key, valid in (("down_block_types", DOWN_BLOCKS), ("up_block_types", UP_BLOCKS)):
        wrong = sorted(set(config[key]) - set(valid))
        if wrong:
            problems.append(f"{key} {', '.join(wrong)} (supported: {', '.join(valid)})")
    if config.get("mid_block_type", MID_BLOCKS[-1]) not in MID_BLOCKS:
        problems.append(f"mid_block_type {config['mid_block_type']}")
    if config.get("class_embed_type") or config.get("num_class_embeds"):
        problems.append("class conditioning")
    if config.get("encoder_hid_dim_type"):
        problems.append(f"encoder_hid_dim_type {config['encoder_hid_dim_type']}")
    if config.get("addition_embed_type") not in (None, "text_time"):
        problems.append(f"addition_embed_type {config['addition_embed_type']}")
    elif config.get("addition_embed_type") and config["cross_attention_dim"] == REFINER_WIDTH:
        problems.append("the conditions of SDXL's refiner, an aesthetic score among them")
    if config.get("center_input_sample"):
        problems.append("center_input_sample")
    if not isinstance(config["cross_attention_dim"], int):
        problems.append("a cross_attention_dim per block")
    if problems:
        raise ValueError(
            f"this UNet has {'; '.join(problems)}, which is not supported. Use a text-to-image "
            "UNet of Stable Diffusion 1.x, 2.x, XL or a distilled one such as BK-SDM."
        )
