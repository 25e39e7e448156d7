"""The inner loops of tokenisation, compiled.

They stand in one file because numba's cache of compiled code does not notice changes in another one.

All chance of a token comes from one 64-bit draw, a function of (seed, epoch, cell id, token): its order among the draws
of the cell decides what is sampled and what is to be generated or masked, its lower half decides ties. So a cell's
tokens depend neither on its batch nor on the order of columns in a file.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from cellmill.atlas.jit import compiled, inlined
from cellmill.tokens.counting import DROPPED

BINS, MIDRANK, LOG1P = 0, 1, 2
CLS = 1

_SMALL = 256
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_RATIO = np.uint64(0x5851F42D4C957F2D)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)
_32 = np.uint64(32)
_PLAIN, _RANKED = np.uint64(56), np.uint64(54)
"""Bits below those that choose a bucket: 256 buckets of draws, 1,024 where the two highest bits are the rank."""


@inlined
def mix(x: Any) -> Any:
    """Return the finaliser of splitmix64 (Steele, Lea and Flood 2014), a bijection of 64-bit numbers."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@inlined
def cell_key(seed: Any, epoch: Any, cell_id: Any) -> Any:
    """Return the key of all chance in a cell."""
    return mix(mix(mix(np.uint64(seed) + _GAMMA) ^ (np.uint64(epoch) * _GAMMA)) ^ np.uint64(cell_id))


@compiled
def count_buckets(draw: Any, shift: Any, buckets: Any) -> None:
    """Count numbers by the bits above `shift`, which must be below 1,024: int32 [1024]."""
    buckets[: 1 + (np.uint64(0xFFFFFFFFFFFFFFFF) >> shift)] = 0
    for j in range(draw.size):
        buckets[draw[j] >> shift] += 1


@compiled
def smallest(draw: Any, m: Any, shift: Any, buckets: Any, members: Any) -> Any:
    """Return the m-th smallest of n different numbers, 1 <= m <= n, in linear time, after `count_buckets`.

    Parameters
    ----------
    draw : uint64 [n]
    shift, buckets
        As they were given to `count_buckets`.
    members : uint64 [n + 1]
        Scratch.
    """
    before, b = 0, np.uint64(0)
    while before + buckets[b] < m:
        before += buckets[b]
        b += np.uint64(1)
    k = np.uint64(0)
    for j in range(draw.size):
        members[k] = draw[j]
        k += np.uint64((draw[j] >> shift) == b)
    for i in range(1, np.int64(k)):
        x = members[i]
        j = i
        while j > 0 and members[j - 1] > x:
            members[j] = members[j - 1]
            j -= 1
        members[j] = x
    return members[m - before - 1]


@inlined
def between(a: Any, b: Any, gamma: Any) -> Any:
    """Interpolate as ``numpy.quantile`` does, to the last bit."""
    step = b - a
    if gamma >= 0.5:
        return b - step * (1.0 - gamma)
    return a + step * gamma


@compiled
def place_ties(value: Any, n: Any, edges: Any, midrank: Any, low: Any, width: Any) -> None:
    """Find the bins of ascending values: bins `low` up to ``low + width - 1``, one of which is drawn.

    With L edges at or below a value and R below it, scGPT's bin is ``ceil(u * (R - L) + L)`` for u uniform in [0, 1):
    uniform on R + 1 .. L, or L itself where the value equals no edge. At mid-rank it is the middle of that range.
    """
    r, upto = 0, 0
    for d in range(n):
        x = value[d]
        while r < edges.size and edges[r] < x:
            r += 1
        upto = max(upto, r)
        while upto < edges.size and edges[upto] <= x:
            upto += 1
        ties = upto - r
        first = r + 1 if ties > 0 else upto
        low[d] = first + (ties - 1) // 2 if midrank and ties > 0 else first
        width[d] = 1 if midrank or ties == 0 else ties


@compiled
def integer_values(count: Any, n: Any, draw: Any, scale: Any, rules: Any, s: Any, out: Any) -> Any:
    """Give integer counts their values, by what is distinct among them; return False if one is zero.

    Most counts of a cell are equal, so edges are compared and logarithms taken once for each distinct count: found by
    a histogram below 256, by sorting above.

    Parameters
    ----------
    count, draw : [n]
    scale
        Factor before the logarithm.
    rules, s
        `Rules` and `Scratch`.
    out : [n]
    """
    histogram, distinct, ends, table, levels = s.histogram, s.distinct, s.ends, s.table, s.levels
    quantiles, edges, low, width = rules.quantiles, s.edges, s.low, s.width
    count, draw = count[:n], draw[:n]
    histogram[:] = 0
    # Four histograms, because equal counts in a row would wait for each other. Slot 0 takes what does not fit.
    whole = n - n % 4
    for j in range(0, whole, 4):
        histogram[0, small(count[j])] += 1
        histogram[1, small(count[j + 1])] += 1
        histogram[2, small(count[j + 2])] += 1
        histogram[3, small(count[j + 3])] += 1
    for j in range(whole, n):
        histogram[0, small(count[j])] += 1
    n_large = histogram[0, 0] + histogram[1, 0] + histogram[2, 0] + histogram[3, 0]
    n_distinct, seen, v = 0, 0, 1
    while seen < n - n_large:
        here = histogram[0, v] + histogram[1, v] + histogram[2, v] + histogram[3, v]
        distinct[n_distinct] = v
        seen += here
        ends[n_distinct] = seen
        n_distinct += here > 0
        v += 1
    n_small = n_distinct
    if n_large > 0:
        large = np.empty(n_large, np.int64)
        k = 0
        for j in range(n):
            if count[j] == 0:
                return False
            if count[j] >= _SMALL:
                large[k] = np.int64(count[j])
                k += 1
        large.sort()
        for k in range(n_large):
            if k == 0 or large[k] != large[k - 1]:
                distinct[n_distinct] = large[k]
                n_distinct += 1
            seen += 1
            ends[n_distinct - 1] = seen
    if rules.mode == LOG1P:
        for d in range(n_small):
            levels[distinct[d]] = np.log1p(distinct[d] * scale)
        for j in range(n):
            out[j] = levels[small(count[j])] if count[j] < _SMALL else np.log1p(np.int64(count[j]) * scale)
        return True
    a_at, b_at = 0, 0
    for k in range(quantiles.size):
        virtual = (n - 1) * quantiles[k]
        p = min(np.int64(np.floor(virtual)), n - 1)
        while ends[a_at] <= p:
            a_at += 1
        b_at = max(a_at, b_at)
        while ends[b_at] <= min(p + 1, n - 1):
            b_at += 1
        edges[k] = between(np.float64(distinct[a_at]), np.float64(distinct[b_at]), virtual - p)
    place_ties(distinct, n_distinct, edges, rules.mode == MIDRANK, low, width)
    for d in range(n_small):
        table[distinct[d]] = low[d] | (width[d] << _32)
    for j in range(n):
        entry = table[small(count[j])]
        out[j] = (entry & _LOW_HALF) + (((draw[j] & _LOW_HALF) * (entry >> _32)) >> _32)
    if n_large > 0:
        for j in range(n):
            if count[j] >= _SMALL:
                d = find(distinct, n_small, n_distinct, np.int64(count[j]))
                out[j] = low[d] + (((draw[j] & _LOW_HALF) * width[d]) >> _32)
    return True


@inlined
def small(count: Any) -> Any:
    """Return a count as an index if it is below 256, else 0."""
    return np.uint64(count) if count < _SMALL else np.uint64(0)


@inlined
def find(distinct: Any, start: Any, stop: Any, x: Any) -> Any:
    """Return where a value is among ascending ones."""
    while stop - start > 1:
        middle = (start + stop) // 2
        if distinct[middle] <= x:
            start = middle
        else:
            stop = middle
    return start


@compiled
def real_values(count: Any, n: Any, draw: Any, scale: Any, rules: Any, s: Any, out: Any) -> Any:
    """Give fractional values theirs, by sorting; return False if one is not above zero or infinite."""
    quantiles, edges, low, width = rules.quantiles, s.edges, s.low, s.width
    for j in range(n):
        if not 0 < count[j] < np.inf:
            return False
    if rules.mode == LOG1P:
        for j in range(n):
            out[j] = np.log1p(np.float64(count[j]) * scale)
        return True
    order = np.argsort(count[:n])
    ordered = count[:n][order]
    for k in range(quantiles.size):
        virtual = (n - 1) * quantiles[k]
        p = min(np.int64(np.floor(virtual)), n - 1)
        # The difference is taken in the values' own precision, as numpy does.
        edges[k] = between(ordered[p], ordered[min(p + 1, n - 1)], virtual - p)
    place_ties(ordered, n, edges, rules.mode == MIDRANK, low, width)
    for k in range(n):
        j = order[k]
        out[j] = low[k] + (((draw[j] & _LOW_HALF) * width[k]) >> _32)
    return True


@inlined
def group(token: Any, group_of: Any) -> Any:
    """Return the modality of a token."""
    return group_of[token] if token < group_of.size else 0


@inlined
def scale_to(target: Any, total: Any) -> Any:
    """Return the factor that brings a cell to the target sum; 1 for no target."""
    return target / total if target > 0.0 and total > 0.0 else 1.0


@compiled
def give_values(source: Any, row: Any, n: Any, rules: Any, s: Any) -> Any:
    """Give the n candidates in `s` their values, modality by modality; return False if a count is bad.

    Sums are over all counts of the cell, not those of the panel alone.
    """
    begin, end = source.indptr[row], source.indptr[row + 1]
    wanted = rules.mode == LOG1P and rules.target_sum > 0.0
    if rules.group_of.size == 0:
        total = 0.0
        if wanted:
            for i in range(begin, end):
                total += source.count[i]
        scale = scale_to(rules.target_sum, total)
        if rules.integers:
            return integer_values(s.count, n, s.draw, scale, rules, s, s.value)
        return real_values(s.count, n, s.draw, scale, rules, s, s.value)
    good = True
    for g in range(rules.fixed.size):
        total = 0.0
        if wanted:
            for i in range(begin, end):
                if group(source.token[i], rules.group_of) == g:
                    total += source.count[i]
        scale = scale_to(rules.target_sum, total)
        k = 0
        for j in range(n):
            if group(s.token[j], rules.group_of) == g:
                s.sub_count[k], s.sub_draw[k], s.sub_at[k] = s.count[j], s.draw[j], j
                k += 1
        if rules.fixed[g] > 0:
            for i in range(k):
                good &= s.sub_count[i] > 0
                s.sub_value[i] = rules.fixed[g]
        elif k > 0 and rules.integers:
            good &= integer_values(s.sub_count, k, s.sub_draw, scale, rules, s, s.sub_value)
        elif k > 0:
            good &= real_values(s.sub_count, k, s.sub_draw, scale, rules, s, s.sub_value)
        for i in range(k):
            s.value[s.sub_at[i]] = s.sub_value[i]
    return good


@compiled
def candidates(source: Any, row: Any, key: Any, rules: Any, s: Any) -> Any:
    """Copy the entries of a cell that are in the panel into `s`, with their draws; return how many."""
    begin, end = source.indptr[row], source.indptr[row + 1]
    # Views, because an index that could be negative costs a test for each element.
    from_token, from_count = source.token[begin:end], source.count[begin:end]
    rank, token, count, draw = rules.rank, s.token, s.count, s.draw
    if rank.size > 0 or rules.other_rank == DROPPED:
        k = np.uint64(0)
        for j in range(from_token.size):
            t = from_token[j]
            token[k] = t
            count[k] = from_count[j]
            k += np.uint64((rank[t] if t < rank.size else rules.other_rank) != DROPPED)
        n = np.int64(k)
    else:
        n = np.int64(from_token.size)
        for j in range(n):
            token[j] = from_token[j]
        for j in range(n):
            count[j] = from_count[j]
    for j in range(n):
        draw[j] = mix(key + np.uint64(token[j]) * _GAMMA)
    return n


@compiled
def add_zeros(source: Any, row: Any, key: Any, n: Any, s: Any) -> Any:
    """Put all measured tokens in place of the n candidates; return how many. `s.order` is 1 for what is expressed.

    This comes after binning: zeros are no part of the quantiles.
    """
    for j in range(n):
        s.dense[s.token[j]] = j + 1
        s.sub_value[j] = s.value[j]
        s.sub_at[j] = s.token[j]
    m = np.int64(0)
    for i in range(source.measured_at[source.measured_set[row]], source.measured_at[source.measured_set[row] + 1]):
        at = s.dense[source.measured[i]]
        s.token[m] = source.measured[i]
        s.value[m] = s.sub_value[at - 1] if at > 0 else 0
        s.draw[m] = mix(key + np.uint64(s.token[m]) * _GAMMA)
        s.order[m] = at > 0
        m += 1
    for j in range(n):
        s.dense[s.sub_at[j]] = 0
    return m


@compiled
def sample_by_rank(n: Any, keep: Any, zeros_last: Any, rules: Any, s: Any) -> None:
    """Keep some of the n candidates: the smallest draws, of the lowest ranks."""
    rank, token, value, draw, order = rules.rank, s.token, s.value, s.draw, s.order
    for j in range(n):
        t = token[j]
        r = np.uint64(rank[t] if t < rank.size else rules.other_rank)
        if zeros_last and order[j] == 0 and r > 0:
            r = np.uint64(3)
        order[j] = (r << np.uint64(62)) | (draw[j] >> np.uint64(2))
    count_buckets(order[:n], _RANKED, s.buckets)
    last = smallest(order[:n], keep, _RANKED, s.buckets, s.members)
    k = 0
    for j in range(n):
        token[k], value[k], draw[k] = token[j], value[j], draw[j]
        k += order[j] <= last


@compiled
def write(cell: Any, n: Any, keep: Any, key: Any, rules: Any, s: Any, result: Any) -> None:
    """Write ``<cls>`` and `keep` of the n candidates: the smallest draws, and of those the smallest are generated.

    Those to be generated, or masked, are written last.
    """
    start, stop = result.cu_seqlens[cell], result.cu_seqlens[cell + 1]
    gene, value = result.gene[start:stop], result.value[start:stop]
    n_gen, n_mask = np.int64(0), np.int64(0)
    if rules.ratios.size > 0:
        pick = (mix(key ^ _RATIO) >> _32) * np.uint64(rules.ratios.size) >> _32
        n_gen = np.int64(keep * rules.ratios[pick])
    elif result.masked.size > 0:
        n_mask = np.int64(keep * rules.mask_ratio)
    result.n_pcpt[cell] = 1 + keep - n_gen
    gene[0] = CLS
    value[0] = 0
    kept, first = _ALL, np.uint64(0)
    n_first = n_gen + n_mask
    draw, from_token, from_value = s.draw[:n], s.token[:n], s.value[:n]
    if keep < n or n_first > 0:
        count_buckets(draw, _PLAIN, s.buckets)
    if keep < n:
        kept = smallest(draw, keep, _PLAIN, s.buckets, s.members)
    if n_first > 0:
        first = smallest(draw, n_first, _PLAIN, s.buckets, s.members)
    # What is dropped is written too, to a place that the next one takes: a branch would be mispredicted.
    out_token, out_value = s.out_token, s.out_value
    p, f = np.uint64(1), np.uint64(s.token.size + 1)
    if n_first > 0:
        for j in range(n):
            x = draw[j]
            to = f if x <= first else p
            out_token[to] = from_token[j]
            out_value[to] = from_value[j]
            f += np.uint64(x <= first)
            p += np.uint64((x > first) & (x <= kept))
    else:
        for j in range(n):
            out_token[p] = from_token[j]
            out_value[p] = from_value[j]
            p += np.uint64(draw[j] <= kept)
    n_last = np.int64(p)
    for j in range(1, n_last):
        gene[j] = out_token[j]
    for j in range(1, n_last):
        value[j] = out_value[j]
    last_token, last_value = s.out_token[s.token.size + 1 :], s.out_value[s.token.size + 1 :]
    last_gene, last_out = gene[n_last:], value[n_last:]
    for j in range(n_first):
        last_gene[j] = last_token[j]
        last_out[j] = last_value[j]
    if result.masked.size > 0:
        masked = result.masked[start:stop]
        for j in range(masked.size):
            masked[j] = j >= n_last


@compiled
def tokenise_cells(source: Any, copies: Any, rules: Any, s: Any, result: Any) -> Any:
    """Fill the channels of a packed batch; return the first cell with a count that is not above zero, else -1.

    Parameters
    ----------
    source, rules, s, result
        `Source`, `Rules`, `Scratch` and `Result`.
    copies : int64 [n] or [0]
        Which copy of the cell each is; empty where no cell comes twice.
    """
    with_zeros = source.measured_set.size > 0
    for cell in range(result.n_pcpt.size):
        key = cell_key(rules.seed, rules.epoch, source.cell_id[cell])
        if copies.size > 0 and copies[cell] > 0:
            key = mix(key + np.uint64(copies[cell]) * _GAMMA)
        n = candidates(source, cell, key, rules, s)
        if n > 0 and not give_values(source, cell, n, rules, s):
            return cell
        if with_zeros:
            n = add_zeros(source, cell, key, n, s)
        keep = np.int64(result.cu_seqlens[cell + 1] - result.cu_seqlens[cell] - 1)
        if keep < n and rules.ranked:
            sample_by_rank(n, keep, with_zeros and rules.zeros_last, rules, s)
            n = keep
        write(cell, n, keep, key, rules, s, result)
    return -1
