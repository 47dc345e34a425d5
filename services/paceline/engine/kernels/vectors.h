// What the kernels share: vectors of 16 floats, and rows of float or bfloat16 seen as such.
//
// Every operation is written out as an intrinsic, and the build forbids contraction: what is computed, and in which
// order, does not depend on the compiler, nor on which template instance a row happens to run through.
#pragma once

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

using bf16 = uint16_t;
constexpr int LANES = 16;

static inline __mmask16 first_lanes(long count) { return count >= LANES ? 0xFFFF : __mmask16((1u << count) - 1); }

static inline __m512 widen(__m256i halves) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16));
}

static inline __m512 load(const float* at, __mmask16 lanes) { return _mm512_maskz_loadu_ps(lanes, at); }
static inline __m512 load(const bf16* at, __mmask16 lanes) { return widen(_mm256_maskz_loadu_epi16(lanes, at)); }

static inline void store(float* at, __mmask16 lanes, __m512 x) { _mm512_mask_storeu_ps(at, lanes, x); }

// Rounds to the nearest bfloat16, as torch does after every operation on such tensors.
template <class T> static inline __m512 rounded(__m512 x);
template <> inline __m512 rounded<float>(__m512 x) { return x; }

#ifdef __AVX512BF16__
static inline void store(bf16* at, __mmask16 lanes, __m512 x) {
    _mm256_mask_storeu_epi16(at, lanes, (__m256i)_mm512_cvtneps_pbh(x));
}
template <> inline __m512 rounded<bf16>(__m512 x) { return widen((__m256i)_mm512_cvtneps_pbh(x)); }
#endif

// e^x to about one unit in the last place, by x = n ln 2 + r with |r| <= ln 2 / 2 and the Taylor polynomial of e^r.
// Below -104 it is the least positive number or 0; NaN comes through.
static inline __m512 exp16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);  // of a NaN, the second operand is returned
    x = _mm512_min_ps(_mm512_set1_ps(89.0f), x);
    const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693145752f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(1.42860677e-6f), r);
    __m512 p = _mm512_set1_ps(1.0f / 5040);
    static const float FACTORS[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (const float c : FACTORS) p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(c));
    return _mm512_scalef_ps(p, n);
}

// Llama's RMSNorm: weight · round(x / sqrt(mean(x²) + eps)).
template <class T> void norm_row(const T* x, const T* weight, float eps, long width, T* out) {
    __m512 squares = _mm512_setzero_ps();
    for (long i = 0; i < width; i += LANES) {
        const __m512 v = load(x + i, first_lanes(width - i));
        squares = _mm512_fmadd_ps(v, v, squares);
    }
    const __m512 scale = _mm512_set1_ps(1.0f / std::sqrt(_mm512_reduce_add_ps(squares) / float(width) + eps));
    for (long i = 0; i < width; i += LANES) {
        const __mmask16 lanes = first_lanes(width - i);
        const __m512 v = rounded<T>(_mm512_mul_ps(load(x + i, lanes), scale));
        store(out + i, lanes, _mm512_mul_ps(load(weight + i, lanes), v));
    }
}
