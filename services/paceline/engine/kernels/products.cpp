// Products of bfloat16 rows with packed weights.
//
// An output is one chain of fused dot products of pairs over k, ascending, in float32: its bits depend on its row and
// its column of weights alone, not on how many rows there are or where they stand.
//
// Packed weights: panels of 32 outputs, each [in / 2][32][2]; so a panel is read once, front to back, per row group.
#include "kernels.h"

#ifdef __AVX512BF16__
namespace {

constexpr int PANEL = 32;
constexpr int GROUP = 12;  // rows at once: 24 sums, 2 weights and 1 input fit the 32 registers
constexpr int AHEAD = 2048;  // bytes prefetched ahead of use

struct Out {
    const bf16* bias;      // [n], or null
    const bf16* residual;  // like out, or null: added to the rounded product, and rounded again
    bf16* out;
    long n;
};

inline __m512bh pair(const bf16* at) {
    int32_t both;
    std::memcpy(&both, at, sizeof both);
    return (__m512bh)_mm512_set1_epi32(both);
}

void finish(const Out& o, long row, long column, __m512 sum) {
    if (column >= o.n) return;
    const __mmask16 lanes = first_lanes(o.n - column);
    if (o.bias) sum = _mm512_add_ps(sum, load(o.bias + column, lanes));
    const long at = row * o.n + column;
    if (o.residual) sum = _mm512_add_ps(load(o.residual + at, lanes), rounded<bf16>(sum));
    store(o.out + at, lanes, sum);
}

template <int ROWS>
void group(const bf16* x, long k, const bf16* weights, const Out& o, long row, long column) {
    __m512 sums[ROWS][2];
    for (int r = 0; r < ROWS; r++) sums[r][0] = sums[r][1] = _mm512_setzero_ps();
    const bf16* first = x + row * k;
    for (long i = 0; i < k; i += 2, weights += 2 * PANEL) {
        const __m512bh low = (__m512bh)_mm512_loadu_si512(weights);
        const __m512bh high = (__m512bh)_mm512_loadu_si512(weights + PANEL);
        _mm_prefetch((const char*)weights + AHEAD, _MM_HINT_T0);
        _mm_prefetch((const char*)weights + AHEAD + 64, _MM_HINT_T0);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const __m512bh both = pair(first + r * k + i);
            sums[r][0] = _mm512_dpbf16_ps(sums[r][0], low, both);
            sums[r][1] = _mm512_dpbf16_ps(sums[r][1], high, both);
        }
    }
    for (int r = 0; r < ROWS; r++) {
        finish(o, row + r, column, sums[r][0]);
        finish(o, row + r, column + LANES, sums[r][1]);
    }
}

using Group = void (*)(const bf16*, long, const bf16*, const Out&, long, long);
constexpr Group GROUPS[GROUP + 1] = {nullptr,  group<1>, group<2>, group<3>,  group<4>,  group<5>, group<6>,
                                     group<7>, group<8>, group<9>, group<10>, group<11>, group<12>};

}  // namespace

void product(const bf16* x, const bf16* weights, const bf16* bias, const bf16* residual, bf16* out, long rows, long k,
             long n) {
    const Out o{bias, residual, out, n};
    const long panels = (n + PANEL - 1) / PANEL;
    const long groups = (rows + GROUP - 1) / GROUP;
#pragma omp for schedule(static)
    for (long panel = 0; panel < panels; panel++)
        for (long g = 0; g < groups; g++) {
            const long begin = rows * g / groups, end = rows * (g + 1) / groups;
            GROUPS[end - begin](x, k, weights + panel * k * PANEL, o, begin, panel * PANEL);
        }
}

// x: [rows, k], k even; weights as above; residual, out: [rows, n].
extern "C" void paceline_product(const bf16* x, const bf16* weights, const bf16* bias, const bf16* residual, bf16* out,
                                 long rows, long k, long n, long threads) {
#pragma omp parallel num_threads(threads)
    product(x, weights, bias, residual, out, rows, k, n);
}
#endif
