"""The slow, obvious twin of `engines.cuda.kernels`: the same functions in plain torch, user by user."""

import torch

from genrec_batch.model.weights import EPSILON

E4M3 = torch.float8_e4m3fn
SCALE = 0.6931471805599453  # queries carry log2(e) / sqrt(head size); softmax here is to base e


def fitted(values, out):
    """In the type of `out`; what exceeds e4m3 saturates."""
    return (values.float().clamp(-448, 448) if out.dtype == E4M3 else values).to(out.dtype)


def embed(tokens_BS, lengths_B, first_B, prefix_BD, prefix_qkv_B3, tables, x_MD, qkv_M3):
    for user, (length, first) in enumerate(zip(lengths_B.tolist(), first_B.tolist(), strict=True)):
        x_MD[first].copy_(prefix_BD[user])
        qkv_M3[first].copy_(fitted(prefix_qkv_B3[user], qkv_M3))
        tokens, rows = tokens_BS[user, :length].long(), slice(first + 1, first + 1 + length)
        x_MD[rows] = tables.token_VD[tokens] + tables.position_PD[1 : length + 1]
        qkv_M3[rows].copy_(fitted(tables.token_qkv_V3[tokens] + tables.position_qkv_P3[1 : length + 1], qkv_M3))


def read(tokens_R, lengths_R, step, tables, banned_RW, x_RD, qkv_R3):
    place = lengths_R.long() + 1 + step
    x_RD.copy_(tables.token_VD[tokens_R.long()] + tables.position_PD[place])
    qkv_R3.copy_(tables.token_qkv_V3[tokens_R.long()] + tables.position_qkv_P3[place])
    if banned_RW is not None:
        ban(tokens_R[:, None], banned_RW)


def narrow(wide_MN, out_MN):
    out_MN.copy_(fitted(wide_MN, out_MN))


def attend_history(qkv_M3, lengths_B, first_B, out_MD, heads, longest, unit, kept_M2=None):
    assert int(lengths_B.max()) <= longest
    for length, first in zip(lengths_B.tolist(), first_B.tolist(), strict=True):
        rows = slice(first, first + length + 1)
        q, k, v = qkv_M3[rows].float().view(length + 1, 3, heads, -1).permute(1, 2, 0, 3)
        score = (q @ k.mT * (SCALE * unit)).masked_fill(torch.ones(length + 1, length + 1).triu(1).bool(), -torch.inf)
        out_MD[rows].copy_(fitted((score.softmax(-1) @ v).transpose(0, 1).reshape(length + 1, -1), out_MD))
        if kept_M2 is not None:
            narrow(qkv_M3[rows, out_MD.shape[1] :], kept_M2[rows])


def attend_one(query_R, cache_M, lengths_R, first_R, suffix_RT2, count, out_RD, heads, longest, unit):
    assert int(lengths_R.max()) <= longest
    d = out_RD.shape[1]
    for row, (length, first) in enumerate(zip(lengths_R.tolist(), first_R.tolist(), strict=True)):
        parts = [cache_M[first : first + length + 1, : 2 * d]]
        if suffix_RT2 is not None:
            parts.append(suffix_RT2[row, :count])
        if query_R.shape[1] == 3 * d:
            parts.append(query_R[row : row + 1, d:])
        k, v = torch.cat([part.float() for part in parts]).view(-1, 2, heads, d // heads).permute(1, 2, 0, 3)
        q = query_R[row, :d].float().view(heads, 1, -1)
        out_RD[row] = ((q @ k.mT * (SCALE * unit)).softmax(-1) @ v).reshape(-1).to(out_RD.dtype)
    if suffix_RT2 is not None:
        suffix_RT2[:, count].copy_(fitted(query_R[:, d:], suffix_RT2))


def attend_aside(qkv_R3, cache_M, lengths_B, first_B, out_RD, heads, longest, unit):
    each = len(out_RD) // len(lengths_B)
    lengths_R, first_R = (x.repeat_interleave(each) for x in (lengths_B, first_B))
    attend_one(qkv_R3, cache_M, lengths_R, first_R, None, 0, out_RD, heads, longest, unit)


def _product(x_MK, product):
    total = x_MK.float() @ product.weight.float().T * (product.of_rows * product.of_weight)
    return total if product.bias_N is None else total + product.bias_N


def multiply(x_MK, product, out_MN):
    out_MN.copy_(fitted(_product(x_MK, product), out_MN))


def positive_product(x_MK, product, out_MN):
    out_MN.copy_(fitted(_product(x_MK, product).relu(), out_MN))


def add_norm(x_MD, bias_D, gain_D, shift_D, added_MD=None, small_MD=None, unit=1.0):
    total = x_MD.float() + bias_D.float() + (0 if added_MD is None else added_MD.float())
    normal = torch.nn.functional.layer_norm(total, total.shape[1:], gain_D.float(), shift_D.float(), EPSILON)
    x_MD.copy_(normal)
    if small_MD is not None:
        small_MD.copy_(fitted(normal * unit, small_MD))


def choose(logits_RN, vocabulary, banned_RW, tokens_R, log_probs_R, log_sums_R):
    logits = logits_RN[:, :vocabulary].float()
    token = torch.arange(vocabulary)
    free = (banned_RW[:, token // 32] >> (token % 32).int()) & 1 == 0
    log_sums_R.copy_(logits.logsumexp(1))
    masked = logits.masked_fill(~free, -torch.inf)
    best = masked.max(1).values
    lowest = torch.where(masked == best[:, None], token, vocabulary).min(1).values
    nothing = ~free.any(1)
    tokens_R.copy_(torch.where(nothing, 0, lowest))
    log_probs_R.copy_(torch.where(nothing, -torch.inf, best - log_sums_R))


def order(raw_RN, vocabulary, banned_RW, keys_RV):
    token = torch.arange(vocabulary)
    bits = raw_RN[:, :vocabulary].add(0).view(torch.int16).int()
    ordered = torch.where(bits < 0, bits ^ 0x7FFF, bits)
    banned = (banned_RW[:, token // 32] >> (token % 32).int()) & 1 == 1
    keys_RV.copy_(ordered.masked_fill(banned, -32768) * 65536 + 65535 - token)


def ban(seen_RX, banned_RW):
    for row, tokens in enumerate(seen_RX.tolist()):
        for token in filter(None, tokens):
            bit = 1 << token % 32
            banned_RW[row, token // 32] |= bit - (1 << 32) if bit == 1 << 31 else bit


def heads(raw_RH, tokens_R, out_RH):
    score = raw_RH[:, : out_RH.shape[1]].float().sigmoid()
    out_RH.copy_(score.masked_fill(tokens_R[:, None] == 0, 0.0))
