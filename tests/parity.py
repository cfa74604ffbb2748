"""The parity table: official numbers against ours, with weights that came through the public loader.

    python tests/parity.py

Each golden model is written as the official files are laid out (harmon.pth without VAE, kl16.ckpt, MAR's
checkpoint-last.pth, a Hugging Face Qwen2 directory), converted by `python -m nanoharmon.convert`, and loaded by
Pipeline.load. What is compared and how closely: golden.py.
"""
import contextlib
import io
import json
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from golden import Golden, drawing_noise, loss_rows, mar_config, pixels, replay, split      # noqa: E402
from nanoharmon.mar import MAR, take
from nanoharmon.pipeline import Pipeline
from nanoharmon.tokenizer import Tokenizer
from nanoharmon.weights import convert
from nanoharmon.weights.safetensors import save_safetensors


class Rows(list):
    """[(module, what, error, tolerance)]."""

    def add(self, module, gold, key, got, where=...):
        ref = gold.output(key)
        got, ref = torch.as_tensor(got).detach()[where].double(), ref[where].double()
        floor = gold.config.get("noise_floor", {}).get(gold.prefix + key, 0)
        tolerance = max(10 * floor, 1e-4 * max(1, ref.abs().max()))
        error = (got - ref).abs().max().item() if got.shape == ref.shape else float("inf")
        self.append((module, gold.prefix + key, error, float(tolerance)))

    def gradients(self, module, gold, key, model, names):
        """Norms of all gradients (-1 = none), all together and each by itself, and those that are stored whole."""
        params, ref = dict(model.named_parameters()), gold.output(key + "gradnorms")
        norms = torch.tensor([-1.0 if params[n].grad is None else params[n].grad.norm() for n in names])
        self.add(module, gold, key + "gradnorms", norms)
        each = ((norms - ref).abs() / (1e-3 * ref.abs() + 1e-5)).max().item()
        self.append((module, f"{gold.prefix}{key}gradnorms, each", each, 1.0))
        for name in gold.outputs(key + "grad/"):
            self.add(module, gold, f"{key}grad/{name}", params[name].grad)


# --- official files --------------------------------------------------------------------------------------------------

def qwen_directory(folder, config, weights, **changes):
    """What Hugging Face publishes: config.json, tokenizer.json, model.safetensors. -> folder"""
    folder.mkdir(parents=True, exist_ok=True)
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "num_key_value_heads", "rms_norm_eps", "rope_theta", "tie_word_embeddings")
    values = {"model_type": "qwen2", "hidden_act": "silu", "max_position_embeddings": 32768,
              **{k: config[k] for k in names if k in config}, **changes}
    (folder / "config.json").write_text(json.dumps(values), encoding="utf-8")
    tokenizer = Tokenizer.train(["Generate an image: a red cat on a mat."], values["vocab_size"])
    (folder / "tokenizer.json").write_bytes(tokenizer.to_bytes())
    save_safetensors(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def pth(path, weights):
    torch.save(weights, path)
    return path


def converted(folder, *flags, **files):
    """The pipeline that `python -m nanoharmon.convert --NAME FILE ... --dtype float32` makes."""
    argv = [str(x) for name, path in files.items() for x in ("--" + name, path)]
    with contextlib.redirect_stdout(io.StringIO()):
        convert.main([*argv, "--out", str(folder), "--dtype", "float32", *flags])
    return Pipeline.load(folder)


def heads(c):
    return [f"--mar.{k}={c[k]}" for k in ("encoder_num_heads", "decoder_num_heads", "diffusion_batch_mul")]


def qwen_files(folder, name):
    gold = Golden("qwen2", name + "/")
    return qwen_directory(folder / name, gold.config, gold.state_dict(), tie_word_embeddings=gold.config["tie"][name])


def harmon_files(folder):
    """(harmon.pth without its VAE, kl16.ckpt, an LLM directory for config and tokenizer), and flags for tiny sizes."""
    gold = Golden("harmon")
    weights, c = gold.state_dict(), gold.config
    vae = {k.removeprefix("vae."): v for k, v in weights.items() if k.startswith("vae.")}
    rest = {k: v for k, v in weights.items() if not k.startswith("vae.")}
    files = {"harmon": pth(folder / "harmon.pth", rest), "vae": pth(folder / "harmon_kl16.ckpt", {"model": vae}),
             "llm": qwen_directory(folder / "harmon_llm", c["llm"], {})}
    return files, heads(c["mar"]) + [f"--vae.scale={c['vae_scale']}"]


# --- comparisons -----------------------------------------------------------------------------------------------------

@torch.no_grad()
def vae_rows(rows, vae):
    gold = Golden("vae")
    mean, logvar = vae.moments(pixels(gold.input("image_uint8")))
    for key, got in {"mode": mean, "logvar": logvar, "decoded_mode": vae.reconstruct(mean),
                     "decoded_z": vae.reconstruct(gold.input("z"))}.items():
        rows.add("vae", gold, key, got)


def qwen_rows(rows, name, llm):
    gold = Golden("qwen2", name + "/")
    with torch.no_grad():
        for side in ("right", "left"):
            ids, mask, places = (gold.input(f"{side}/{k}") for k in ("input_ids", "attention_mask", "position_ids"))
            hidden = llm.model(llm.embed(ids), places, mask.bool())
            rows.add("llm", gold, side + "/last_hidden", hidden, mask.bool())
            if side == "right":
                rows.add("llm", gold, "right/logits", llm(ids, places, mask.bool()), mask.bool())
        said = torch.stack(list(llm.generate(llm.embed(gold.input("greedy/prompt")), {-1}, 12)), dim=1)
        rows.add("llm", gold, "greedy/tokens", said)


@torch.no_grad()
def mar_rows(rows, mar):
    gold = Golden("mar", "harmon/")
    for grid in ("native", "big", "rect"):
        shape = None if grid == "native" else tuple(gold.config[grid])
        visible, hidden = split(gold.input(grid + "/mask"))
        x = mar.encode(gold.input(grid + "/x"), visible, shape)
        rows.add("mar encoder", gold, grid + "/encoder", x)
        rows.add("mar decoder", gold, grid + "/decoder", mar.decode(x, visible, shape))
    mask = gold.input("native/mask")
    index = loss_rows(mask, mar.config.diffusion_batch_mul)
    loss = mar.loss(take(gold.output("native/decoder"), split(mask)[1]), gold.input("loss/target"), split(mask)[1],
                    gold.input("loss/t")[index], gold.input("loss/noise")[index])
    rows.add("mar loss", gold, "loss", loss)


def class_rows(rows, mar):
    gold = Golden("mar", "lth14/")
    for name, cfg, schedule, temperature, with_labels in gold.config["samples"]:
        folder = "sample/noise_" + ("nocfg" if cfg == 1 else "cfg")
        iters, steps = gold.config["num_iter"], int(gold.config["lth14"]["num_sampling_steps"])
        tokens = mar.class_sample(gold.input("labels") if with_labels else None, gold.input("sample/orders"), iters,
                                  cfg, schedule, steps=steps, temperature=temperature,
                                  randn=drawing_noise(gold, folder + "/", iters))
        rows.add("mar class sampling", gold, "sample/" + name, tokens.transpose(1, 2).unflatten(2, (6, 6)))


def head_rows(rows, variant, head):
    g, gold = Golden("diffloss", variant + "/"), Golden("diffloss")
    with torch.no_grad():
        rows.add("diffusion MLP", g, "mlp", head.net(*(gold.input("mlp/" + k) for k in ("x", "t", "c"))))
    x, t, noise, z, mask = (gold.input("loss/" + k) for k in ("x_start", "t", "noise", "z", "mask"))
    loss = (head(x, z.requires_grad_(), t, noise) * mask).sum() / mask.sum()
    rows.add("diffusion MLP", g, "loss_masked", loss)
    loss.backward()
    rows.add("diffusion MLP", g, "grad_z", z.grad)
    if variant == "rand":
        return
    n, start, z = gold.config["n_sample"], gold.input("sample/noise_init"), gold.input("sample/z")
    for steps, cfg, temperature in product(*(gold.config[k] for k in ("sample_respacings", "cfgs", "temps"))):
        randn = replay(start[None], gold.input(f"sample/noise_steps_r{steps}")[:, :n])
        got = head.sample(z if cfg != 1 else z[:n], temperature, cfg, int(steps), randn=randn)
        key = f"sample/r{steps}_cfg{cfg:g}_temp{temperature:g}"
        rows.add("diffusion sampling", gold, key, torch.cat([got] * (len(gold.output(key)) // n)), slice(0, n))


def harmon_rows(rows, pipe):
    gold, model = Golden("harmon"), pipe.model
    names, mask = gold.config["grad_param_names"], gold.input("t2i/mask")
    model.vae.requires_grad_(False)
    index = loss_rows(mask, model.config.mar.diffusion_batch_mul)
    tokens = model.vae.encode(pixels(gold.input("t2i/pixel_uint8")))
    rows.add("harmon latents", gold, "t2i/latents", tokens.unflatten(1, gold.config["grid"]))
    loss = model.generation_loss(tokens, gold.input("t2i/input_ids"), gold.input("t2i/attention_mask"),
                                 split=split(mask), t=gold.input("t2i/t")[index], noise=gold.input("t2i/noise")[index])
    rows.add("harmon generation loss", gold, "t2i/loss", loss)
    loss.backward()
    rows.gradients("harmon generation loss", gold, "t2i/", model, names)
    model.zero_grad(set_to_none=True)
    tokens = model.vae.encode(pixels(gold.input("i2t/pixel_uint8")))
    ids, labels = (gold.input("i2t/" + k) for k in ("input_ids", "labels"))
    loss = model.understanding_loss(tokens, ids, labels)
    rows.add("harmon understanding loss", gold, "i2t/loss", loss)
    loss.backward()
    rows.gradients("harmon understanding loss", gold, "i2t/", model, names)
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        tokens = model.vae.encode(pixels(gold.input("und/pixel_uint8")))
        embeds = model.embed_with_images(tokens, gold.input("und/input_ids"))
        hidden = model.llm.model(embeds)
        rows.add("harmon answering", gold, "und/last_hidden", hidden)
        rows.add("harmon answering", gold, "und/logits_last8", model.llm.lm_head(hidden[:, -8:]))
        said = torch.stack(list(model.llm.generate(embeds, {-1}, max_new_tokens=8)), dim=1)
        rows.add("harmon answering", gold, "und/greedy_tokens", said)
    for name, cfg, schedule, temperature, iters, rect in gold.config["runs"]:
        folder, n, stations = f"sample/{name}/", 2 if cfg == 1 else 4, []
        grid = tuple(gold.config["big"] if rect else gold.config["grid"])
        got = model.draw(gold.input("sample/input_ids")[:n], gold.input("sample/attention_mask")[:n], iters, cfg, grid,
                         gold.input(folder + "orders")[:2], cfg_schedule=schedule, temperature=temperature,
                         steps=int(gold.config["mar"]["num_sampling_steps"]),
                         randn=drawing_noise(gold, folder + "noise_", iters),
                         on_iteration=lambda t, v: stations.append(t))
        ref = gold.output(folder + "tokens")                                 # before and after each iteration
        stations = torch.stack([ref[0, :2], *stations])
        rows.add("harmon drawing", gold, folder + "tokens", torch.cat([stations] * (n // 2), dim=1),
                 (slice(None), slice(0, 2)))
        rows.add("harmon drawing", gold, folder + "image", model.vae.decode(got, grid))


def compare(folder):
    """All rows. `folder` (empty) takes the official and the converted files."""
    rows, folder = Rows(), Path(folder)
    vae, mar, head = Golden("vae"), Golden("mar", "harmon/"), Golden("diffloss")
    kl16 = pth(folder / "kl16.ckpt", {"model": vae.state_dict()})
    tied, untied = qwen_files(folder, "tied"), qwen_files(folder, "untied")

    def joined(name, weights, sizes, llm=tied):
        """A pipeline with the MAR of these weights."""
        mar_file = pth(folder / f"{name}.pth", weights)
        return converted(folder / name, *heads(mar.config[sizes]), vae=kl16, llm=llm, mar=mar_file)
    pipe = joined("pieces", {"model": mar.state_dict()}, "harmon")
    vae_rows(rows, pipe.model.vae)
    qwen_rows(rows, "tied", pipe.model.llm)
    mar_rows(rows, pipe.model.mar)
    weights = Golden("mar", "lth14/").state_dict()
    last = {k: torch.zeros_like(v) for k, v in weights.items()}              # not those of the average
    pipe = joined("class", {"model": last, "model_ema": weights}, "lth14", untied)
    class_rows(rows, pipe.model.mar)
    qwen_rows(rows, "untied", pipe.model.llm)
    qwen_rows(rows, "untied", convert.load_llm(untied)[0])
    for variant in ("rand", "craft"):                                        # a head alone travels inside a MAR
        g, c = Golden("diffloss", variant + "/"), head.config
        body = mar_config(mar.config["harmon"])
        body.decoder_embed_dim, body.diffloss_d, body.diffloss_w = c["z_channels"], c["depth"], c["width"]
        weights = MAR(body).state_dict() | {"diffloss." + k: v for k, v in g.state_dict().items()}
        head_rows(rows, variant, joined(variant, {"model": weights}, "harmon").model.mar.diffloss)
    files, flags = harmon_files(folder)
    harmon_rows(rows, converted(folder / "harmon", *flags, **files))
    return rows


def table(rows):
    """Per module: how many outputs, and the one closest to its tolerance."""
    worst = {}
    for module, key, error, tolerance in rows:
        n, *old = worst.get(module, (0, "", 0.0, 1.0))
        new = (key, error, tolerance) if not error / tolerance < old[1] / old[2] else old    # NaN wins
        worst[module] = (n + 1, *new)
    lines = [f"{'module':25s} outputs  max abs error  tolerance  closest to its tolerance"]
    lines += [f"{module:25s} {n:7d}  {error:13.1e}  {tolerance:9.1e}  {key}"
              for module, (n, key, error, tolerance) in worst.items()]
    return "\n".join([*lines, f"{len(rows)} outputs compared, {len(failed(rows))} outside their tolerance"])


def failed(rows):
    return [row for row in rows if not row[2] <= row[3]]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        rows = compare(folder)
    print(table(rows), *failed(rows), sep="\n")
    sys.exit(bool(failed(rows)))
