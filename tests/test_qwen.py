"""Qwen2.5: official numbers, causality, padding, KV cache, generation.     python -m pytest -q tests/test_qwen.py"""
import pytest
import torch

from golden import Golden, check, check_gradients, llm_config
from nanoharmon.attention import attention, dropout
from nanoharmon.qwen import KVCache, Qwen, sample_token

TIED = pytest.mark.parametrize("name", ["tied", "untied"])


def load(name):
    gold = Golden("qwen2", name + "/")
    config = llm_config(gold.config)
    config.tie_word_embeddings = gold.config["tie"][name]
    model, weights = Qwen(config).eval(), gold.state_dict()
    if name == "tied":
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"]     # published files leave the shared one out
    model.load_state_dict(weights)
    return gold, model


@pytest.fixture(scope="module")
def llm():
    return load("untied")[1].requires_grad_(False)


IDS = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))


# --- official numbers ------------------------------------------------------------------------------------------------

@TIED
@torch.no_grad()
def test_embeddings_as_input_and_positions_with_gaps_are_official(name):
    gold, model = load(name)
    embeds = gold.input("embeds/inputs_embeds")
    hidden = model.model(embeds)
    gold.check("embeds/last_hidden", hidden)
    if gold.has("embeds/logits"):
        gold.check("embeds/logits", model.lm_head(hidden))
    gold.check("embeds_jump/last_hidden", model.model(embeds, gold.input("embeds_jump/position_ids")))


def test_loss_and_its_gradients_are_official():
    gold, model = load("untied")
    loss = model.loss(model.embed(gold.input("right/input_ids")), gold.input("loss/labels"))
    gold.check("loss", loss)
    loss.backward()
    check_gradients(gold, "loss_", model)


# --- causality, padding, cache ---------------------------------------------------------------------------------------

def test_no_position_sees_the_future(llm):
    ref = llm(IDS)
    for at in (0, 5, 11):
        changed = IDS.clone()
        changed[:, at] = (changed[:, at] + 1) % 300
        got = llm(changed)
        check("before", got[:, :at], ref[:, :at], 1e-6) if at else None
        assert ((got[:, at:] - ref[:, at:]).abs().amax(-1) > 1e-4).all()


@pytest.mark.parametrize("chunks", [[12], [1] * 12, [5, 7], [3, 1, 6, 2]])
def test_cache_in_any_chunks_is_the_full_forward(llm, chunks):
    cache = KVCache()
    got = torch.cat([llm(part, cache=cache) for part in IDS.split(chunks, dim=1)], dim=1)
    check("logits", got, llm(IDS), 1e-4)
    assert len(cache) == 12


def test_a_prefix_cache_is_read_but_not_changed(llm):
    cache = KVCache()
    llm(IDS[:, :6], cache=cache)
    before = {i: (k.clone(), v.clone()) for i, (k, v) in cache.layers.items()}
    cache.append = False
    full = llm(IDS)
    for _ in range(2):                                   # the same answer every time: nothing was kept
        check("logits", llm(IDS[:, 6:], cache=cache), full[:, 6:], 1e-4)
    assert len(cache) == 6 and all(torch.equal(a, b) for i in before for a, b in zip(before[i], cache.layers[i]))


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_drops_its_share_and_keeps_the_mean(p):
    torch.manual_seed(0)
    x = torch.full((400, 501), 2.0, requires_grad=True)
    y = dropout(x, p)
    assert abs((y == 0).float().mean().item() - p) < 4 * (p * (1 - p) / y.numel()) ** 0.5
    check("kept", y[y != 0], torch.full_like(y[y != 0], 2 / (1 - p)), 1e-3)
    kept = (y != 0).float()
    assert (kept.mean(0) - 1 + p).abs().max() < 0.15 and abs((kept[:, 1:] * kept[:, :-1]).mean() - (1 - p) ** 2) < 0.01
    y.sum().backward()
    check("gradient", x.grad, y.detach() / 2, 1e-6)
    assert not torch.equal(y, dropout(x, p)) and torch.equal(dropout(x, 0.0), x)


def test_attention_with_dropout_is_attention_on_average():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 9, 8)
    mean = torch.stack([attention(q, k, v, dropout=0.1) for _ in range(3000)]).mean(0)
    check("mean", mean, attention(q, k, v), 0.05)
    weights = attention(q, k, torch.eye(9).expand(2, 3, 9, 9)[..., :8], dropout=0.1)
    assert abs((weights == 0).float().mean().item() - 0.1) < 0.05


def test_left_padded_prompts_generate_as_if_alone(llm):
    """Prompts of 12 and 8 tokens in one batch continue as each does alone."""
    def run(ids, **options):
        return torch.stack(list(llm.generate(llm.embed(ids), {-1}, max_new_tokens=6, **options)), dim=1)
    is_real = torch.ones(2, 12, dtype=torch.bool)
    is_real[1, :4] = False
    both = run(IDS, is_real=is_real)
    assert torch.equal(both[:1], run(IDS[:1])) and torch.equal(both[1:], run(IDS[1:, 4:]))


def test_generation_stops_when_all_rows_have(llm):
    free = torch.stack(list(llm.generate(llm.embed(IDS), {-1}, max_new_tokens=8)), dim=1)
    first, second = free[0, 2].item(), free[1, 5].item()
    got = torch.stack(list(llm.generate(llm.embed(IDS), {first, second}, max_new_tokens=8)), dim=1)
    ends = [next(i for i, x in enumerate(row.tolist()) if x in (first, second)) for row in free]
    assert got.shape[1] == max(ends) + 1
    for row, reference, end in zip(got, free, ends):
        assert torch.equal(row[:end + 1], reference[:end + 1]) and (row[end:] == row[end]).all()     # for ever


def test_top_p_keeps_the_smallest_set_of_that_mass():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)
    generator = torch.Generator().manual_seed(0)
    for top_p, kept in [(0.4, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})]:
        ids = sample_token(logits, 1.0, top_p, generator)
        assert set(ids.tolist()) == kept
        assert abs((ids == 0).float().mean().item() - 0.5 / sum([0.5, 0.3, 0.15, 0.05][:len(kept)])) < 0.03
    assert (sample_token(logits, 0, 1.0) == 0).all() and (sample_token(logits, 0.05, 1.0, generator) == 0).all()
