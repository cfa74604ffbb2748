"""The other picture tokenizer: a vector-quantised autoencoder after LlamaGen's VQ-16 (arXiv 2406.06525).

picture (B, 3, H, W) in [-1, 1] -> Encoder -> one unit vector z per place -> the nearest of all codes -> Decoder

One place is one whole number, its *code*, where the KL-VAE (nanoharmon/vae.py) has C real numbers. Encoder and decoder
are the KL-VAE's own classes, so that only the bottleneck differs:

    KL-VAE   2C maps: mean and log-variance. Training adds noise, and a KL term prices the bits.
    VQ       `code_dim` maps, scaled to length 1. The nearest code replaces them: log2(codes) bits at most, unpriced.

Rounding has no gradient. *Straight-through* (VQ-VAE, arXiv 1711.00937): forward the code, backward as if z had been
passed on. Two terms pull the pair together, the codebook towards z, and z (more weakly) towards its code.

Short vectors of length 1 keep many codes in use (ViT-VQGAN, arXiv 2110.04627). With as few steps as here that is not
enough: ours is that a code which nobody has used for a while is moved onto a random z of the batch (as Jukebox did,
arXiv 2005.00341), the likelier the farther that z is from its code: most places are empty and need few codes.

Left out of LlamaGen's training: adversarial and perceptual losses, as in vae.py; the entropy term, whose weight is 0
there too.
"""
import math

import torch
import torch.nn.functional as F
from torch import nn

from ..vae import VAE, Decoder, Encoder, kl_divergence

COMMITMENT = 0.25            # weight of the pull on z, beside 1 for the pull on its code
IDLE = 20                    # batches in a row without a code before it is moved


class VQ(nn.Module):
    """Encoder, codebook, decoder. `config`: VAEConfig; z_channels is the width behind the codebook, twice that before.

    It stands where Harmon has its VAE. Batches, pipeline and benchmarks take codes as they take latents, for a code is
    an "image token" of one channel, (B, S, 1). They are whole numbers up to `codes`, which float32 holds exactly.
    """

    def __init__(self, config, codes, code_dim=8):
        super().__init__()
        self.config, self.codes = config, codes
        self.encoder, self.decoder = Encoder(config), Decoder(config)
        self.quant_conv = nn.Conv2d(2 * config.z_channels, code_dim, 1)
        self.post_quant_conv = nn.Conv2d(code_dim, config.z_channels, 1)
        self.embedding = nn.Embedding(codes, code_dim)           # random directions; `codebook` gives them length 1
        self.register_buffer("idle", torch.zeros(codes, dtype=torch.long))       # batches since each code's last use

    def codebook(self):
        """All codes as unit vectors, (codes, code_dim)."""
        return F.normalize(self.embedding.weight, dim=-1)

    def features(self, image):
        """image (B, 3, H, W) -> unit vectors z (B, S, code_dim) before rounding, raster order."""
        return F.normalize(self.quant_conv(self.encoder(image)).flatten(2).transpose(1, 2), dim=-1)

    def nearest(self, z):
        """z (B, S, code_dim) -> codes (B, S). Between unit vectors, the nearest one has the largest inner product."""
        return (z @ self.codebook().T).argmax(dim=-1)

    def vectors(self, codes):
        """Codes (B, S) -> their unit vectors (B, S, code_dim)."""
        return F.embedding(codes, self.codebook())

    def reconstruct(self, vectors, grid):
        """Unit vectors (B, h*w, code_dim), grid (h, w) -> image (B, 3, H, W), about [-1, 1]."""
        return self.decoder(self.post_quant_conv(vectors.transpose(1, 2).unflatten(2, grid)))

    def encode(self, image):
        """image (B, 3, H, W) -> codes (B, S, 1), raster order."""
        self.grid_of(image.shape[-2], image.shape[-1])
        return self.nearest(self.features(image)).unsqueeze(-1)

    def decode(self, codes, grid):
        """Codes (B, h*w, 1), whole numbers of any dtype, grid (h, w) -> image (B, 3, H, W)."""
        return self.reconstruct(self.vectors(codes.squeeze(-1).long()), grid)

    grid_of = VAE.grid_of                                        # (h, w) of a picture; ValueError if it does not fit

    @torch.no_grad()
    def move_idle_codes(self, z):
        """Move every code that no batch has used for long onto a random z of this one, more likely onto one that is far
        from its code. z (N, code_dim)."""
        nearest = self.nearest(z)                                                # (N,)
        self.idle += 1
        self.idle[nearest] = 0
        lost = (self.idle >= IDLE).nonzero().squeeze(1)
        if len(lost):
            squared = (z - self.vectors(nearest)).square().sum(dim=-1)           # (N,)
            chance = squared + 1e-6                                              # never 0 for all of them
            self.embedding.weight[lost] = z[torch.multinomial(chance, len(lost), replacement=True)]
            self.idle[lost] = 0


def straight_through(z, rounded):
    """The value of `rounded`, the gradient of z: d out / d z = 1, and nothing flows into `rounded`."""
    return z + (rounded - z).detach()


def vq_loss(vq, image):
    """L1 + 10 MSE, as for the KL-VAE, + codebook + COMMITMENT * commitment.

    image (B, 3, H, W). The last two are mean squared differences between z and its code, each with one side fixed. In
    training mode, idle codes are moved.
    """
    z = vq.features(image)                                                       # (B, S, code_dim)
    if vq.training:
        vq.move_idle_codes(z.detach().flatten(0, 1))
    rounded = vq.vectors(vq.nearest(z))
    out = vq.reconstruct(straight_through(z, rounded), vq.grid_of(*image.shape[-2:])).float()
    mse, l1 = F.mse_loss(out, image), F.l1_loss(out, image)
    codebook, commitment = F.mse_loss(rounded, z.detach()), F.mse_loss(z, rounded.detach())
    return l1 + 10 * mse + codebook + COMMITMENT * commitment


def usage(codes, size):
    """How a codebook of `size` is used, of any tensor of codes: {"used": share of codes that occur, "perplexity": how
    many equally frequent codes would be as unpredictable, "bits": its logarithm, the bits per token}."""
    share = torch.bincount(codes.long().flatten(), minlength=size).double() / codes.numel()
    bits = -(share * share.clamp(min=1e-300).log2()).sum().item()
    return {"used": (share > 0).double().mean().item(), "perplexity": 2 ** bits, "bits": bits}


def kl_bits(mean, logvar):
    """The KL-VAE's counterpart of `usage`'s bits: KL to a unit normal of each place, (B, h, w). mean, logvar
    (B, C, h, w), unscaled. What a sample of the posterior tells, at most; the mean itself, which Harmon uses, has no
    such limit."""
    return kl_divergence(mean, logvar).sum(dim=1) / math.log(2)
