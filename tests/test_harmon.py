"""Seeing and drawing: official numbers, who sees whom, learning.     python -m pytest -q tests/test_harmon.py"""
import pytest
import torch

from conftest import fill_zeros
from golden import Golden, check, harmon_config, pixels, split
from nanoharmon.config import pico
from nanoharmon.harmon import Harmon
from nanoharmon.tokenizer import IMAGE

gold = Golden("harmon")


@pytest.fixture(scope="module")
def model():
    model = Harmon(harmon_config(gold.config)).eval()
    model.load_state_dict(gold.state_dict())
    return model


@torch.no_grad()
def test_every_station_of_the_drawing_step_is_official(model):
    tokens = model.vae.encode(pixels(gold.input("t2i/pixel_uint8")))
    gold.check("t2i/latents", tokens.unflatten(1, gold.config["grid"]))
    visible, _ = split(gold.input("t2i/mask"))
    x, z = model.see(tokens, visible)
    gold.check("t2i/x_enc_mae", x)
    gold.check("t2i/z_enc", z)                                               # buffers last
    x = model.through_llm(x, z, model.llm.embed(gold.input("t2i/input_ids")), gold.input("t2i/attention_mask"))
    gold.check("t2i/x_enc", x)                                               # buffers first
    gold.check("t2i/z", model.mar.decode(x, visible))


@torch.no_grad()
def test_losses_of_replies_are_official_also_where_the_host_says_what_is_supervised(model):
    tokens = model.vae.encode(pixels(gold.input("i2t/pixel_uint8")))
    gold.check("i2t/z_enc", model.see(tokens)[1])
    for folder, latents in ("i2t", tokens), ("i2t_textonly", None):          # gradients: parity.py
        ids, labels = (gold.input(f"{folder}/{k}") for k in ("input_ids", "labels"))
        loss, index = model.understanding_loss(latents, ids, labels), (labels[:, 1:].flatten() >= 0).nonzero()[:, 0]
        gold.check(f"{folder}/loss", loss)
        check("label_index", model.understanding_loss(latents, ids, labels, index), loss, 1e-6)


@torch.no_grad()
def test_another_grid_is_official(model):
    image = pixels(gold.input("und_rect/pixel_uint8"))
    x, z = model.see(model.vae.encode(image), grid=model.vae.grid_of(*image.shape[-2:]))
    gold.check("und_rect/x_enc", x)
    gold.check("und_rect/z_enc", z)


@torch.no_grad()
def test_for_the_llm_the_buffers_come_last_and_order_is_causal(model):
    """A change of visible token j reaches the tokens from j on and all buffers; one of buffer j only later buffers."""
    U, K, B, generator = model.config.mar.buffer_size, 5, 1, torch.Generator().manual_seed(0)
    z, text = torch.randn(B, K + U, 64, generator=generator), torch.randn(B, 3, 64, generator=generator)
    x, is_real = torch.zeros(B, U + K, 64), torch.ones(B, 3, dtype=torch.bool)
    ref = model.through_llm(x, z, text, is_real)
    order = list(range(U, U + K)) + list(range(U))                           # rows of the output, as the LLM reads them
    for j in range(K + U):
        changed = z.clone()
        changed[:, j] += 1
        moved = (model.through_llm(x, changed, text, is_real) - ref).abs().amax(dim=(0, 2))[order] > 1e-5
        assert moved.tolist() == [False] * j + [True] * (K + U - j)
    assert ((model.through_llm(x, z, text + 1, is_real) - ref).abs().amax(-1) > 1e-5).all()      # all read the prompt


@torch.no_grad()
def test_padding_of_the_prompt_changes_nothing(model):
    tokens, mask = gold.output("t2i/latents").flatten(1, 2), gold.input("t2i/mask")
    ids, is_real = gold.input("t2i/input_ids"), gold.input("t2i/attention_mask")
    visible, hidden = split(mask)
    x, z = model.see(tokens, visible)
    ref = model.through_llm(x, z, model.llm.embed(ids), is_real)
    longer = torch.cat([torch.where(is_real, ids, 250), torch.full((3, 4), 251)], dim=1)   # other padding, and more
    got = model.through_llm(x, z, model.llm.embed(longer),
                            torch.cat([is_real, torch.zeros(3, 4, dtype=torch.bool)], dim=1))
    check("through_llm", got, ref)
    alone = model.through_llm(x[:1], z[:1], model.llm.embed(ids[:1, :is_real[0].sum()]), is_real[:1, is_real[0]])
    check("alone", alone, ref[:1])


@torch.no_grad()
def test_hidden_tokens_never_reach_z(model):
    tokens, (visible, hidden) = gold.output("t2i/latents").flatten(1, 2), split(gold.input("t2i/mask"))
    ids, is_real = gold.input("t2i/input_ids"), gold.input("t2i/attention_mask")

    def z(tokens):
        x, z = model.see(tokens, visible)
        return model.mar.decode(model.through_llm(x, z, model.llm.embed(ids), is_real), visible)
    other = tokens.scatter(1, hidden[..., None].expand(-1, -1, 4), 1e6)
    assert torch.equal(z(tokens), z(other)) and not torch.equal(z(tokens), z(tokens + 1))


def test_pictures_fill_their_places_in_order(model):
    """Two pictures in one row and one in the next: each placeholder gets its own vector, text stays text."""
    tokens, n = torch.randn(3, 36, 4), 36 + model.config.mar.buffer_size
    ids = torch.tensor([[5] + [IMAGE] * n + [6] + [IMAGE] * n, [7] * (n + 2) + [IMAGE] * n])
    with torch.no_grad():
        embeds, z = model.embed_with_images(tokens, ids), model.see(tokens)[1]
        assert torch.equal(embeds[ids == IMAGE].view(3, n, -1), z)
        assert torch.equal(embeds[ids != IMAGE], model.llm.embed(ids[ids != IMAGE]))


def test_a_prompt_can_show_the_picture_and_the_encoder_learns_through_it(model):
    """RecA, of pictures that are all hidden: no image token but those that the prompt shows reaches the encoder."""
    U, mul, order = model.config.mar.buffer_size, model.config.mar.diffusion_batch_mul, torch.arange(36).expand(2, 36)
    tokens, ids = torch.randn(2, 36, 4), torch.tensor([[5] + [IMAGE] * (36 + U) + [6, 7]] * 2)
    is_real, options = torch.ones(ids.shape), {"split": (order[:, :0], order), "t": torch.arange(72 * mul),
                                               "noise": torch.randn(72 * mul, 4)}
    first = model.mar.z_proj.weight                                          # where image tokens enter the encoder

    def by_hand(scale):
        shown, words = model.see(tokens)[1], model.llm.embed(torch.tensor([[5, 6, 7]] * 2))
        text = torch.cat([words[:, :1], scale * shown + (1 - scale) * shown.detach(), words[:, 1:]], dim=1)
        summed = model.through_llm(*model.see(tokens, order[:, :0]), text, is_real)
        return model.mar.loss(model.mar.decode(summed, order[:, :0], None, order), tokens, order, options["t"],
                              options["noise"])
    for scale in 1.0, model.config.grad_scale:
        model.config.grad_scale, usual = scale, model.config.grad_scale
        loss = model.generation_loss(tokens, ids, is_real, pictures=tokens, **options)
        model.config.grad_scale = usual
        check(f"loss, {scale}", loss.detach(), by_hand(scale).detach())
        got, wanted = (torch.autograd.grad(x, first)[0] for x in (loss, by_hand(scale)))
        assert wanted.abs().max() > 0
        check(f"gradient, {scale}", got, wanted, 1e-4 * wanted.abs().max().item())
    in_words = model.generation_loss(tokens, ids.clamp(min=0), is_real, hide_all=1.0, **options | {"split": None})
    assert torch.autograd.grad(in_words, first)[0].abs().max() == 0


def test_checkpointing_changes_no_gradient_and_each_dropout_does():
    config, grads = pico(), []
    for config.mar.attn_dropout, config.mar.proj_dropout, checkpointing in (
            (0.1, 0.1, False), (0.1, 0.1, True), (0.1, 0.0, False), (0.0, 0.1, False)):
        torch.manual_seed(0)
        model = fill_zeros(Harmon(config)).train()
        model.mar.checkpointing = model.llm.model.checkpointing = checkpointing
        model.generation_loss(torch.randn(2, 4, 4), torch.arange(6).view(2, 3), torch.ones(2, 3).bool()).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert [len(g) > 50 and all(map(torch.equal, grads[0], g)) for g in grads] == [True, True, False, False]


@pytest.fixture(scope="module")
def learned():
    """A pico model that has seen one batch 250 times, in both tasks: four prompts, four pictures, four captions."""
    torch.manual_seed(0)
    model = Harmon(pico())
    S, U = 4, model.config.mar.buffer_size
    tokens, replies = torch.randn(4, S, 4), torch.randint(10, 300, (4, 3))
    prompts, is_real = torch.arange(300, 304)[:, None].expand(4, 3), torch.ones(4, 3, dtype=torch.bool)
    question = torch.cat([torch.full((4, S + U), IMAGE), torch.full((4, 1), 5)], dim=1)
    ids = torch.cat([question, replies], dim=1)
    labels = torch.cat([torch.full_like(question, -100), replies], dim=1)
    many = [x.repeat(16, *[1] * (x.dim() - 1)) for x in (tokens, prompts, is_real)]

    def losses():
        return model.generation_loss(*many), model.understanding_loss(tokens, ids, labels)
    with torch.no_grad():
        before = [torch.stack(losses()) for _ in range(8)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for step in range(250):
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * (1 - step / 250)
        optimizer.zero_grad()
        sum(losses()).backward()
        optimizer.step()
    with torch.no_grad():
        after = [torch.stack(losses()) for _ in range(8)]
    return model.eval(), tokens, prompts, question, replies, torch.stack(before).mean(0), torch.stack(after).mean(0)


def test_one_batch_is_learned_in_both_tasks(learned):
    *_, before, after = learned
    assert after[0] < 0.4 * before[0] and after[1] < 0.01 * before[1], (before, after)


def test_a_learned_caption_is_said(learned):
    model, tokens, _, question, replies, *_ = learned
    with torch.no_grad():
        said = list(model.llm.generate(model.embed_with_images(tokens, question), {-1}, max_new_tokens=3))
    assert torch.equal(torch.stack(said, dim=1), replies)


@torch.no_grad()
def test_a_learned_picture_belongs_to_its_prompt(learned):
    """Nothing visible, the same noise: a picture is far likelier after its own prompt than after another one's."""
    model, tokens, prompts, *_ = learned
    everything = torch.arange(4).expand(4, 4)

    def loss(prompts):
        return model.generation_loss(tokens.repeat(16, 1, 1), prompts.repeat(16, 1), torch.ones(64, 3).bool(),
                                     split=(everything[:, :0].repeat(16, 1), everything.repeat(16, 1)),
                                     generator=torch.Generator().manual_seed(0))
    assert loss(prompts) < 0.5 * loss(prompts.roll(1, 0))
