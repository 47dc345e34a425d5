// What a transformer does row by row between its products, rounding where torch rounds.
#include "kernels.h"

namespace {

template <class T> void gate_row(const T* gate, const T* up, long width, T* out) {
    const __m512 one = _mm512_set1_ps(1.0f);
    for (long i = 0; i < width; i += LANES) {
        const __mmask16 lanes = first_lanes(width - i);
        const __m512 x = load(gate + i, lanes);
        const __m512 damp = _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x)));
        const __m512 silu = rounded<T>(_mm512_div_ps(x, damp));
        store(out + i, lanes, _mm512_mul_ps(silu, load(up + i, lanes)));
    }
}

template <class T> void norm_together(const T* x, const T* weight, float eps, T* out, long rows, long width) {
#pragma omp for schedule(static)
    for (long r = 0; r < rows; r++) norm_row(x + r * width, weight, eps, width, out + r * width);
}

template <class T> void gate_together(const T* both, T* out, long rows, long width) {
#pragma omp for schedule(static)
    for (long r = 0; r < rows; r++) gate_row(both + 2 * r * width, both + (2 * r + 1) * width, width, out + r * width);
}

}  // namespace

// x, out: [rows, width]; weight: [width].
extern "C" void paceline_norm_float32(const float* x, const float* weight, double eps, float* out, long rows,
                                      long width, long threads) {
#pragma omp parallel num_threads(threads) if (rows >= 4)
    norm_together(x, weight, float(eps), out, rows, width);
}

// both: [rows, 2 * width], gates then ups; out: [rows, width] = silu(gate) · up.
extern "C" void paceline_gate_float32(const float* both, float* out, long rows, long width, long threads) {
#pragma omp parallel num_threads(threads) if (rows >= 4)
    gate_together(both, out, rows, width);
}

#ifdef __AVX512BF16__
void norm(const bf16* x, const bf16* weight, float eps, bf16* out, long rows, long width) {
    norm_together(x, weight, eps, out, rows, width);
}

void gate(const bf16* both, bf16* out, long rows, long width) { gate_together(both, out, rows, width); }

extern "C" void paceline_norm_bfloat16(const bf16* x, const bf16* weight, double eps, bf16* out, long rows, long width,
                                       long threads) {
#pragma omp parallel num_threads(threads) if (rows >= 4)
    norm(x, weight, float(eps), out, rows, width);
}

extern "C" void paceline_gate_bfloat16(const bf16* both, bf16* out, long rows, long width, long threads) {
#pragma omp parallel num_threads(threads) if (rows >= 4)
    gate(both, out, rows, width);
}
#endif
