"""Is it the codes, or that they say so little? Three picture tokenizers, trained from scratch for the same time.

    python -m nanoharmon.compare.bits --minutes 15        of one core, for each of the three, one after the other

    vq     one code per place (vq.py): log2(codes) bits at most
    kl     Harmon's KL-VAE, as the recipe trains it. Its KL to a unit normal is about 100 bits a place
    held   a KL-VAE no place of which may say more than a code can: what its KL has above that costs, with a weight that
           is steered while it learns

The KL is what a *sample* of the posterior tells, at most. So `held` is judged by samples. The other two are judged as
they are used: by the code, and by the mean.
"""
import math
import sys

import torch
import torch.nn.functional as F

from ..cli import Parser, number, run_main
from .metrics import SIZES, tables, token_figures
from .systems import OWN, PRESETS, System
from .vq import kl_bits

# of `held`, chosen by hand: bits per place, on average, that are allowed above the limit; the first weight of what is
# above it; and by how much the weight may change in a step, e to this
EXCESS, FIRST_WEIGHT, STEERING = 0.1, 1e-3, 0.02


def hold(system, bits):
    """Replace the losses of a System's part `vae`, so that no place learns to say more than `bits`, and what its VAE
    encodes: samples instead of means."""
    vae, system.kl_weight = system.model.vae, FIRST_WEIGHT

    def sample(mean, logvar):
        return mean + (0.5 * logvar).exp() * torch.randn_like(mean)

    def losses(part, rng, generator):
        image = system.batches.images(rng, system.config.stages["vae"].batch, system.size)
        moments = vae.moments(image)
        out = vae.reconstruct(sample(*moments))
        excess = (kl_bits(*moments) - bits).clamp(min=0).mean()
        # the first two terms are those of vae_loss, whose KL is a mean over places and knows no limit
        yield F.l1_loss(out, image) + 10 * F.mse_loss(out, image) + system.kl_weight * excess
        system.kl_weight *= math.exp(STEERING * max(-1.0, min(1.0, excess.item() / EXCESS - 1)))
    system.losses = losses
    vae.encode = lambda image: sample(*vae.moments(image)).flatten(2).transpose(1, 2) * vae.config.scale   # (B, S, C)


def tokenizer(name, preset, seed):
    """A System of which only the part `vae` is trained: name "vq", "kl" or "held"."""
    system = System("codes" if name == "vq" else "harmon", preset, seed, 64)
    if name == "held":
        hold(system, math.log2(OWN[preset]["codes"]))
    return system


def main(argv=None):
    parser = Parser(prog="python -m nanoharmon.compare.bits", description=__doc__)
    parser.add_argument("--minutes", type=number(float, 0.001, 10**5), default=15.0, help="of one core (default 15)")
    parser.add_argument("--preset", choices=PRESETS, default="nano", help="sizes (default nano)")
    parser.add_argument("--seed", type=number(int, 0, 2**63 - 1), default=1, help="of data and weights (default 1)")
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = {}
    for name in ("vq", "kl", "held"):
        timed, system = (tokenizer(name, args.preset, args.seed) for _ in range(2))
        steps = max(1, round(60 * args.minutes / timed.seconds_per_step("vae")))
        print(f"{name}: {steps} steps", file=sys.stderr)
        system.train("vae", steps)
        figures = token_figures(system, system.pipeline(), SIZES[args.preset]["scenes"])
        found[name] = [{"tokens": figures | {"steps": steps}}]   # of one seed
    print(tables(found))


if __name__ == "__main__":
    run_main(main)
