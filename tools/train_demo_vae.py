"""Train the small VAEs that the package carries: presets ``demo`` and ``demo-mse``.

    python tools/train_demo_vae.py --kodak DIR --out DIR [--device cuda] [--batch N] [--steps N] [--mse-steps N]

The run is seeded, saves a checkpoint every few minutes and resumes from it. At the end it writes
``demo.safetensors`` and ``demo-mse.safetensors`` (fp16) to ``--out``, with the facts for their model cards.

It has three stages, because a small VAE that learns from few images is limited by optimisation and not by capacity:

1. *Linear start.* An AutoencoderKL is linear along its residual stream. The encoder's stream is set to a
   pyramid of principal components, the decoder's is fitted to it by gradient descent, and every residual
   branch starts at zero. The only obstacles are the last normalisation and SiLU of each half. Both are
   made transparent by writing each signal x as the pair (x, -x), since silu(x) - silu(-x) = x, beside a pair
   of large constants (K, -K) that keeps the group's mean at 0 and its variance nearly independent of the
   image. So training starts at the quality of a good linear codec instead of at noise.
2. *demo*: the whole network is trained on L1 + SSIM + a little KL.
3. *demo-mse*: only the decoder is trained, over the frozen encoder, on mean squared error, as vae-ft-mse was
   trained from the original SD VAE.

The training data are kodim01 to 14 and photographs of scikit-image and scikit-learn; kodim15 and 16, as whole
images, are held out for evaluation.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

CONFIG = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [16, 32, 64, 128],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "in_channels": 3,
    "out_channels": 3,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 4,
    "sample_size": 512,
    "force_upcast": False,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
LATENT_CHANNELS = CONFIG["latent_channels"]
GROUPS = CONFIG["norm_num_groups"]

# The latents have a spread and an offset that are clearly not 1 and 0, as in real VAEs, so that a forgotten scale or
# shift shows in the image.
LATENT_STD = 4.0
LATENT_MEAN = 1.0
POSTERIOR_STD = 0.02 * LATENT_STD  # the noise that sampling adds at the start of training
CONSTANT = 8.0  # K of the constant pairs, in units of the signal beside them

SKIMAGE_PHOTOS = ("astronaut", "coffee", "cat", "rocket", "stereo_motorcycle")
SKLEARN_PHOTOS = ("china.jpg", "flower.jpg")


# ---------------------------------------------------------------------------------------------------- data


def to_tensor(picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 -> (3, H, W) float32 in [-1, 1], on the CPU."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def load_kodak(folder: Path, numbers: range) -> list[Tensor]:
    return [to_tensor(np.asarray(Image.open(folder / f"kodim{n:02d}.png").convert("RGB"))) for n in numbers]


def training_photos(kodak: Path) -> list[Tensor]:
    """All training photographs, each also at smaller scales (small images have steeper detail)."""
    import skimage.data
    from sklearn.datasets import load_sample_image

    photos = load_kodak(kodak, range(1, 15))
    for name in SKIMAGE_PHOTOS:
        data = getattr(skimage.data, name)()
        photos.append(to_tensor(data[0] if isinstance(data, tuple) else data))
    photos += [to_tensor(load_sample_image(name)) for name in SKLEARN_PHOTOS]
    scaled = [
        F.interpolate(p[None], scale_factor=s, mode="bicubic", antialias=True)[0].clamp(-1, 1)
        for p in photos
        for s in (0.75, 0.5)
    ]
    return photos + scaled


def random_crops(photos: list[Tensor], size: int, count: int, rng: np.random.Generator) -> Tensor:
    """``count`` crops of size x size, randomly rotated and mirrored; larger photographs are drawn more often."""
    weights = np.array([p.shape[1] * p.shape[2] for p in photos], dtype=np.float64)
    weights[[min(p.shape[1:]) < size for p in photos]] = 0
    crops = []
    for index in rng.choice(len(photos), count, p=weights / weights.sum()):
        _, height, width = photos[index].shape
        top, left = rng.integers(height - size + 1), rng.integers(width - size + 1)
        crop = photos[index][:, top : top + size, left : left + size]
        crop = torch.rot90(crop, int(rng.integers(4)), (1, 2))
        if rng.random() < 0.3:  # imitate other exposures: contrast and brightness, slightly different for each colour
            gain = rng.uniform(0.6, 1.2) * rng.uniform(0.92, 1.08, (3, 1, 1))
            crop = (crop * torch.from_numpy(gain).float() + float(rng.uniform(-0.2, 0.2))).clamp(-1, 1)
        crops.append(crop.flip(2) if rng.random() < 0.5 else crop)
    return torch.stack(crops)


# ----------------------------------------------------------------------------------------- the linear start


def zero_residual_branches(vae: AutoencoderKL) -> None:
    """Make every ResnetBlock and the attention the identity (or its shortcut) on the residual stream."""
    for module in vae.modules():
        if type(module).__name__ == "ResnetBlock2D":
            nn.init.zeros_(module.conv2.weight)
            nn.init.zeros_(module.conv2.bias)
        if type(module).__name__ == "Attention":
            nn.init.zeros_(module.to_out[0].weight)
            nn.init.zeros_(module.to_out[0].bias)


def shortcuts_and_samplers(half: nn.Module) -> list[nn.Conv2d]:
    """The convolutions that the residual stream passes through, in order, without conv_in and conv_out."""
    convs = []
    for block in getattr(half, "down_blocks", None) or half.up_blocks:
        convs += [r.conv_shortcut for r in block.resnets if r.conv_shortcut is not None]
        for sampler in getattr(block, "downsamplers", None) or getattr(block, "upsamplers", None) or []:
            convs.append(sampler.conv)
    return convs


@torch.no_grad()
def transparent_output(
    norm: nn.GroupNorm, shortcut: nn.Conv2d, conv_out: nn.Conv2d, signal: Tensor, read: Tensor
) -> None:
    """Make ``shortcut`` write pairs and constants, and ``norm``, SiLU and ``conv_out`` pass them on unchanged.

    signal: (S, C_in), the rows that ``shortcut`` computes. The S signals should have a standard deviation near 1.
    read: (C_out, S, 3, 3), the kernel that ``conv_out`` applies to the signals.
    """
    channels, per_group = norm.num_channels, norm.num_channels // norm.num_groups
    each = math.ceil(len(signal) / norm.num_groups)  # signals in one group, which occupy 2 * each + 2 of its channels
    shortcut.weight.zero_()
    shortcut.bias.zero_()
    conv_out.weight.zero_()
    # The other channels get small random weights, so that residual branches have something to learn from.
    shortcut.weight.copy_(0.02 * torch.randn_like(shortcut.weight))
    gain = torch.ones(channels)
    for s, row in enumerate(signal):
        base = (s // each) * per_group
        plus, minus = base + 2 * (s % each), base + 2 * (s % each) + 1
        shortcut.weight[plus, :, 0, 0], shortcut.weight[minus, :, 0, 0] = row, -row
        conv_out.weight[:, plus], conv_out.weight[:, minus] = read[:, s], -read[:, s]
        gain[[plus, minus]] = 0.0  # set below, once the group's spread is known
    for group in range(norm.num_groups):
        members = range(group * per_group, (group + 1) * per_group)
        used = [c for c in members if gain[c] == 0.0]
        if not used:
            continue
        constants = [c for c in members if c not in used][-2:]
        shortcut.weight[constants] = 0
        shortcut.bias[constants] = torch.tensor([CONSTANT, -CONSTANT])
        spread = math.sqrt((len(used) + 2 * CONSTANT**2) / per_group)
        norm.weight[used] = spread
        norm.bias[used] = 0


@torch.no_grad()
def start_encoder(vae: AutoencoderKL, photos: list[Tensor], rng: np.random.Generator) -> None:
    """Set the encoder's stream to a pyramid of principal components of 2x2 patches, then whiten that to latents."""
    encoder = vae.encoder
    nn.init.normal_(encoder.conv_in.weight, std=0.1)
    nn.init.zeros_(encoder.conv_in.bias)
    encoder.conv_in.weight[:3] = 0
    encoder.conv_in.weight[range(3), range(3), 1, 1] = 1.0
    size = 64
    x = random_crops(photos, size, 1500, rng)
    signals = 3
    for conv in shortcuts_and_samplers(encoder)[:-1]:
        nn.init.normal_(conv.weight, std=0.02)
        nn.init.zeros_(conv.bias)
        if conv.kernel_size == (1, 1):
            conv.weight[:signals] = 0
            conv.weight[range(signals), range(signals), 0, 0] = 1.0
            continue
        patches = F.pixel_unshuffle(x, 2)  # channel c of x, row offset a, column offset b -> 4c + 2a + b
        flat = patches.permute(1, 0, 2, 3).flatten(1)
        keep = min(len(flat), conv.out_channels)
        components = torch.linalg.eigh(flat @ flat.T)[1].flip(1)[:, :keep].T  # (keep, 4 * signals)
        conv.weight[:keep] = 0
        conv.weight[:keep, :signals, :2, :2] = components.reshape(keep, signals, 2, 2)
        x, signals = torch.einsum("kc,bchw->bkhw", components, patches), keep
    flat = x.permute(1, 0, 2, 3).flatten(1)
    values, vectors = torch.linalg.eigh(flat @ flat.T / flat.shape[1])
    order = values.argsort(descending=True)[:LATENT_CHANNELS]
    whiten = (vectors[:, order] / values[order].sqrt()).T  # (latents, signals): mean square 1 each
    rows = torch.zeros(LATENT_CHANNELS, encoder.down_blocks[-1].resnets[0].conv_shortcut.in_channels)
    rows[:, :signals] = whiten
    read = torch.zeros(2 * LATENT_CHANNELS, LATENT_CHANNELS, 3, 3)
    read[range(LATENT_CHANNELS), range(LATENT_CHANNELS), 1, 1] = LATENT_STD
    transparent_output(encoder.conv_norm_out, shortcuts_and_samplers(encoder)[-1], encoder.conv_out, rows, read)
    encoder.conv_out.bias[:LATENT_CHANNELS] = LATENT_MEAN
    encoder.conv_out.bias[LATENT_CHANNELS:] = 2 * math.log(POSTERIOR_STD)
    nn.init.zeros_(vae.quant_conv.bias)
    vae.quant_conv.weight.copy_(torch.eye(2 * LATENT_CHANNELS)[:, :, None, None])


def start_decoder(vae: AutoencoderKL, photos: list[Tensor], rng: np.random.Generator, steps: int) -> None:
    """Fit the decoder's stream, as a linear network, to the encoder's latents; then make its output transparent."""
    decoder = vae.decoder
    convs = shortcuts_and_samplers(decoder)
    last = nn.Conv2d(convs[-1].in_channels, 3, 1)
    smooth = nn.Conv2d(3, 3, 3, padding=1)
    with torch.no_grad():
        vae.post_quant_conv.weight.copy_(torch.eye(LATENT_CHANNELS)[:, :, None, None] / LATENT_STD)
        vae.post_quant_conv.bias.fill_(-LATENT_MEAN / LATENT_STD)
        for conv in [decoder.conv_in, *convs, last, smooth]:
            nn.init.zeros_(conv.bias)
            nn.init.orthogonal_(conv.weight)
            if conv.kernel_size == (3, 3):
                mix = torch.empty(conv.out_channels, conv.in_channels)
                nn.init.orthogonal_(mix)
                conv.weight.mul_(0.3)
                conv.weight[:, :, 1, 1] += torch.eye(conv.out_channels) if conv is not decoder.conv_in else mix

    def forward(z: Tensor) -> Tensor:
        x = decoder.conv_in(vae.post_quant_conv(z))
        for conv in [*convs[:-1], last, smooth]:
            if conv.kernel_size == (3, 3) and conv is not smooth:
                x = F.interpolate(x, scale_factor=2.0, mode="nearest")
            x = conv(x)
        return x

    parameters = [p for m in [vae.post_quant_conv, decoder.conv_in, *convs[:-1], last, smooth] for p in m.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        x = random_crops(photos, 64, 16, rng)
        with torch.no_grad():
            z = vae.encode(x).latent_dist.mode()
        loss = F.mse_loss(forward(z), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 250 == 0 or step == steps - 1:
            print(f"linear start {step:5d}  {10 * math.log10(4 / loss.item()):.2f} dB on crops", flush=True)

    # The signals of an average image have a spread of about 0.5, so they are written at twice their size.
    spread = 2.0
    read = torch.einsum("oikl,ij->ojkl", smooth.weight.detach(), torch.eye(3)) / spread
    transparent_output(
        decoder.conv_norm_out, convs[-1], decoder.conv_out, spread * last.weight.detach()[:, :, 0, 0], read
    )
    with torch.no_grad():
        per_group = decoder.conv_norm_out.num_channels // GROUPS
        for s in range(3):
            convs[-1].bias[s * per_group] = spread * last.bias[s]
            convs[-1].bias[s * per_group + 1] = -spread * last.bias[s]
        decoder.conv_out.bias.copy_(smooth.bias)


# -------------------------------------------------------------------------------------------------- training


def ssim_loss(a: Tensor, b: Tensor) -> Tensor:
    """1 - SSIM over 7x7 windows, for (B, 3, H, W) in [-1, 1] (Wang et al. 2004, constants for a range of 2)."""
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean = lambda t: F.avg_pool2d(t, 7, 1)  # noqa: E731
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return 1 - ((2 * ma * mb + c1) * (2 * cov + c2) / ((ma * ma + mb * mb + c1) * (va + vb + c2))).mean()


@torch.no_grad()
def psnr(vae: AutoencoderKL, photos: list[Tensor]) -> list[float]:
    """PSNR in dB of the 8-bit reconstruction of each whole photograph, from the latent mean."""
    result = []
    for photo in photos:
        y = vae.decode(vae.encode(photo[None].to(vae.device)).latent_dist.mode()).sample[0].cpu()
        levels = lambda t: ((t + 1) * 127.5).round().clamp(0, 255)  # noqa: E731
        result.append(10 * math.log10(255**2 / F.mse_loss(levels(y), levels(photo)).item()))
    return result


@dataclass
class Stage:
    """One run of the optimiser: its name, its steps, its highest learning rate and the 96x96 crops in a step."""

    name: str
    steps: int
    rate: float
    batch: int


def crop_plan(progress: float, batch: int) -> tuple[int, int]:
    """(crop size, count): first ``batch`` small crops; at the end fewer large ones, for attention and normalisation."""
    if progress < 0.6:
        return 96, batch
    return (128, batch * 5 // 8) if progress < 0.85 else (256, batch // 4)


def stage_loss(stage: Stage, vae: AutoencoderKL, x: Tensor) -> Tensor:
    if stage.name == "demo-mse":
        with torch.no_grad():
            z = vae.encode(x).latent_dist.sample()
        return F.mse_loss(vae.decode(z).sample, x)
    posterior = vae.encode(x).latent_dist
    y = vae.decode(posterior.sample()).sample
    return F.l1_loss(y, x) + 0.1 * ssim_loss(y, x) + 1e-6 * posterior.kl().mean() / LATENT_CHANNELS


def train(
    stage: Stage, vae: AutoencoderKL, photos: list[Tensor], judges: list[Tensor], checkpoint: Path, seed: int
) -> AutoencoderKL:
    """Run ``stage`` from ``vae`` (or from its checkpoint) and return the averaged weights."""
    average = copy.deepcopy(vae)
    trained = vae.decoder if stage.name == "demo-mse" else vae
    vae.requires_grad_(False)
    parameters = [*trained.parameters()] + ([*vae.post_quant_conv.parameters()] if trained is vae.decoder else [])
    for p in parameters:
        p.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=1e-3)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True, map_location=vae.device)
        vae.load_state_dict(state["vae"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    started, losses = time.monotonic(), []
    for step in range(first, stage.steps):
        rng = np.random.default_rng([seed, step])
        torch.manual_seed(seed * 1_000_003 + step)
        warm, progress = min(1.0, (step + 1) / 200), step / stage.steps
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress)))
        loss = stage_loss(stage, vae, random_crops(photos, *crop_plan(progress, stage.batch), rng).to(vae.device))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 0.5)
        optimizer.step()
        losses.append(loss.detach())  # .item() would wait for the GPU
        decay = min(0.998, (step + 1) / (step + 10))
        with torch.no_grad():
            torch._foreach_lerp_([*average.parameters()], [*vae.parameters()], 1 - decay)
        done = step + 1
        if done % 250 == 0 or done == stage.steps:
            scores = " ".join(f"{v:.2f}" for v in psnr(average, judges))
            loss = torch.stack(losses[-250:]).mean()
            pace = (time.monotonic() - started) / (done - first)
            print(
                f"{stage.name} {done:6d}  loss {loss:.5f}  kodim15/16 {scores} dB  {pace:.2f} s/step",
                flush=True,
            )
            state = {
                "vae": vae.state_dict(),
                "average": average.state_dict(),
                "optimizer": optimizer.state_dict(),
                "step": done,
            }
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return average


# ---------------------------------------------------------------------------------------------------- result


@torch.no_grad()
def latent_contract(vae: AutoencoderKL, photos: list[Tensor]) -> tuple[float, float]:
    """The rounded (scale, shift) that bring the training photographs' latents to mean 0 and standard deviation 1."""
    values = []
    for photo in photos:
        height, width = (n // 8 * 8 for n in photo.shape[1:])
        values.append(vae.encode(photo[None, :, :height, :width].to(vae.device)).latent_dist.mode().flatten())
    values = torch.cat(values)
    return round(1 / values.std().item(), 4), round(values.mean().item(), 4)


def device_name(device: str) -> str:
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device


def save(name: str, vae: AutoencoderKL, out: Path, facts: dict[str, object]) -> None:
    """Write NAME.safetensors in fp16, and NAME.json with the facts of its training, for the model card."""
    out.mkdir(parents=True, exist_ok=True)
    save_file({k: v.half().contiguous().cpu() for k, v in vae.state_dict().items()}, out / f"{name}.safetensors")
    (out / f"{name}.json").write_text(json.dumps(facts, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kodak", type=Path, required=True, help="the folder with kodim01.png to kodim16.png")
    parser.add_argument("--out", type=Path, required=True, help="the folder for checkpoints and results")
    parser.add_argument("--linear-steps", type=int, default=3000)
    parser.add_argument("--steps", type=int, default=5000, help="training steps of the stage demo")
    parser.add_argument("--mse-steps", type=int, default=1500, help="training steps of the stage demo-mse")
    parser.add_argument(
        "--batch", type=int, default=8, help="96x96 crops in a step; later steps have fewer and larger ones"
    )
    parser.add_argument("--rate", type=float, default=6e-4)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    torch.backends.cudnn.allow_tf32 = False  # the constant pairs of the linear start need all digits of float32
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    photos, judges = training_photos(args.kodak), load_kodak(args.kodak, range(15, 17))

    vae = AutoencoderKL(**{k: v for k, v in CONFIG.items() if k != "_class_name"})
    start = args.out / "linear.pt"
    if start.exists():
        vae.load_state_dict(torch.load(start, weights_only=True))
    else:
        zero_residual_branches(vae)
        start_encoder(vae, photos, rng)
        start_decoder(vae, photos, rng, args.linear_steps)
        torch.save(vae.state_dict(), start)
    print("linear start: kodim15/16", " ".join(f"{v:.2f}" for v in psnr(vae, judges)), "dB", flush=True)
    vae = vae.to(args.device, memory_format=torch.channels_last)

    stages = (
        Stage("demo", args.steps, args.rate, args.batch),
        Stage("demo-mse", args.mse_steps, args.rate / 2, args.batch),
    )
    for stage in stages:
        vae = train(stage, vae, photos, judges, args.out / f"{stage.name}.pt", args.seed)
        scale, shift = latent_contract(vae, photos[:14])
        vae.register_to_config(scaling_factor=scale, shift_factor=shift)
        facts = {"steps": stage.steps, "batch": stage.batch, "rate": stage.rate, "seed": args.seed}
        facts |= {"scale": scale, "shift": shift, "torch": torch.__version__, "device": device_name(args.device)}
        save(stage.name, vae, args.out, facts | {"psnr_kodim15_16": psnr(vae.half().float(), judges)})


if __name__ == "__main__":
    main()
