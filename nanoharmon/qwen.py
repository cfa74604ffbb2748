"""Qwen2.5: the decoder-only LLM in the middle of Harmon. arXiv 2412.15115; same numbers as Hugging Face's Qwen2.

RMSNorm, rotary positions, grouped-query attention with q/k/v biases, SwiGLU, tied or untied output embedding, a KV
cache. One class for all sizes (0.5B ... 72B, or the toy LLM of the nano preset): only `LLMConfig` differs. Parameter
names are Hugging Face's, so `model.safetensors` loads without renaming. In Harmon it reads embeddings, of text and of
pictures alike, and its last states are used for both tasks.

Simplified: no sliding window (off in all released Qwen2.5 chat models), no RoPE scaling.
"""
import torch
import torch.utils.checkpoint
import torch.nn.functional as F
from torch import nn

from .attention import attention


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2)) * weight: LayerNorm without the mean and the bias."""

    def __init__(self, dim, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(dim)), eps

    def forward(self, x):                                            # (..., E), of any dtype
        return self.weight * F.rms_norm(x.float(), x.shape[-1:], eps=self.eps).to(x.dtype)   # normalised in float32


def rotary_positions(is_real):
    """(B, L) from is_real (B, L): each real token's place in its row; padding, on either side, does not count."""
    return (is_real.long().cumsum(dim=1) - 1).clamp(min=0)


def rope_tables(positions, head_dim, theta):
    """cos and sin of the angles of positions (B, L): (B, 1, L, head_dim) each, float32; the first half of sin negated.

    RoPE (arXiv 2104.09864) turns each pair of channels of q and k by an angle that grows with the position, slowly for
    the last pairs: then of two positions only their distance enters q . k.
    """
    exponent = torch.arange(0, head_dim, 2, dtype=torch.float32, device=positions.device) / head_dim
    angles = positions[..., None].float() * theta ** -exponent                   # (B, L, head_dim/2)
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)              # (B, 1, L, head_dim/2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def rotate(x, cos, sin):
    """Turn the pairs (a, b) = (x[i], x[i + d/2]) by their angles: a cos - b sin, b cos + a sin. x (B, heads, L, d).
    `roll` puts the b before the a; the minus is in the table."""
    return torch.addcmul(x * cos.to(x.dtype), x.roll(x.shape[-1] // 2, -1), sin.to(x.dtype))


class KVCache:
    """Keys and values of the tokens so far, per layer (B, kv_heads, past, d).

    `append=False` makes `extend` return past + new without keeping the new: Harmon's drawing loop reads the prompt's
    cache in every iteration, but its image tokens change each time.
    """

    def __init__(self):
        self.layers, self.append = {}, True

    def extend(self, layer, k, v):
        if layer in self.layers:
            past_k, past_v = self.layers[layer]
            k, v = torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)
        if self.append:
            self.layers[layer] = (k, v)
        return k, v

    def __len__(self):
        return self.layers[0][0].shape[2] if self.layers else 0


class SelfAttention(nn.Module):
    """Grouped-query attention: several query heads share one key/value head, which makes the KV cache smaller."""

    def __init__(self, config):
        super().__init__()
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim = config.hidden_size // self.heads
        self.q_proj = nn.Linear(config.hidden_size, self.heads * self.head_dim)
        self.k_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.v_proj = nn.Linear(config.hidden_size, self.kv_heads * self.head_dim)
        self.o_proj = nn.Linear(self.heads * self.head_dim, config.hidden_size, bias=False)

    def forward(self, x, rope, may_attend, cache, layer):            # x (B, L, E)
        B, L, _ = x.shape
        # b l (heads d) -> b heads l d
        q = rotate(self.q_proj(x).view(B, L, self.heads, -1).transpose(1, 2), *rope)       # (B, heads, L, d)
        k = rotate(self.k_proj(x).view(B, L, self.kv_heads, -1).transpose(1, 2), *rope)    # (B, kv_heads, L, d)
        v = self.v_proj(x).view(B, L, self.kv_heads, -1).transpose(1, 2)                   # (B, kv_heads, L, d)
        if cache is not None:                                        # k is rotated already: positions never change
            k, v = cache.extend(layer, k, v)                         # (B, kv_heads, past + L, d)
        group = self.heads // self.kv_heads                          # query head h reads kv head h // group
        if L == 1:                       # one new token: the heads of a group become its queries; nothing is copied
            q = q.reshape(B, self.kv_heads, group, -1)               # (B, kv_heads, group, d)
        elif group > 1:
            k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)    # (B, heads, past + L, d)
        # no mask: plain causal order; a single new token (L = 1) may attend to the whole cache, so it needs none
        x = attention(q, k, v, may_attend, is_causal=may_attend is None and L > 1)         # like q
        x = x.reshape(B, 1, -1) if L == 1 else x.transpose(1, 2).reshape(B, L, -1)         # (B, L, heads*d)
        return self.o_proj(x)                                        # (B, L, E)


class MLP(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x))."""

    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x):                                            # (..., E) -> (..., E)
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class DecoderLayer(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.self_attn, self.mlp = SelfAttention(config), MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x, rope, may_attend, cache, layer, rows=None):
        """x (B, L, E) -> (B, L, E); with rows (N,), flat indices into B*L, only these: (N, E)."""
        x = x + self.self_attn(self.input_layernorm(x), rope, may_attend, cache, layer)
        x = x if rows is None else x.flatten(0, 1).index_select(0, rows)
        return x + self.mlp(self.post_attention_layernorm(x))


class Transformer(nn.Module):
    """Embeddings, layers, final norm (`model.` in the official names)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.checkpointing = False                                   # recompute each layer in backward: less memory

    def forward(self, embeds, positions=None, is_real=None, cache=None, rows=None):
        """embeds (B, L, E) -> last states (B, L, E), after the final norm; with rows (N,), flat indices into
        B*L, only those that somebody reads, (N, E).

        positions (B, L): rotary positions, default past, past+1, ...; is_real (B, past + L) bool: False = padding,
        seen by itself only; cache: a KVCache holding `past` tokens, extended in place (see its `append`).
        The causal mask compares indices, the rotary angle uses `positions`: they differ where there is padding.
        """
        B, L, _ = embeds.shape
        past = len(cache) if cache is not None else 0
        if positions is None:
            positions = torch.arange(past, past + L, device=embeds.device).expand(B, L)
        # the same in all layers: (B, 1, L, d) twice, and (L, past + L) or (B, 1, L, past + L)
        rope = rope_tables(positions, self.layers[0].self_attn.head_dim, self.config.rope_theta)
        rope = [table.to(embeds.dtype) for table in rope]            # once, not in every layer
        may_attend = causal_mask(past, L, is_real, embeds.device)
        x = embeds
        for i, layer in enumerate(self.layers):
            wanted = rows if i == len(self.layers) - 1 else None
            if self.checkpointing and torch.is_grad_enabled():
                x = torch.utils.checkpoint.checkpoint(layer, x, rope, may_attend, cache, i, wanted, use_reentrant=False)
            else:
                x = layer(x, rope, may_attend, cache, i, wanted)
        return self.norm(x)


def causal_mask(past, L, is_real, device):
    """Who may attend to whom, bool, True = may: (L, past + L), with padding (B, 1, L, past + L); None = no mask needed.

    A position may always attend to itself, also when it is padding, so that no row of the softmax is empty.
    """
    if is_real is None and (past == 0 or L == 1):
        return None                                  # all causal, as attention knows it; or one that may see all
    query = torch.arange(past, past + L, device=device)[:, None]                 # (L, 1)
    key = torch.arange(past + L, device=device)                                  # (past + L,)
    if is_real is None:
        return key <= query
    return ((key <= query) & is_real.bool()[:, None, None, :]) | (key == query)


class Qwen(nn.Module):
    """Transformer with a language-model head."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.model = Transformer(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        # GPT-2's initialisation; loading official weights replaces it
        for m in self.modules():
            if isinstance(m, (nn.Linear, nn.Embedding)):
                nn.init.normal_(m.weight, std=0.02)
                if getattr(m, "bias", None) is not None:
                    nn.init.zeros_(m.bias)
        self.tie()

    def tie(self):
        """Share the embedding with the output layer where the config says so (again after a `.to_empty()`)."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    def embed(self, ids):
        """Token ids (B, L) -> (B, L, E)."""
        return self.model.embed_tokens(ids)

    def forward(self, ids, positions=None, is_real=None, cache=None):
        """Token ids (B, L) -> logits (B, L, V), float32."""
        return self.lm_head(self.model(self.embed(ids), positions, is_real, cache)).float()

    def loss(self, embeds, labels, label_index=None):
        """Cross-entropy of the next token, averaged over all supervised positions of the batch.

        embeds (B, L, E), padded at the end, where causal order keeps the padding out of all that is real. labels
        (B, L): the id at each supervised position, -100 elsewhere; position t is predicted from t-1. label_index (N,):
        the flat supervised positions of labels[:, 1:], precomputed on the host: asking the GPU would stall it.
        """
        target = labels[:, 1:].flatten()                                         # (B*(L-1),)
        if label_index is None:
            label_index = (target >= 0).nonzero().squeeze(1)                     # (N,)
        # b*(L-1) + t of labels[:, 1:] -> b*L + t of the states: the state at t predicts labels[t+1]
        rows = label_index + label_index // (labels.shape[1] - 1)
        states = self.model(embeds, rows=rows)                                   # (N, E)
        return F.cross_entropy(self.lm_head(states).float(), target.index_select(0, label_index))

    @torch.no_grad()
    def generate(self, embeds, stop_ids, max_new_tokens=64, temperature=0.0, top_p=1.0, generator=None, is_real=None):
        """Continue prompts given as embeddings (B, L, E). Yields one tensor of ids (B,) per token.

        temperature 0 = greedy. A prompt that met a stop id yields it for ever; the loop ends when all have.
        is_real (B, L) marks left padding, so that prompts of different lengths end together.
        """
        B, cache = embeds.shape[0], KVCache()
        done = torch.zeros(B, dtype=torch.bool, device=embeds.device)
        stop = torch.tensor(sorted(stop_ids), device=embeds.device)
        last = stop[0].expand(B)
        for _ in range(max_new_tokens):
            positions = None if is_real is None else rotary_positions(is_real)[:, -embeds.shape[1]:]
            states = self.model(embeds, positions, is_real, cache)[:, -1]        # (B, E)
            ids = sample_token(self.lm_head(states).float(), temperature, top_p, generator)      # (B,)
            last = torch.where(done, last, ids)
            yield last
            done = done | torch.isin(last, stop)
            if done.all():
                return
            embeds = self.embed(last).unsqueeze(1)                               # (B, 1, E)
            is_real = None if is_real is None else F.pad(is_real, (0, 1), value=True)


def sample_token(logits, temperature, top_p, generator=None):
    """One id per row of logits (B, V): greedy at temperature 0, else from the smallest set of mass top_p."""
    if not torch.isfinite(logits).all():
        raise ValueError("the LLM's output is not finite, expected numbers; float32 may hold them")
    if temperature == 0:
        return logits.argmax(dim=-1)
    probs, ids = (logits / temperature).softmax(dim=-1).sort(dim=-1, descending=True)       # (B, V) each
    outside = probs.cumsum(dim=-1) - probs >= top_p                              # the first one is never outside
    chosen = torch.multinomial(probs.masked_fill(outside, 0), 1, generator=generator)      # (B, 1)
    return ids.gather(1, chosen).squeeze(1)
