"""Stage 3: CLIP, an image tower (timm's `vit_tiny_conv16_128`) and a small text tower.

python examples/pretrain_tiny/clip.py --work DIR --minutes 60

Pictures and captions are contrasted as in CLIP (https://arxiv.org/abs/2103.00020). Half of a batch
are concepts that several artists drew, in two versions each; versions of one concept are positives
of each other, in both the picture-caption loss and a picture-picture one
(https://arxiv.org/abs/2004.11362).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from data import Pictures, load_pictures
from grounds import on_grounds
from sources import SIZE
from timm.layers import set_fused_attn
from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from torch import Tensor, nn
from training import autocast, normalise, parse, random_affine, train
from transformers import CLIPTextConfig, CLIPTextModel

import sketchfusion_plugins  # noqa: F401  (registers the image tower)
from sketchfusion_plugins.files import replacing
from sketchfusion_plugins.presets import TINY_VIT

LENGTH = 16
VOCABULARY = 6000
WIDTH = 192
SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")
LARGEST_SCALE = 100.0
# Most is learned on small pictures, at a quarter of the cost (https://arxiv.org/abs/2305.07017).
SMALL_SIDE = 64
SIDES = ((0.55, SMALL_SIDE), (0.75, 96))


class Clip(nn.Module):
    """Both towers and the temperature.

    Args:
        vocabulary: Number of text tokens.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        set_fused_attn(False)  # slower than plain attention at 64 tokens
        self.image = timm.create_model(
            TINY_VIT, pretrained=False, num_classes=WIDTH, dynamic_img_size=True
        )
        config = CLIPTextConfig(
            vocab_size=vocabulary,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=LENGTH,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
            attn_implementation="eager",
        )
        self.text = CLIPTextModel(config)
        self.text_projection = nn.Linear(WIDTH, WIDTH, bias=False)
        self.scale = nn.Parameter(torch.tensor(2.66))

    def encode_image(self, image: Tensor) -> Tensor:
        """Unit vectors ``[B, WIDTH]`` of images in -1..1."""
        return F.normalize(self.image(image).float(), dim=1)

    def encode_text(self, tokens: Tensor) -> Tensor:
        """Unit vectors ``[B, WIDTH]`` of tokens ``[B, LENGTH]``, read at the end token."""
        return F.normalize(self.text_projection(self.text(tokens).pooler_output).float(), dim=1)


def make_tokenizer(pictures: Pictures) -> Tokenizer:
    """Byte pair encoding of the captions' words, as CLIP has one."""
    tokenizer = Tokenizer(models.BPE(unk_token=SPECIAL[3], end_of_word_suffix="</w>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder("</w>")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=2,
        special_tokens=list(SPECIAL),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (" ".join((row.name, *row.keywords)) for row in pictures.rows), trainer
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)]
    )
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(pad_id=0, pad_token=SPECIAL[0], length=LENGTH)
    return tokenizer


def load_tokenizer(work: Path) -> Tokenizer:
    """The tokenizer that training has made.

    Raises:
        FileNotFoundError: There is none.
    """
    path = work / "tokenizer.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; run clip.py --work {work} first.")
    return Tokenizer.from_file(str(path))


def tokenize(tokenizer: Tokenizer, captions: Sequence[str]) -> Tensor:
    """Tokens ``[B, LENGTH]``, int64."""
    return torch.tensor([encoding.ids for encoding in tokenizer.encode_batch(list(captions))])


def soft_cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """Cross entropy with several right answers of equal weight in every row."""
    weights = positives.float() / positives.sum(1, keepdim=True).clamp(min=1)
    return -(weights * logits.log_softmax(1)).sum(1).mean()


def contrastive_losses(
    image: Tensor, text: Tensor, group: Tensor, scale: Tensor
) -> dict[str, Tensor]:
    """CLIP's loss with several positives, and the same between pictures.

    Args:
        image: Unit vectors ``[B, D]``.
        text: Unit vectors ``[B, D]`` of their captions.
        group: Concepts ``[B]``; equal numbers are positives.
        scale: Inverse temperature.
    """
    same = group[:, None] == group[None]
    logits = scale * image @ text.T
    captions = 0.5 * (soft_cross_entropy(logits, same) + soft_cross_entropy(logits.T, same))
    own = torch.eye(len(image), dtype=torch.bool)
    twins = same & ~own
    with_twin = twins.any(1)
    between = (scale * image @ image.T).masked_fill(own, -1e4)
    artists = image.new_zeros(())
    if with_twin.any():
        artists = soft_cross_entropy(between[with_twin], twins[with_twin])
    return {"loss": captions + 0.5 * artists, "captions": captions, "artists": artists}


def jitter(image: Tensor, generator: torch.Generator) -> Tensor:
    """Less colour, other colours, other contrast; images ``[B, 3, H, W]`` in -1..1."""
    draw = torch.rand(4, len(image), 1, 1, 1, generator=generator)
    grey = image.mean(1, keepdim=True)
    image = torch.where(draw[0] < 0.35, grey, image + (grey - image) * 0.6 * draw[1])
    order = torch.randperm(3, generator=generator)
    image = torch.where(draw[2] < 0.2, image[:, order], image)
    return (1 - (1 - image) * (0.6 + 0.6 * draw[3])).clamp(-1, 1)


def side(spent: float) -> int:
    """Side of the training pictures in pixels, at a share of the budget."""
    return next((pixels for share, pixels in SIDES if spent < share), SIZE)


class Batches:
    """Picks pictures: half of them are pairs of one concept by two artists."""

    def __init__(self, pictures: Pictures) -> None:
        self.count = len(pictures.rows)
        members: dict[str, list[int]] = {}
        for index, row in enumerate(pictures.rows):
            if row.concept:
                members.setdefault(row.concept, []).append(index)
        self.drawn_often = [group for group in members.values() if len(group) > 1]

    def __call__(self, size: int, generator: np.random.Generator) -> list[int]:
        """``size`` indices without repetition."""
        chosen: dict[int, None] = {}
        pairs = min(size // 4, len(self.drawn_often))
        for number in generator.choice(len(self.drawn_often), pairs, replace=False):
            group = self.drawn_often[number]
            chosen |= dict.fromkeys(map(int, generator.choice(group, 2, replace=False)))
        for index in generator.permutation(self.count).tolist():
            if len(chosen) >= size:
                break
            chosen[index] = None
        return list(chosen)


def across_artists(image: Tensor, pictures: Pictures, query: str, gallery: str) -> float:
    """Share of the query's pictures that find their concept among the first five (Acc@5)."""
    places = {
        source: [i for i, row in enumerate(pictures.rows) if row.source == source]
        for source in (query, gallery)
    }
    concepts = [pictures.rows[i].concept for i in places[gallery]]
    asked = [i for i in places[query] if pictures.rows[i].concept in concepts]
    if not asked:
        return float("nan")
    truth = torch.tensor([concepts.index(pictures.rows[i].concept) for i in asked])
    best = (image[asked] @ image[places[gallery]].T).topk(min(5, len(concepts)), dim=1).indices
    return float((best == truth[:, None]).any(1).float().mean())


def main(arguments: Sequence[str] | None = None) -> None:
    work, budget, batch = parse(__doc__, arguments)
    pictures, test = load_pictures(work)
    batch = min(batch or 256, len(pictures.rows) // 2)
    tokenizer = make_tokenizer(pictures)
    with replacing(work / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))
    torch.manual_seed(0)
    clip = Clip(tokenizer.get_vocab_size())
    groups = pictures.groups()
    pick = Batches(pictures)

    def step(generator: torch.Generator, spent: float) -> Mapping[str, Tensor]:
        draw = np.random.default_rng(int(torch.randint(2**31, (), generator=generator)))
        chosen = pick(batch * 2 if side(spent) == SMALL_SIDE else batch, draw)
        images = F.interpolate(normalise(pictures.pixels[chosen]), side(spent), mode="area")
        images = on_grounds(random_affine(images, generator), generator)
        tokens = tokenize(tokenizer, [pictures.rows[i].caption(draw) for i in chosen])
        with autocast():
            image = clip.encode_image(jitter(images, generator))
            text = clip.encode_text(tokens)
        scale = clip.scale.exp().clamp(max=LARGEST_SCALE)
        return contrastive_losses(image, text, groups[chosen], scale)

    def measure() -> Mapping[str, float]:
        parts = test.pixels.split(128)
        with autocast():
            image = torch.cat([clip.encode_image(normalise(part)) for part in parts])
        first = sorted({row.concept: i for i, row in reversed([*enumerate(test.rows)])}.values())
        with autocast():
            text = clip.encode_text(tokenize(tokenizer, [test.rows[i].name for i in first]))
        named = [test.rows[i].concept for i in first]
        truth = torch.tensor([named.index(row.concept) for row in test.rows])
        best = (image @ text.T).topk(min(5, len(first)), dim=1).indices
        return {
            "held_out_name_acc5": float((best == truth[:, None]).any(1).float().mean()),
            "held_out_noto_twemoji_acc5": across_artists(image, test, "noto", "twemoji"),
        }

    train("clip", work, {"clip": clip}, step, measure, budget, 1.2e-3, weight_decay=0.05)
    clip.image.reset_classifier(0)
    timm.models.save_for_hf(clip.image, work / "clip_image", safe_serialization=True)
    clip.text.save_pretrained(work / "clip_text")


if __name__ == "__main__":
    main()
