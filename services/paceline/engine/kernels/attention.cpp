// Attention of ragged rows over paged K and V.
//
// A row looks at its own KV positions in blocks of 64 at fixed places, ascending, with the running maximum and sum of
// online softmax (Milakov, Gimelshein, arXiv 1805.02867); sums are float32. Which blocks there are, and the order in
// each, is a function of the row's own span. Rows of one session share what they read of K, and nothing else.
//
// Pages hold 16 positions. K: per page and head [dim / u][16][u], u = 2 bfloat16 or 1 float, so that 16 positions are
// the lanes of a vector. V: per page and head [16][dim].
#include <algorithm>
#include <vector>

#include "kernels.h"
#include "vectors.h"

namespace {

constexpr long PAGE = 16;
constexpr long PAGES = 4;  // per block
constexpr long BLOCK = PAGE * PAGES;
constexpr int QUERIES = 4;  // at once

}  // namespace

namespace {

inline __m512 multiply(__m512 sum, const float* keys, const float* query) {
    return _mm512_fmadd_ps(_mm512_loadu_ps(keys), _mm512_set1_ps(*query), sum);
}

template <class T> constexpr long UNIT = 1;

#ifdef __AVX512BF16__
template <> constexpr long UNIT<bf16> = 2;

inline __m512 multiply(__m512 sum, const bf16* keys, const bf16* query) {
    int32_t both;
    std::memcpy(&both, query, sizeof both);
    return _mm512_dpbf16_ps(sum, (__m512bh)_mm512_loadu_si512(keys), (__m512bh)_mm512_set1_epi32(both));
}
#endif

// Rotary embedding of one head as transformers does it: x · cos + (-x₂, x₁) · sin.
template <class T> void rotate(const T* x, const T* cos, const T* sin, long dim, T* out) {
    const long half = dim / 2;
    for (long i = 0; i < half; i += LANES) {
        const __mmask16 lanes = first_lanes(half - i);
        const __m512 a = load(x + i, lanes), b = load(x + half + i, lanes);
        const __m512 ac = rounded<T>(_mm512_mul_ps(a, load(cos + i, lanes)));
        const __m512 bs = rounded<T>(_mm512_mul_ps(b, load(sin + i, lanes)));
        const __m512 bc = rounded<T>(_mm512_mul_ps(b, load(cos + half + i, lanes)));
        const __m512 as = rounded<T>(_mm512_mul_ps(a, load(sin + half + i, lanes)));
        store(out + i, lanes, _mm512_sub_ps(ac, bs));
        store(out + half + i, lanes, _mm512_add_ps(bc, as));
    }
}

constexpr long MOST_DIM = 1024;

// A head of a row as it is asked with or looked at: normed if it has a norm, then rotated.
template <class T>
void turn(const Layer& l, const T* head, const void* weight, const Inputs& in, long row, T* out) {
    T normed[MOST_DIM];
    if (weight) {
        norm_row(head, (const T*)weight, float(l.eps), l.key_dim, normed);
        head = normed;
    }
    rotate(head, (const T*)in.cos + row * l.key_dim, (const T*)in.sin + row * l.key_dim, l.key_dim, out);
}

// Puts a row's K and V where they belong.
template <class T> void write_row(const Layer& l, const Inputs& in, long row, long page, long place) {
    T turned[MOST_DIM];
    for (long h = 0; h < l.kv_heads; h++) {
        const T* key = (const T*)in.key + row * in.key_row + h * in.key_head;
        if (in.cos) {
            turn(l, key, l.key_norm, in, row, turned);
            key = turned;
        }
        T* keys = (T*)l.keys + (page * l.kv_heads + h) * PAGE * l.key_dim + place * UNIT<T>;
        for (long d = 0; d < l.key_dim; d += UNIT<T>) std::memcpy(keys + d * PAGE, key + d, UNIT<T> * sizeof(T));
        T* values = (T*)l.values + ((page * l.kv_heads + h) * PAGE + place) * l.value_dim;
        std::memcpy(values, (const T*)in.value + row * in.value_row + h * in.value_head, l.value_dim * sizeof(T));
    }
}

// Products of COUNT queries with a block of keys: scores [COUNT][BLOCK].
template <class T, int COUNT>
void score(const T* const* queries, const T* const* keys, long dim, float* scores) {
    __m512 sums[COUNT][PAGES];
    for (auto& query : sums)
        for (auto& sum : query) sum = _mm512_setzero_ps();
    for (long d = 0; d < dim; d += UNIT<T>)
        for (int q = 0; q < COUNT; q++)
            for (int p = 0; p < PAGES; p++) sums[q][p] = multiply(sums[q][p], keys[p] + d * PAGE, queries[q] + d);
    for (int q = 0; q < COUNT; q++)
        for (int p = 0; p < PAGES; p++) _mm512_storeu_ps(scores + q * BLOCK + p * PAGE, sums[q][p]);
}

// sums[q] = sums[q] · fade[q] + Σ weights[q][i] · values[i] over positions begin … end - 1, for VECTORS · 16 dims.
template <class T, int COUNT, int VECTORS>
void gather(float* sums, long stride, const float* fade, const float* weights, const T* const* values, long begin,
            long end, long dim, long from) {
    __m512 s[COUNT][VECTORS];
    __mmask16 lanes[VECTORS];
    for (int v = 0; v < VECTORS; v++) lanes[v] = first_lanes(dim - from - v * LANES);
    for (int q = 0; q < COUNT; q++)
        for (int v = 0; v < VECTORS; v++)
            s[q][v] = _mm512_mul_ps(_mm512_loadu_ps(sums + q * stride + from + v * LANES), _mm512_set1_ps(fade[q]));
    for (long i = begin; i < end; i++) {
        const T* value = values[i / PAGE] + i % PAGE * dim + from;
        for (int v = 0; v < VECTORS; v++) {
            const __m512 x = load(value + v * LANES, lanes[v]);
            for (int q = 0; q < COUNT; q++) s[q][v] = _mm512_fmadd_ps(_mm512_set1_ps(weights[q * BLOCK + i]), x, s[q][v]);
        }
    }
    for (int q = 0; q < COUNT; q++)
        for (int v = 0; v < VECTORS; v++) _mm512_storeu_ps(sums + q * stride + from + v * LANES, s[q][v]);
}

// Queries of one row, which share their span, beside each other.
template <class T, int COUNT>
void gather_all(float* sums, long stride, const float* fade, const float* weights, const T* const* values, long begin,
                long end, long dim) {
    long from = 0;
    for (; dim - from > 3 * LANES; from += 4 * LANES)
        gather<T, COUNT, 4>(sums, stride, fade, weights, values, begin, end, dim, from);
    for (; from < dim; from += LANES)
        gather<T, COUNT, 1>(sums, stride, fade, weights, values, begin, end, dim, from);
}

// Scores of one query in a block become weights; its maximum and sum move on. Returns what older sums fade by.
float weigh(const Layer& l, float* scores, long begin, long end, float& most, float& total) {
    __m512 s[PAGES];
    __m512 peak = _mm512_set1_ps(-INFINITY);
    __mmask16 seen[PAGES];
    for (long p = 0; p < PAGES; p++) {
        seen[p] = first_lanes(std::max(0L, end - p * PAGE)) & ~first_lanes(std::max(0L, begin - p * PAGE));
        s[p] = _mm512_mul_ps(_mm512_loadu_ps(scores + p * PAGE), _mm512_set1_ps(float(l.scaling)));
        if (l.softcap != 0) {
            float capped[PAGE];
            _mm512_storeu_ps(capped, s[p]);
            for (float& x : capped) x = std::tanh(x / float(l.softcap)) * float(l.softcap);
            s[p] = _mm512_loadu_ps(capped);
        }
        s[p] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), seen[p], s[p]);
        peak = _mm512_max_ps(peak, s[p]);
    }
    const float before = most;
    most = std::max(most, _mm512_reduce_max_ps(peak));
    __m512 sums[PAGES];
    for (long p = 0; p < PAGES; p++) {
        sums[p] = _mm512_maskz_mov_ps(seen[p], exp16(_mm512_sub_ps(s[p], _mm512_set1_ps(most))));
        _mm512_storeu_ps(scores + p * PAGE, sums[p]);
    }
    const float fade = before == -INFINITY ? 0.0f : _mm512_cvtss_f32(exp16(_mm512_set1_ps(before - most)));
    total = total * fade +
            _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3])));
    return fade;
}

template <class T> struct Tile {
    const Layer& l;
    const Inputs& in;
    long row, rows, position;
    const int64_t* pages;
    long head;  // of K and V

    void attend() const {
        const long groups = l.heads / l.kv_heads, count = rows * groups;
        const long stride = (l.value_dim + LANES - 1) / LANES * LANES;
        thread_local std::vector<float> room;
        thread_local std::vector<const T*> queries;
        room.assign(count * (stride + BLOCK + 3), 0.0f);
        queries.clear();
        float *sums = room.data(), *scores = sums + count * stride, *fade = scores + count * BLOCK;
        float *most = fade + count, *total = most + count;
        for (long q = 0; q < count; q++) {
            most[q] = -INFINITY;
            queries.push_back(query(row + q / groups, head * groups + q % groups));
        }
        for (long block = first(0) / BLOCK; block * BLOCK < position + rows; block++) {
            const T *keys[PAGES], *values[PAGES];
            for (long p = 0; p < PAGES; p++) {
                const long at = (pages[block * PAGES + p] * l.kv_heads + head) * PAGE;
                keys[p] = (const T*)l.keys + at * l.key_dim;
                values[p] = (const T*)l.values + at * l.value_dim;
            }
            scored(queries.data(), keys, count, scores);
            for (long r = 0; r < rows; r++) {
                const long begin = std::max(0L, first(r) - block * BLOCK);
                const long seen = position + (l.whole ? rows : r + 1);
                const long end = std::min(BLOCK, seen - block * BLOCK);
                if (begin >= end) continue;
                const long q = r * groups;
                for (long g = q; g < q + groups; g++)
                    fade[g] = weigh(l, scores + g * BLOCK, begin, end, most[g], total[g]);
                gathered(sums + q * stride, stride, fade + q, scores + q * BLOCK, values, begin, end, groups);
            }
        }
        finish(sums, stride, total, groups);
    }

    long first(long r) const { return l.window ? std::max(0L, position + r + 1 - l.window) : 0; }

    const T* query(long r, long h) const {
        return in.cos ? (const T*)in.rotated + (r * l.heads + h) * l.key_dim
                      : (const T*)in.query + r * in.query_row + h * in.query_head;
    }

    void scored(const T* const* queries, const T* const* keys, long count, float* scores) const {
        for (; count > 0; count -= QUERIES, queries += QUERIES, scores += QUERIES * BLOCK) switch (count) {
                case 1: score<T, 1>(queries, keys, l.key_dim, scores); break;
                case 2: score<T, 2>(queries, keys, l.key_dim, scores); break;
                case 3: score<T, 3>(queries, keys, l.key_dim, scores); break;
                default: score<T, 4>(queries, keys, l.key_dim, scores);
            }
    }

    void gathered(float* sums, long stride, const float* fade, const float* weights, const T* const* values, long begin,
                  long end, long count) const {
        for (; count > 0; count -= QUERIES, sums += QUERIES * stride, fade += QUERIES, weights += QUERIES * BLOCK)
            switch (count) {
                case 1: gather_all<T, 1>(sums, stride, fade, weights, values, begin, end, l.value_dim); break;
                case 2: gather_all<T, 2>(sums, stride, fade, weights, values, begin, end, l.value_dim); break;
                case 3: gather_all<T, 3>(sums, stride, fade, weights, values, begin, end, l.value_dim); break;
                default: gather_all<T, 4>(sums, stride, fade, weights, values, begin, end, l.value_dim);
            }
    }

    void finish(const float* sums, long stride, const float* total, long groups) const {
        for (long q = 0; q < rows * groups; q++) {
            T* out = (T*)in.out + ((row + q / groups) * l.heads + head * groups + q % groups) * l.value_dim;
            for (long d = 0; d < l.value_dim; d += LANES)
                store(out + d, first_lanes(l.value_dim - d),
                      _mm512_div_ps(_mm512_loadu_ps(sums + q * stride + d), _mm512_set1_ps(total[q])));
        }
    }
};

template <class T> void write_together(const Layer& l, const Step& s, const Inputs& in) {
#pragma omp for schedule(static)
    for (long t = 0; t < s.count; t++) {
        const int64_t* tile = s.tiles + 4 * t;
        for (long r = 0; r < tile[1]; r++) {
            const long position = tile[2] + r, row = tile[0] + r;
            write_row<T>(l, in, row, s.pages[tile[3] + position / PAGE], position % PAGE);
            for (long h = 0; in.rotated && h < l.heads; h++)
                turn(l, (const T*)in.query + row * in.query_row + h * in.query_head, l.query_norm, in, row,
                     (T*)in.rotated + (row * l.heads + h) * l.key_dim);
        }
    }
}

template <class T> void attend_together(const Layer& l, const Step& s, const Inputs& in) {
    write_together<T>(l, s, in);
#pragma omp for schedule(dynamic)
    for (long task = 0; task < s.count * l.kv_heads; task++) {
        const int64_t* tile = s.tiles + 4 * (task / l.kv_heads);
        Tile<T>{l, in, tile[0], tile[1], tile[2], s.pages + tile[3], task % l.kv_heads}.attend();
    }
}

}  // namespace

extern "C" void paceline_attend_float32(const Layer* l, const Step* s, const Inputs* in) {
#pragma omp parallel num_threads(s->threads)
    attend_together<float>(*l, *s, *in);
}

#ifdef __AVX512BF16__
void attend(const Layer& l, const Step& s, const Inputs& in) { attend_together<bf16>(l, s, in); }

void write(const Layer& l, const Step& s, const Inputs& in) { write_together<bf16>(l, s, in); }

extern "C" void paceline_attend_bfloat16(const Layer* l, const Step* s, const Inputs* in) {
#pragma omp parallel num_threads(s->threads)
    attend(*l, *s, *in);
}
#endif
