"""The picture tokenizer: a KL autoencoder with continuous latents (LDM, arXiv 2112.10752; KL-16 as in MAR, sec. 4).

picture (B, 3, H, W) in [-1, 1]  ->  Encoder  ->  mean and log-variance, each (B, C, H/stride, W/stride)
mean (in training: a sample)     ->  Decoder  ->  picture
One place of the mean, scaled to unit variance, is one *image token* of the models that follow: C real numbers, not
a code. A picture's tokens are its `latents` (B, S, C), S = H/stride * W/stride.

At the official config (VAEConfig's defaults) the layers and the parameter names are those of `kl16.ckpt`. Two settings
change the layers: `patch_size` > 1 folds patches of pixels into channels before the first convolution (and unfolds them
after the last), which makes the nano VAE cheap; an empty `attn_resolutions` leaves attention in the middle only.

Not as official: the adversarial and perceptual losses are left out, and `vae_loss` has ten times the MSE instead.
"""
import torch
import torch.nn.functional as F
from torch import nn

from .attention import attention


def norm(channels):
    """GroupNorm of 32 groups; the eps of 1e-6 (not torch's 1e-5) is the official one."""
    return nn.GroupNorm(32, channels, eps=1e-6)


# nn.Identity stands where an optional layer is missing: it has no parameters, so the official names stay as they are
class ResnetBlock(nn.Module):
    """x + conv(silu(norm(conv(silu(norm(x)))))), with a 1x1 shortcut where the width changes."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.norm1, self.conv1 = norm(c_in), nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2, self.conv2 = norm(c_out), nn.Conv2d(c_out, c_out, 3, padding=1)
        self.nin_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else nn.Identity()

    def forward(self, x):                                            # (B, c_in, h, w)
        h = self.conv1(F.silu(self.norm1(x)))                        # (B, c_out, h, w)
        h = self.conv2(F.silu(self.norm2(h)))                        # (B, c_out, h, w)
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over all positions, with 1x1 convolutions as projections."""

    def __init__(self, c):
        super().__init__()
        self.norm = norm(c)
        self.q, self.k, self.v = nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1), nn.Conv2d(c, c, 1)
        self.proj_out = nn.Conv2d(c, c, 1)

    def forward(self, x):                                            # (B, c, h, w)
        h = self.norm(x)                                             # (B, c, h, w)
        # b c h w -> b 1 (h w) c: one head, every place attends to every other
        q, k, v = (f(h).flatten(2).transpose(1, 2).unsqueeze(1) for f in (self.q, self.k, self.v))
        h = attention(q, k, v).squeeze(1).transpose(1, 2).reshape(x.shape)   # (B, c, h, w)
        return x + self.proj_out(h)                                  # (B, c, h, w)


class Downsample(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, stride=2)

    def forward(self, x):                            # (B, c, h, w) -> (B, c, h/2, w/2)
        return self.conv(F.pad(x, (0, 1, 0, 1)))     # zeros on the right and bottom only, as in LDM


class Upsample(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):                            # (B, c, h, w) -> (B, c, 2h, 2w)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def middle(c):
    mid = nn.Module()
    mid.block_1, mid.attn_1, mid.block_2 = ResnetBlock(c, c), AttnBlock(c), ResnetBlock(c, c)
    return mid


class Encoder(nn.Module):
    """Pixels to 2*z_channels feature maps, `stride` times smaller."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        widths = [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(3 * config.patch_size ** 2, config.ch, 3, padding=1)
        self.down = nn.ModuleList()
        c = config.ch
        for i, width in enumerate(widths):
            level = nn.Module()
            level.block, level.attn = nn.ModuleList(), nn.ModuleList()
            for _ in range(config.num_res_blocks):
                level.block.append(ResnetBlock(c, width))
                c = width
                # where attention sits depends on the *nominal* resolution, not on the actual picture (official quirk)
                has_attention = config.resolution // 2 ** i in config.attn_resolutions
                level.attn.append(AttnBlock(c) if has_attention else nn.Identity())
            level.downsample = Downsample(c) if i < len(widths) - 1 else nn.Identity()
            self.down.append(level)
        self.mid = middle(c)
        self.norm_out, self.conv_out = norm(c), nn.Conv2d(c, 2 * config.z_channels, 3, padding=1)

    def forward(self, x):                                            # (B, 3, H, W)
        x = F.pixel_unshuffle(x, self.config.patch_size)             # (B, 3*p*p, H/p, W/p)
        h = self.conv_in(x)                                          # (B, ch, H/p, W/p)
        for level in self.down:
            for block, attn in zip(level.block, level.attn):
                h = attn(block(h))                                   # (B, width of the level, as high and wide)
            h = level.downsample(h)                                  # half the height and width; not after the last
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))   # (B, c, H/stride, W/stride)
        return self.conv_out(F.silu(self.norm_out(h)))               # (B, 2*C, H/stride, W/stride)


class Decoder(nn.Module):
    """Means to pixels. `up` is stored from full resolution down and run from its end (names of the official file)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        widths = [config.ch * m for m in config.ch_mult]
        c = widths[-1]
        self.conv_in = nn.Conv2d(config.z_channels, c, 3, padding=1)
        self.mid = middle(c)
        self.up = nn.ModuleList()
        for i, width in reversed(list(enumerate(widths))):
            level = nn.Module()
            level.block = nn.ModuleList()
            for _ in range(config.num_res_blocks + 1):
                level.block.append(ResnetBlock(c, width))
                c = width
            level.upsample = Upsample(c) if i > 0 else nn.Identity()
            self.up.insert(0, level)
        self.norm_out, self.conv_out = norm(c), nn.Conv2d(c, 3 * config.patch_size ** 2, 3, padding=1)

    def forward(self, x):                                            # (B, C, H/stride, W/stride)
        h = self.conv_in(x)                                          # (B, c, H/stride, W/stride)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))   # (B, c, H/stride, W/stride)
        for level in reversed(self.up):
            for block in level.block:
                h = block(h)                                         # (B, width of the level, as high and wide)
            h = level.upsample(h)                                    # twice the height and width; not after the last
        h = self.conv_out(F.silu(self.norm_out(h)))                  # (B, 3*p*p, H/p, W/p)
        return F.pixel_shuffle(h, self.config.patch_size)            # (B, 3, H, W)


class VAE(nn.Module):
    """KL autoencoder. `config`: VAEConfig. Its `scale`, 1 / std of the means, gives latents unit variance, which the
    diffusion schedule expects. It is measured after training the VAE (train.py) and stored in the config: 0.2325 is
    what MAR measured for KL-16 on ImageNet."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        # official names; nothing is quantised
        self.quant_conv = nn.Conv2d(2 * config.z_channels, 2 * config.z_channels, 1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 1)

    def moments(self, image):
        """image (B, 3, H, W) in [-1, 1] -> mean, logvar, each (B, C, H/stride, W/stride)."""
        mean, logvar = self.quant_conv(self.encoder(image.to(self.quant_conv.weight.dtype))).chunk(2, dim=1)
        return mean, logvar.clamp(-30, 20)                           # the official limits: exp(logvar) stays finite

    def reconstruct(self, mean):
        """`decode` without the scale: mean, or a sample, (B, C, h, w) -> image (B, 3, h*stride, w*stride)."""
        return self.decoder(self.post_quant_conv(mean))

    def encode(self, image):
        """image (B, 3, H, W) -> latents (B, S, C), raster order. The mean, not a sample: Harmon's choice."""
        self.grid_of(*image.shape[-2:])                              # raises where the size does not fit
        return self.moments(image)[0].flatten(2).transpose(1, 2) * self.config.scale   # b c h w -> b (h w) c

    def decode(self, latents, grid):
        """latents (B, h*w, C), grid (h, w) -> image (B, 3, H, W)."""
        mean = latents.transpose(1, 2).unflatten(2, grid) / self.config.scale    # b (h w) c -> b c h w
        return self.reconstruct(mean)

    def grid_of(self, height, width):
        """Latent grid (h, w) of a picture of that size. Raises ValueError if it does not fit the stride."""
        s = self.config.stride
        if height % s or width % s or height < s or width < s:
            raise ValueError(f"image size {width}x{height}: both sides must be multiples of {s} (the VAE's stride)")
        return height // s, width // s


def vae_loss(vae, image, kl_weight):
    """L1 + 10 MSE + kl_weight * KL, and parts for the log. image (B, 3, H, W).

    The decoder gets a sample, mean + std * noise. KL, the mean of 0.5 (mean^2 + var - 1 - logvar), keeps var from 0.
    """
    mean, logvar = vae.moments(image)
    out = vae.reconstruct(mean + (0.5 * logvar).exp() * torch.randn_like(mean)).float()
    mse, l1 = F.mse_loss(out, image), F.l1_loss(out, image)
    kl = kl_divergence(mean.float(), logvar.float()).mean()
    return l1 + 10 * mse + kl_weight * kl, {"mse": mse.detach(), "kl": kl.detach()}


def kl_divergence(mean, logvar):
    """KL(N(mean, var) || N(0, 1)), elementwise, in nats."""
    return 0.5 * (mean ** 2 + logvar.exp() - 1 - logvar)
